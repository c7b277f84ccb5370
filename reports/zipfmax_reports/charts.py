"""The interactive charts, as Vega-Lite specifications, and the data and controls that they share.

Why Vega-Lite, and not a partial bundle of Plotly. It draws SVG in which every mark carries a text for
screen readers and its datum, so that focus, hover and tests read the same values. A chart is data, a
specification with parameters, so the controls set parameters and no drawing code is written by hand. Its
expressions run in its own interpreter, so the page's content security policy can forbid `eval`. With its
compiler it is 830 kB, below Plotly's cartesian bundle, whose points can be reached by neither keyboard nor
screen reader. The files under `vendor/` are the published ones.
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pandas as pd

from zipfmax_reports import figures, interactive, tables
from zipfmax_reports.figure import PANEL, Axis, Figure, Marks, Series
from zipfmax_reports.part_figures import OTHER
from zipfmax_reports.part_pictures import HOW_SPLIT
from zipfmax_reports.parts import parts_of, timed_parts
from zipfmax_reports.reproduction import sweep_command
from zipfmax_reports.runs import Run
from zipfmax_reports.style import (
    DARK,
    LIGHT,
    amount,
    count,
    factor,
    percent,
    seconds,
    size,
)
from zipfmax_reports.summary import TASK_WORDS, name_of

SCRIPTS = ("vega.min.js", "vega-lite.min.js", "vega-embed.min.js")

_MOST_SAMPLES = 60
"""Samples of one implementation in one cell that its strip draws; the run directory holds all."""

_PAGE_SAMPLES = 120_000
"""Samples that a page holds, beyond the fewest a strip."""

_FEWEST_SAMPLES = 9

# Control -> (label, column, always shown).
_CONTROLS = {
    "task": ("Task", "task", True),
    "dtype": ("Data type", "dtype", True),
    "device": ("Device", "device", True),
    "batch": ("Batch", "batch_size", True),
    "width": ("Width", "in_features", True),
    "subject": ("Implementation", "impl", True),
    "baseline": ("Compared with", "baseline", True),
    "div": ("div_value", "div_value", False),
    "bias": ("Head bias", "head_bias", False),
    "partition": ("Cutoffs", "partition", False),
    "hidden": ("Hidden states", "hidden", False),
    "logits": ("Logits' standard deviation", "logits", False),
    "seed": ("Seed", "seed", False),
}


_DERIVED = {"skew": ["place", "real", "synthetic", "classes"], "heat": ["log2", "text"]}
"""Columns that the charts' descriptions add to the ratios."""


def payload(run: Run, table: pd.DataFrame) -> dict[str, Any]:
    """What the page's script reads: charts, their data, controls, and a configuration per scheme."""
    data: dict[str, Any] = {
        "how_split": HOW_SPLIT,
    }
    charts: dict[str, tuple[Figure, dict[str, Any]]] = _of_a_cell()
    ratios = tables.all_ratios(table) if not table.empty else pd.DataFrame()
    if not ratios.empty:
        steered = {
            "vocabulary": figures.speedup_by_vocabulary(ratios),
            "skew": figures.speedup_by_skew(ratios),
            "heat": figures.speedup_heat_map(ratios),
        }
        points = _points(ratios, steered)
        data |= {
            "points": _split(points),
            "controls": controls(table, ratios),
            "cells": _cells(table),
            "missing": _missing(table),
        }
        shown = {"data": "points", "says": "describe", "selection": _selection(data["controls"])}
        charts |= {name: (figure, shown) for name, figure in steered.items()}
    if not run.parity.empty:
        rows = tables.with_used_budget(run.parity)
        if rows["used"].notna().any():
            strip = figures.parity_strip(tables.binned(rows, per_decade=10))
            data["parity"] = _split(_parity_points(strip.rows))
            charts["strip"] = strip, {"data": "parity", "says": "describe"}
    data["charts"] = {
        theme.name: {
            name: interactive.spec(figure, theme, **options) for name, (figure, options) in charts.items()
        }
        for theme in (LIGHT, DARK)
    }
    return data


def _of_a_cell() -> dict[str, tuple[Figure, dict[str, Any]]]:
    """The charts of one cell: every implementation's samples, and the split of one implementation's step."""
    samples = Figure(
        "Samples of each implementation in this cell, in milliseconds.",
        pd.DataFrame(),
        x=Axis("ms", "milliseconds", "log", grid=True),
        y=Axis("impl", scale="category"),
        marks=(Marks("ticks"),),
        series=Series("impl"),
    )
    split = Figure(
        "The step by head and tails, in milliseconds.",
        pd.DataFrame(),
        x=Axis("ms", "milliseconds"),
        y=Axis("impl", scale="category"),
        marks=(Marks("bars"),),
        series=Series("part"),
        size=(PANEL[0], 0.96),
    )
    return {"samples": (samples, {"data": "samples"}), "split": (split, {"data": "parts"})}


def packed(data: dict[str, Any]) -> str:
    """What `payload` returns as deflated JSON in base64, which the browser unpacks: a tenth of its size."""
    plain = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(plain.encode(), 9)).decode()


def scripts() -> list[str]:
    """The bundled library and the page's own script, ready to stand inline."""
    here = Path(__file__).parent
    bundled = [(here / "vendor" / name).read_text(encoding="utf-8") for name in SCRIPTS]
    # A source map would be one more file to ask for.
    bundled = [text.partition("//# sourceMappingURL")[0] for text in bundled]
    return [*bundled, (here / "templates" / "page.js").read_text(encoding="utf-8")]


def controls(table: pd.DataFrame, ratios: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """What can be chosen, with the options in order and the choice that the page opens with."""
    main = tables.main_condition(table)
    opening = {**main, "task": tables.tasks(ratios)[0], "impl": tables.subject(table)}
    opening["baseline"] = tables.baselines(table)[0]
    found = {}
    for name, (label, column, always) in _CONTROLS.items():
        if column not in ratios:
            continue
        values = ratios[column].dropna().drop_duplicates()
        values = values if values.dtype == object or values.dtype == "str" else values.sort_values()
        if len(values) < 2 and not always:
            continue
        options = [{"value": _plain(value), "label": _option(name, value)} for value in values]
        chosen = opening.get(column, values.iloc[0])
        found[name] = {"label": label, "column": column, "options": options, "selected": _plain(chosen)}
    return found


def _selection(chosen: dict[str, dict[str, Any]]) -> interactive.Selection:
    parameters = [{"name": f"chosen_{name}", "value": item["selected"]} for name, item in chosen.items()]
    conditions = [f"datum.{item['column']} === chosen_{name}" for name, item in chosen.items()]
    return interactive.Selection(parameters, " && ".join(conditions))


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's, which JSON takes."""
    return value.item() if hasattr(value, "item") else value


def _option(name: str, value: Any) -> str:
    if name == "task":
        return TASK_WORDS.get(value, str(value))
    if name == "baseline":
        return name_of(value)
    if name in ("batch", "width"):
        return count(value)
    if name == "bias":
        return "with" if value else "without"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _points(ratios: pd.DataFrame, charts: dict[str, Figure]) -> pd.DataFrame:
    """A row per ratio: the controls' columns and the axes. The script adds the words, from the cells."""
    shown = sorted({column for _, column, _ in _CONTROLS.values() if column in ratios})
    rows = ratios[[*shown, "case", "n_classes", "labels_name", "speedup", "low", "high"]].copy()
    for name, columns in _DERIVED.items():
        rows[columns] = charts[name].rows[columns]
    rows["log2"] = rows["log2"].round(3)
    intervals = ratios["low"].map(factor) + " to " + ratios["high"].map(factor)
    rows["interval"] = intervals.where(ratios["low"].notna(), None)
    for column in ("speedup", "low", "high"):
        rows[column] = rows[column].map("{:.4g}".format, na_action="ignore").astype(float)
    return rows


def _cells(table: pd.DataFrame) -> dict[str, Any]:
    """By case: what a drill-down shows of every implementation."""
    found: dict[str, Any] = {}
    most = min(_MOST_SAMPLES, max(_FEWEST_SAMPLES, _PAGE_SAMPLES // len(table)))
    for case, rows in table.groupby("case", sort=False):
        names = list(dict.fromkeys(rows["impl"]))
        found[str(case)] = {
            "command": sweep_command(rows, names),
            "parts": _parts(rows[rows["occupancy"].notna()]),
            "cutoffs": ", ".join(map(count, rows["cutoffs"].iloc[0] or [])),
            "implementations": [_cell(row, most) for _, row in rows.iterrows()],
        }
    return found


def _cell(row: pd.Series, most_samples: int) -> dict[str, Any]:
    name = row["impl"] if row["exact"] else f"{row['impl']} (inexact gradients)"
    if not row["ok"]:
        return {"impl": name, "status": row["status"], "reason": row["reason"] or "no reason recorded"}
    samples = row["samples_s"] if isinstance(row["samples_s"], list) else []
    drawn = tables.evenly(sorted(samples), most_samples)
    return {
        "impl": name,
        "status": "ok",
        "median": seconds(row["median_s"]),
        "samples_ms": [float(f"{1e3 * sample:.4g}") for sample in drawn],
        "n_samples": len(samples),
        "replayed": bool(row["replayed"]),
        "split": _split_times(row),
        "limit": seconds(row["limit_s"]),
        "efficiency": percent(row["efficiency"]),
        "memory": size(row["peak_bytes"]),
        "occupancy": ", ".join(map(percent, row["occupancy"])) if isinstance(row["occupancy"], list) else "–",
    }


def _split_times(row: pd.Series) -> dict[str, Any] | None:
    """Head, tails and the rest of the step in which they were timed, and the words for them."""
    found = timed_parts(row)
    if not found:
        return None
    whole_s = float(row["parts_whole_s"])
    other_s = whole_s - sum(item.seconds for item in found)
    lines = [
        {
            "part": item.part.name,
            "rows": f"{item.part.rows:.0f}",
            "time": seconds(item.seconds),
            "of the step": percent(item.share),
            "bare products": seconds(item.limit_s),
            "limit / measured": percent(item.efficiency),
        }
        for item in found
    ]
    rest = {"part": OTHER, "rows": "", "time": seconds(other_s), "of the step": percent(other_s / whole_s)}
    return {
        "lines": [*lines, {**rest, "bare products": "–", "limit / measured": "–"}],
        "whole": seconds(whole_s),
        "passes": int(row["parts_passes"]),
        "ms": [float(f"{1e3 * time:.4g}") for time in (*(item.seconds for item in found), other_s)],
    }


def _parts(rows: pd.DataFrame) -> list[dict[str, str]]:
    """The head's and the tails' products in one cell, and their shares of the FLOPs and so of the limit."""
    found = parts_of(rows.iloc[0]) if len(rows) else []
    total = sum(part.flops for part in found)
    return [
        {
            "part": part.name,
            "rows": f"{part.rows:.0f}",
            "width": count(part.width),
            "columns": count(part.classes),
            "FLOPs": amount(part.flops),
            "share": percent(part.flops / total),
            "bytes": size(part.bytes),
            "FLOPs per byte": f"{part.intensity:.3g}",
        }
        for part in found
    ]


def _missing(table: pd.DataFrame) -> list[dict[str, Any]]:
    columns = sorted({column for _, column, _ in _CONTROLS.values() if column in table} - {"baseline"})
    rows = table[~table["ok"]]
    counted = rows.groupby([*columns, "status", "reason"], dropna=False, sort=False)["case"].nunique()
    return _records(counted.rename("cells").reset_index())


def _parity_points(rows: pd.DataFrame) -> pd.DataFrame:
    drawn = rows["drawn"].map("{:.4g}".format).astype(float)
    return rows.assign(drawn=drawn, share=rows["used"].map(percent)).drop(columns=["used", "status"])


def _split(rows: pd.DataFrame) -> dict[str, Any]:
    """Columns and rows of values, which take less space than a name beside every value."""
    found: dict[str, Any] = json.loads(rows.to_json(orient="split", index=False))
    return found


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them: what is missing becomes null."""
    records: list[dict[str, Any]] = json.loads(rows.to_json(orient="records", double_precision=10))
    return records
