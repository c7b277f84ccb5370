"""The Vega-Lite specifications of the interactive charts, and Vega's configuration in a scheme's colours.

Every chart filters the same points by the page's controls, and every mark has a text for screen readers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from zipfmax_reports.style import VEGA_SHAPES, Theme, count
from zipfmax_reports.tables import evenly, places

Spec = dict[str, Any]

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_COLUMNS = {"expr": "max(2, floor(width / 95))"}
"""Of a legend: it wraps where a chart is narrow."""


@dataclass(frozen=True)
class Selection:
    """What the controls choose.

    Attributes:
        parameters: a Vega-Lite parameter for each control.
        filter: the expression that keeps a point under the chosen conditions.
    """

    parameters: list[Spec]
    filter: str


def config(theme: Theme) -> dict[str, Any]:
    """Vega's configuration in a scheme's colours."""
    return {
        "background": "transparent",
        "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif",
        "range": {"category": list(theme.series), "symbol": list(VEGA_SHAPES)},
        "axis": {
            "labelColor": theme.muted,
            "titleColor": theme.ink,
            "domainColor": theme.muted,
            "tickColor": theme.muted,
            "gridColor": theme.grid,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
        },
        "legend": {"labelColor": theme.ink, "titleColor": theme.muted, "labelFontSize": 12, "symbolSize": 80},
        "view": {"stroke": None},
        "style": {
            "even": {"strokeDash": [5, 4], "strokeWidth": 1.2},
            "even-text": {"align": "right", "baseline": "bottom", "dy": -3},
        },
        "rule": {"color": theme.ink},
        "text": {"color": theme.muted},
    }


def _only(field: str, values: list[str], selection: Selection) -> Selection:
    """The selection, and of `field` only these values."""
    return Selection(
        selection.parameters, f"({selection.filter}) && indexof({json.dumps(values)}, datum.{field}) >= 0"
    )


def _of(title: str, drawn: list[str], known: list[str]) -> str:
    """A legend's title, with how many of how many where some are left out."""
    return title if len(drawn) == len(known) else f"{title} ({len(drawn)} of {len(known)})"


def _frame(selection: Selection, layers: list[Spec], description: str) -> Spec:
    return {
        "$schema": _SCHEMA,
        "description": description,
        "width": "container",
        "height": 340,
        "autosize": {"type": "fit", "contains": "padding"},
        "data": {"name": "points"},
        "params": [*selection.parameters],
        "transform": [{"filter": selection.filter}],
        "layer": layers,
    }


def _speedup_layers(x: Spec, series: Spec, joined: str | None = None) -> list[Spec]:
    """Break-even line, intervals, lines and focusable points; `joined` restricts what a line connects."""
    scale = {"type": "log", "base": 2, "nice": False, "padding": 8}
    axis = {"title": "speedup", "labelExpr": "datum.value + '×'", "tickCount": 6, "grid": True}
    y = {"field": "speedup", "type": "quantitative", "scale": scale, "axis": axis}
    even = {"datum": 1, "type": "quantitative", "scale": scale, "axis": axis}
    once: Spec = {"values": [{}]}
    line: Spec = {
        "mark": {"type": "line", "aria": False, "strokeWidth": 2},
        "encoding": {
            "x": x,
            "y": y,
            "color": series,
            "strokeDash": {"field": "real", "type": "nominal", "legend": None, "scale": {
                "domain": [False, True], "range": [[1, 0], [3, 3]]}},
        },
    }  # fmt: skip
    if joined:
        line["transform"] = [{"filter": joined}]
    return [
        {"data": once, "mark": {"type": "rule", "style": "even", "aria": False}, "encoding": {"y": even}},
        {
            "data": once,
            "mark": {"type": "text", "style": "even-text", "text": "break-even", "aria": False},
            "encoding": {"y": even, "x": {"value": "width"}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 1.5, "aria": False},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": series},
        },
        line,
        {
            "mark": {"type": "point", "filled": True, "size": 90, "cursor": "pointer", "opacity": 1},
            "encoding": {
                "x": x,
                "y": y,
                "color": series,
                "shape": {**series},
                "description": {"field": "describe", "type": "nominal"},
                "tooltip": {"field": "describe", "type": "nominal"},
            },
        },
    ]


def vocabulary(sizes: list[int], order: list[str], selection: Selection) -> Spec:
    """Speedup against vocabulary size, a line per label distribution, at most as many as colours."""
    lines = evenly(order, len(VEGA_SHAPES))
    selection = _only("labels_name", lines, selection)
    x = {
        "field": "n_classes",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False, "padding": 24},
        "axis": {
            "title": "vocabulary size",
            "format": ",",
            "grid": False,
            "values": sizes,
            "labelOverlap": "greedy",
        },
    }
    series = {
        "field": "labels_name",
        "type": "nominal",
        "sort": lines,
        "scale": {"domain": lines},
        "legend": {"title": _of("labels", lines, order), "orient": "top", "columns": _COLUMNS},
    }
    return _frame(
        selection,
        _speedup_layers(x, series),
        "Speedup against vocabulary size, a line per label distribution.",
    )


def skew(ratios: pd.DataFrame, selection: Selection) -> Spec:
    """Speedup against Zipf's exponent, a line per vocabulary: at most as many as there are colours.

    Real frequencies stand at places of their own.
    """
    at = places(ratios)
    names = {
        f"{place:.2f}": name if name.startswith(("words", "counts")) else f"{place:g}"
        for name, place in at.items()
    }
    x = {
        "field": "place",
        "type": "quantitative",
        "scale": {"nice": False, "padding": 24, "zero": False},
        "axis": {
            "title": "Zipf exponent | real frequencies",
            "values": sorted(at.values()),
            "labelExpr": "names[format(datum.value, '.2f')]",
            "grid": False,
            "labelOverlap": "greedy",
        },
    }
    sizes = [count(classes) for classes in sorted(ratios["n_classes"].unique())]
    lines = evenly(sizes, len(VEGA_SHAPES))
    selection = _only("classes", lines, selection)
    series = {
        "field": "classes",
        "type": "nominal",
        "sort": lines,
        "scale": {"domain": lines},
        "legend": {"title": _of("vocabulary", lines, sizes), "orient": "top", "columns": _COLUMNS},
    }
    spec = _frame(
        selection,
        _speedup_layers(x, series, "!datum.real"),
        "Speedup against Zipf skew, a line per vocabulary.",
    )
    spec["params"].append({"name": "names", "value": names})
    return spec


def heat(order: list[str], n_sizes: int, selection: Selection) -> Spec:
    """Vocabulary by label distribution, a speedup in each cell that can hold it.

    The parameter `reach` bounds the colours.
    """
    cell = {
        "x": {
            "field": "n_classes",
            "type": "ordinal",
            "axis": {
                "title": "vocabulary size",
                "format": ",",
                "labelAngle": 0,
                "labelOverlap": "greedy",
                "domain": False,
                "ticks": False,
            },
        },
        "y": {
            "field": "labels_name",
            "type": "ordinal",
            "sort": order,
            "axis": {"title": None, "domain": False, "ticks": False},
        },
    }
    colour = {
        "field": "log2",
        "type": "quantitative",
        "scale": {
            "scheme": "purpleorange",
            "reverse": True,
            "domainMin": {"expr": "-reach"},
            "domainMax": {"expr": "reach"},
            "domainMid": 0,
        },
        "legend": {
            "title": "speedup",
            "labelExpr": "format(pow(2, datum.value), '.2~r') + '×'",
            "orient": "right",
            "gradientLength": min(140, 30 * len(order)),
        },
    }
    deep = {"test": "abs(datum.log2) > 0.62 * reach", "value": "#ffffff"}
    layers: list[Spec] = [
        {
            "mark": {"type": "rect", "cursor": "pointer"},
            "encoding": {
                **cell,
                "color": colour,
                "description": {"field": "describe", "type": "nominal"},
                "tooltip": {"field": "describe", "type": "nominal"},
            },
        },
        {
            "mark": {
                "type": "text",
                "aria": False,
                "fontSize": 13,
                "tooltip": None,
                "opacity": {"expr": f"width / {n_sizes} < 44 ? 0 : 1"},
            },
            "encoding": {**cell, "text": {"field": "text"}, "color": {"condition": deep, "value": "#101114"}},
        },
    ]
    spec = _frame(
        selection, layers, "Speedup by vocabulary size and label distribution, a value in each cell."
    )
    spec["params"].append({"name": "reach", "value": 1})
    spec["height"] = 60 + 38 * len(order)
    return spec


def strip(points: pd.DataFrame) -> Spec:
    """Errors in units of their budgets on a logarithmic axis, a row per implementation and dtype."""
    rows = list(dict.fromkeys(points["row"]))
    x = {
        "field": "drawn",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False, "padding": 12},
        "axis": {"title": "error / budget", "format": "~e", "tickCount": 6},
    }
    return {
        "$schema": _SCHEMA,
        "description": "Errors in units of their budgets, a row per implementation and data type.",
        "width": "container",
        "height": 90 + 44 * len(rows),
        "autosize": {"type": "fit", "contains": "padding"},
        "data": {"name": "parity"},
        "layer": [
            {
                "data": {"values": [{}]},
                "mark": {"type": "rule", "style": "even", "aria": False},
                "encoding": {
                    "x": {"datum": 1, "type": "quantitative", "scale": x["scale"], "axis": x["axis"]}
                },
            },
            {
                "mark": {"type": "point", "filled": True, "size": 46, "opacity": 0.55, "cursor": "pointer"},
                "encoding": {
                    "x": x,
                    "y": {
                        "field": "row",
                        "type": "nominal",
                        "sort": rows,
                        "axis": {"title": None, "grid": True},
                    },
                    "yOffset": {"field": "against", "type": "nominal"},
                    "color": {
                        "field": "against",
                        "type": "nominal",
                        "legend": {"title": "against", "orient": "top"},
                    },
                    "shape": {"field": "against", "type": "nominal"},
                    "description": {"field": "describe", "type": "nominal"},
                    "tooltip": {"field": "describe", "type": "nominal"},
                },
            },
        ],
    }
