"""Draws the description of a figure with Vega-Lite: its specification, in a scheme's colours.

A chart shows one panel: the page's controls choose which rows are in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from zipfmax_reports.figure import SERIES_MARKERS, Axis, Figure, Look, Marks, ReferenceLine, Series
from zipfmax_reports.style import LIGHT, MARKERS, Theme

Spec = dict[str, Any]

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_PIXELS = 96
"""Of an inch."""

_LABELS = {
    "plain": {},
    "count": {"format": ","},
    "factor": {"labelExpr": "datum.value + '×'"},
    "bytes": {"labelExpr": "format(datum.value / 1048576, ',.3~r') + ' MiB'"},
    "power": {"format": "~e"},
}
_ONCE: Spec = {"values": [{}]}


@dataclass(frozen=True)
class Selection:
    """What the page's controls choose.

    Attributes:
        parameters: a Vega-Lite parameter for each control.
        filter: the expression that keeps a row under the chosen conditions.
    """

    parameters: Sequence[Spec] = ()
    filter: str = "true"


def spec(
    figure: Figure, theme: Theme = LIGHT, *, data: str, says: str = "", selection: Selection | None = None
) -> Spec:
    """The specification of a figure.

    Args:
        figure: what to draw; its rows only say which series there are.
        theme: the scheme.
        data: the name of the data set, which the page supplies: rows with the description's columns.
        says: the column with the words of each mark, for hover, focus and screen readers.
        selection: the rows that are shown; without, all of them.
    """
    chosen = selection or Selection()
    steered = figure if selection is None else _unlimited(figure)
    names = {f"{axis}_names": _names(getattr(figure, axis)) for axis in "xy"}
    spans = [marks.span for marks in figure.marks if marks.kind == "cells"]
    return {
        "$schema": _SCHEMA,
        "description": figure.summary,
        "width": "container",
        "height": round(_PIXELS * figure.size[1]),
        "autosize": {"type": "fit", "contains": "padding"},
        "data": {"name": data},
        "config": _config(theme),
        "params": [
            *chosen.parameters,
            *({"name": name, "value": words} for name, words in names.items() if words),
            *({"name": "span", "value": list(span)} for span in spans),
        ],
        "transform": [{"filter": _filter(figure.series, chosen)}],
        "layer": [
            layer
            for part in (
                *(_rule(steered, rule, theme) for rule in figure.rules),
                *(_mark(steered, marks, says, theme) for marks in figure.marks),
            )
            for layer in part
        ],
    }


def _config(theme: Theme) -> Spec:
    """Vega's configuration in a scheme's colours."""
    return {
        "background": "transparent",
        "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif",
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
        "text": {"color": theme.muted},
    }


def _unlimited(figure: Figure) -> Figure:
    """The figure with axes that end where the chosen rows do."""
    return replace(figure, x=replace(figure.x, limits=None), y=replace(figure.y, limits=None))


def _filter(series: Series | None, chosen: Selection) -> str:
    if series is None or not series.order:
        return chosen.filter
    return f"({chosen.filter}) && indexof({json.dumps(series.order)}, datum.{series.column}) >= 0"


def _names(axis: Axis) -> dict[str, str]:
    """The words of a continuous axis's ticks, by their values as an expression writes them."""
    if axis.scale == "category" or axis.ticks is None:
        return {}
    return {f"{value:.2f}": words for value, words in axis.ticks.items()}


def _place(figure: Figure, name: str) -> Spec:
    """The encoding of an axis."""
    axis: Axis = getattr(figure, name)
    shown: Spec = {"title": axis.title.replace("\n", " ") or None, "grid": axis.grid}
    if axis.scale == "category":
        shown |= {"domain": False, "ticks": False, "labelAngle": 0, "labelOverlap": "greedy"}
        order = list(axis.ticks) if axis.ticks else None
        if axis.ticks and axis.unit == "count":
            shown["format"] = ","
        return {"field": axis.column, "type": "ordinal", "sort": order, "axis": shown}
    scale: Spec = {"nice": False, "padding": 24 if name == "x" and axis.ticks else 8, "zero": False}
    if axis.scale == "log":
        scale |= {"type": "log", "base": 2 if axis.unit in ("factor", "bytes") else 10}
        del scale["zero"]
    if axis.limits:
        scale["domain"] = list(axis.limits)
    if axis.ticks is None:
        shown |= {"tickCount": 6, **_LABELS[axis.unit]}
    else:
        labels = f"{name}_names[format(datum.value, '.2f')]"
        shown |= {"values": sorted(axis.ticks), "labelExpr": labels, "labelOverlap": "greedy"}
    return {"field": axis.column, "type": "quantitative", "scale": scale, "axis": shown}


def _told_apart(figure: Figure, theme: Theme) -> Spec:
    """The encodings of the series: colour and shape."""
    series = figure.series
    if series is None:
        return {"color": {"value": theme.colour(0)}}
    looks = [series.look(name) for name in series.order] or [Look.at(i) for i in range(len(SERIES_MARKERS))]
    domain = {"domain": list(series.order)} if series.order else {}
    legend = {
        "title": series.title or None,
        "orient": "top",
        "columns": {"expr": "max(2, floor(width / 95))"},
    }
    common = {"field": series.column, "type": "nominal", "sort": list(series.order) or None, "legend": legend}
    shapes = [MARKERS[look.marker].vega for look in looks]
    return {
        "color": {**common, "scale": {**domain, "range": [theme.colour(look.colour) for look in looks]}},
        "shape": {**common, "scale": {**domain, "range": shapes}},
    }


def _mark(figure: Figure, marks: Marks, says: str, theme: Theme) -> list[Spec]:
    """The layers of one kind of mark."""
    drawn = {"cells": _cells, "bars": _bars}.get(marks.kind, _points)(figure, marks, theme)
    kept = [{"filter": f"datum.{marks.where}"}] if marks.where else []
    for layer in drawn:
        layer["transform"] = [*kept, *layer.get("transform", ())]
        speaks = says and layer["mark"]["type"] in ("point", "rect", "bar", "tick")
        layer["mark"].setdefault("aria", bool(speaks))
        if speaks:
            layer["mark"]["cursor"] = "pointer"
            words = {"field": says, "type": "nominal"}
            layer["encoding"] |= {"description": words, "tooltip": words}
    return drawn


def _points(figure: Figure, marks: Marks, theme: Theme) -> list[Spec]:
    apart = _told_apart(figure, theme)
    colour = {name: value for name, value in apart.items() if name == "color"}
    level = figure.y.scale == "category"
    at: Spec = {"x": _place(figure, "x"), "y": _place(figure, "y")}
    moved: list[Spec] = []
    if marks.dodge and figure.series:
        if level:
            at["yOffset"] = {"field": figure.series.column, "type": "nominal"}
        else:
            order = json.dumps(figure.series.order)
            middle = (len(figure.series.order) - 1) / 2
            place = f"indexof({order}, datum.{figure.series.column}) - {middle}"
            moved = [{"calculate": f"datum.{figure.x.column} + {marks.dodge} * ({place})", "as": "dodged"}]
            at["x"] = {**at["x"], "field": "dodged"}
    layers: list[Spec] = []
    if marks.interval:
        low, high = marks.interval
        value = "x" if level else "y"
        ends = {**at, value: {**at[value], "field": low}, f"{value}2": {"field": high}}
        layers.append({"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": {**ends, **colour}})
    if marks.kind == "line":
        line = {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {**at, **colour}}
        if marks.dashed:
            scale = {"domain": [False, True], "range": [[1, 0], [3, 3]]}
            dash = {"field": marks.dashed, "type": "nominal", "legend": None, "scale": scale}
            line["encoding"]["strokeDash"] = dash
        layers.append(line)
    if marks.kind == "ticks":
        layers.append({"mark": {"type": "tick", "thickness": 2}, "encoding": {**at, **colour}})
    else:
        size = 46 if marks.opacity < 1 else 90
        point = {"type": "point", "filled": True, "size": size, "opacity": marks.opacity}
        layers.append({"mark": point, "encoding": {**at, **apart}})
    if marks.text:
        text = {"type": "text", "align": "left", "dx": 8, "dy": 14}
        layers.append({"mark": text, "encoding": {**at, "text": {"field": marks.text}}})
    return [{**layer, "transform": moved} for layer in layers]


def _bars(figure: Figure, marks: Marks, theme: Theme) -> list[Spec]:
    """Stacked in the order of the rows; their words are left to hover and to the table."""
    colour = {**_told_apart(figure, theme)["color"], "legend": {"title": None, "orient": "top"}}
    along = {**_place(figure, "x"), "stack": "zero"}
    return [
        {
            "mark": {"type": "bar", "height": {"band": 0.8}},
            "transform": [{"window": [{"op": "row_number", "as": "place"}]}],
            "encoding": {
                "x": along,
                "y": _place(figure, "y"),
                "order": {"field": "place"},
                "color": colour,
            },
        }
    ]


def _cells(figure: Figure, marks: Marks, theme: Theme) -> list[Spec]:
    """A colour and a number in each cell that can hold it; the parameter `span` bounds the colours."""
    at = {"x": _place(figure, "x"), "y": _place(figure, "y")}
    ends = {name: {"expr": f"span[{i}]"} for i, name in enumerate(("domainMin", "domainMid", "domainMax"))}
    colour = {
        "field": marks.value,
        "type": "quantitative",
        "scale": {"scheme": "purpleorange", "reverse": True, **ends},
        "legend": None,  # the numbers stand in the cells; a fitted scale would show colours that no cell has
    }
    deep = {"test": f"abs(datum.{marks.value} - span[1]) > 0.62 * (span[2] - span[1])", "value": "#ffffff"}
    shown = {"expr": f"width / {len(figure.x.ticks or ())} < 44 ? 0 : 1"}
    text = {"type": "text", "fontSize": 13, "tooltip": None, "opacity": shown}
    ink = {"condition": deep, "value": "#101114"}
    return [
        {"mark": {"type": "rect"}, "encoding": {**at, "color": colour}},
        {"mark": text, "encoding": {**at, "text": {"field": marks.text}, "color": ink}},
    ]


def _rule(figure: Figure, rule: ReferenceLine, theme: Theme) -> list[Spec]:
    dash = {} if rule.quiet else {"strokeDash": [5, 4]}
    colour = theme.grid if rule.quiet else theme.ink
    mark = {"type": "rule", "aria": False, "strokeWidth": 1.2, "color": colour, **dash}
    if rule.axis == "equal":
        low, high = figure.x.limits or (0.0, 1.0)
        ends = {"values": [{figure.x.column: end, figure.y.column: end} for end in (low, high)]}
        places = {"x": _place(figure, "x"), "y": _place(figure, "y")}
        return [{"data": ends, "mark": {**mark, "type": "line"}, "encoding": places}]
    at = {key: value for key, value in _place(figure, rule.axis).items() if key != "field"}
    at["datum"] = rule.at
    drawn: list[Spec] = [{"data": _ONCE, "mark": mark, "encoding": {rule.axis: at}}]
    if rule.label and rule.axis == "y":
        text = {
            "type": "text",
            "text": rule.label,
            "aria": False,
            "align": "right",
            "baseline": "bottom",
            "dy": -3,
        }
        drawn.append({"data": _ONCE, "mark": text, "encoding": {"y": at, "x": {"value": "width"}}})
    elif rule.label:
        text = {
            "type": "text",
            "text": rule.label,
            "aria": False,
            "align": "left",
            "baseline": "bottom",
            "dx": 3,
        }
        drawn.append({"data": _ONCE, "mark": text, "encoding": {"x": at, "y": {"value": 0}}})
    return drawn
