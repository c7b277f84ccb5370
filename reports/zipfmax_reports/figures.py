"""The descriptions of the figures of a run, from the page's tables: a panel for each task.

Each function takes rows that stand under one condition; nothing is computed here beyond what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from zipfmax_reports.figure import PANEL, Axis, Figure, Look, Marks, Panels, ReferenceLine, Series
from zipfmax_reports.style import count, factor
from zipfmax_reports.tables import evenly, label_order, places, tasks

MOST_SERIES = 7
"""Series that a reader tells apart, and that a theme has colours for."""

TASK_TITLES = {
    "train": "Training step (forward + backward)",
    "forward": "Forward",
    "log_prob": "All log-probabilities",
    "predict": "Prediction",
    "topk": "Ten most probable classes",
}

_LEAST_USED, _MOST_USED = 1e-4, 1e6
"""Ends of the strip's axis: what is right by four digits more, or wrong by more than six, needs no space."""

_EVEN = ReferenceLine("y", 1.0, "break-even")
_INTERVAL = ("low", "high")


def speedup_by_vocabulary(rows: pd.DataFrame, baseline: str = "") -> Figure:
    """Speedup against vocabulary size, a line per label distribution; real frequencies are dashed."""
    return Figure(
        "Speedup against vocabulary size, a line per label distribution.",
        rows.assign(real=rows["skew"].isna()),
        x=_sizes(rows, "n_classes"),
        y=_speedups(rows, baseline),
        marks=(Marks("line", interval=_INTERVAL, dashed="real"),),
        series=_series("labels_name", label_order(rows), "labels"),
        rules=(_EVEN,),
        panels=by_task(rows),
    )


def speedup_by_skew(rows: pd.DataFrame, baseline: str = "") -> Figure:
    """Speedup against Zipf's exponent, a line per vocabulary; real frequencies stand beside, by name.

    Vocabularies stand side by side at a list of frequencies, or their intervals would hide each other.
    """
    at, real = places(rows), rows["skew"].isna()
    exponents = rows["skew"].dropna()
    ticks = {place: f"{place:g}" for place in exponents} | {
        at[name]: name for name in rows["labels_name"][real]
    }
    divided = real.any() and len(exponents)
    return Figure(
        "Speedup against Zipf skew, a line per vocabulary.",
        rows.assign(place=rows["labels_name"].map(at), real=real, synthetic=~real, classes=_classes(rows)),
        x=Axis(
            "place",
            "Zipf exponent of the labels" + (" | real frequencies" if real.any() else ""),
            ticks=ticks,
        ),
        y=_speedups(rows, baseline),
        marks=(
            Marks("line", where="synthetic", interval=_INTERVAL),
            Marks("points", where="real", interval=_INTERVAL, dodge=0.07),
        ),
        series=_series("classes", _in_size_order(rows), "vocabulary"),
        rules=(_EVEN, *([ReferenceLine("x", exponents.max() + 0.2, quiet=True)] if divided else [])),
        panels=by_task(rows),
    )


def speedup_heat_map(rows: pd.DataFrame) -> Figure:
    """Speedup over vocabulary x labels, the value in each cell; orange is slower, purple is faster.

    The colours are fitted to the values: where all are faster, the palest purple is the least of them.
    """
    sizes, labels = _ticks(rows, "n_classes"), label_order(rows)
    logs = rows["speedup"].map(math.log2)
    return Figure(
        "Speedup by vocabulary size and label distribution, a value in each cell.",
        rows.assign(log2=logs, text=rows["speedup"].map(factor)),
        x=Axis("n_classes", "vocabulary size", "category", "count", sizes),
        y=Axis("labels_name", scale="category", ticks={name: name for name in labels}),
        marks=(Marks("cells", value="log2", text="text", span=fitted(logs)),),
        panels=by_task(rows),
        size=(1.6 + 0.95 * len(sizes), 1.3 + 0.42 * len(labels)),
    )


def fitted(logs: pd.Series) -> tuple[float, float, float]:
    """The span of the colours of some base-2 logarithms: the middle is 0, or below all or above all of them."""
    low, high = float(logs.min()), float(logs.max())
    margin = max(high - low, 0.5) / 4
    middle = max(0.0, low - margin) if low > 0 else min(0.0, high + margin)
    reach = max(high - middle, middle - low, 0.5)
    return middle - reach, middle, middle + reach


def speedup_by_head_share(rows: pd.DataFrame, baseline: str) -> Figure:
    """Speedup against the share of labels that the shortlist takes; stars are real frequencies."""
    rows = rows[rows["occupancy"].map(has_items)]
    sizes = _in_size_order(rows)
    names = _classes(rows)
    stars = {f"{name}, real": Look(position, "star", 11.0) for position, name in enumerate(sizes)}
    return Figure(
        "Speedup against the share of labels in the shortlist.",
        rows.assign(
            head_percent=rows["occupancy"].map(lambda shares: 100 * shares[0]),
            vocabulary=names.where(rows["skew"].notna(), names + ", real"),
        ),
        x=Axis("head_percent", "labels that fall in the shortlist, %"),
        y=_speedups(rows, baseline),
        marks=(Marks("points"),),
        series=Series("vocabulary", (*sizes, *stars), "vocabulary", stars),
        rules=(_EVEN,),
        panels=by_task(rows),
    )


def efficiency(rows: pd.DataFrame) -> Figure:
    """Limit over measured time against vocabulary size, a line per implementation: 1 is the bare products."""
    spread = rows.groupby(["task", "impl", "n_classes"], sort=False)["efficiency"]
    return Figure(
        "Limit over measured time against vocabulary size, a line per implementation.",
        spread.agg(["median", "min", "max"]).reset_index(),
        x=_sizes(rows, "n_classes"),
        y=Axis(
            "median", "limit / measured", limits=(0, 1.06 * max(1.0, rows["efficiency"].max())), grid=True
        ),
        marks=(Marks("line", interval=("min", "max")),),
        series=_series("impl", list(dict.fromkeys(rows["impl"])), "implementation"),
        rules=(ReferenceLine("y"),),
        panels=by_task(rows),
    )


def peak_memory(rows: pd.DataFrame, axis: str) -> Figure:
    """Peak bytes of temporaries against `axis` ("n_classes" or "batch_size"), a line per implementation."""
    middle = rows.groupby(["task", "impl", axis], sort=False)["peak_bytes"].median().reset_index()
    return Figure(
        "Peak temporary memory, a line per implementation.",
        middle,
        x=_sizes(rows, axis),
        y=Axis("peak_bytes", "peak temporary memory", "log", "bytes", grid=True),
        marks=(Marks("line"),),
        series=_series("impl", list(dict.fromkeys(rows["impl"])), "implementation"),
        panels=by_task(rows),
    )


def parity_strip(rows: pd.DataFrame) -> Figure:
    """Every comparison's error in units of its budget on a log axis, a row per implementation and dtype.

    `rows` is what `tables.binned` returns.
    """
    names = list(dict.fromkeys(rows["impl"] + ", " + rows["dtype"]))
    against = tuple(dict.fromkeys(rows["against"]))
    smallest = rows.loc[rows["used"] > 0, "used"].min()
    floor = max(_LEAST_USED, 10 ** math.floor(math.log10(smallest)) / 10) if smallest == smallest else 1e-3
    return Figure(
        "Errors in units of their budgets, a row per implementation and data type.",
        rows.assign(row=rows["impl"] + ", " + rows["dtype"], drawn=rows["used"].clip(floor, _MOST_USED)),
        x=Axis(
            "drawn",
            f"error / budget (smaller errors, and none, are drawn at {floor:.0e})",
            "log",
            "power",
            grid=True,
        ),
        y=Axis("row", scale="category", ticks={name: name for name in names}),
        marks=(Marks("points", dodge=0.18, opacity=0.45),),
        series=Series(
            "against",
            against,
            "against",
            {name: replace(Look.at(i), size=4.0) for i, name in enumerate(against)},
        ),
        rules=(ReferenceLine("x", 1.0, "budget"),),
        size=(8.2, 1.3 + 0.42 * len(names)),
    )


def predicted_against_measured(rows: pd.DataFrame) -> Figure:
    """The planner's predicted milliseconds against the measured ones; on the dashed line they are equal."""
    rows = rows.assign(measured_ms=1e3 * rows["median_s"], predicted_ms=1e3 * rows["predicted_s"])
    both = pd.concat([rows["measured_ms"], rows["predicted_ms"]])
    ends = (0.8 * float(both.min()), 1.25 * float(both.max()))
    return Figure(
        "Predicted against measured time on logarithmic axes.",
        rows.assign(vocabulary=_classes(rows)),
        x=Axis("measured_ms", "measured, ms", "log", limits=ends, grid=True),
        y=Axis("predicted_ms", "predicted, ms", "log", limits=ends, grid=True),
        marks=(Marks("points"),),
        series=_series("vocabulary", _in_size_order(rows), "vocabulary"),
        rules=(ReferenceLine("equal"),),
        panels=by_task(rows),
        size=(4.4, 4.2),
    )


def runs_beside(rows: pd.DataFrame, baseline: str) -> Figure:
    """Speedups of the same cells in several runs: a row per cell, a mark and its interval per run."""
    rows = rows.assign(cell=rows["n_classes"].map(count) + " classes, " + rows["labels_name"])
    names = list(dict.fromkeys(rows.sort_values(["n_classes", "skew"], na_position="last")["cell"]))
    return Figure(
        "Speedups of the same cells in each run, side by side.",
        rows,
        x=Axis("speedup", f"speedup over {baseline}", "log", "factor", grid=True),
        y=Axis("cell", scale="category", ticks={name: name for name in names}),
        marks=(Marks("points", interval=_INTERVAL, dodge=0.24),),
        series=_series("run", list(dict.fromkeys(rows["run"])), "run"),
        rules=(ReferenceLine("x"),),
        panels=by_task(rows),
        size=(PANEL[0], 1.5 + 0.32 * len(names)),
    )


def by_task(rows: pd.DataFrame) -> Panels:
    """A panel for each task, the shared axes in one line."""
    return Panels("task", {task: TASK_TITLES.get(task, task) for task in tasks(rows)})


def has_items(value: object) -> bool:
    """Whether a record's field is a list with something in it."""
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def _sizes(rows: pd.DataFrame, column: str) -> Axis:
    title = "vocabulary size" if column == "n_classes" else "batch size"
    return Axis(column, title, "log", "count", _ticks(rows, column))


def _ticks(rows: pd.DataFrame, column: str) -> dict[int, str]:
    return {int(value): count(value) for value in sorted(rows[column].unique())}


def _speedups(rows: pd.DataFrame, baseline: str) -> Axis:
    """In powers of two, with space around the intervals and for break-even."""
    reach = pd.concat([rows["speedup"], rows["low"], rows["high"]]).dropna()
    limits = min(float(reach.min()), 0.9) / 1.15, max(float(reach.max()), 1.1) * 1.15
    title = f"speedup over\n{baseline}" if baseline else "speedup"
    return Axis("speedup", title, "log", "factor", limits=limits, grid=True)


def _series(column: str, known: Sequence[Any], title: str) -> Series:
    """As many of the known series as can be told apart; the title says how many of how many where some are left."""
    drawn = evenly(known, MOST_SERIES)
    return Series(
        column, tuple(drawn), title if len(drawn) == len(known) else f"{title} ({len(drawn)} of {len(known)})"
    )


def _classes(rows: pd.DataFrame) -> pd.Series:
    return rows["n_classes"].map(count) + " classes"


def _in_size_order(rows: pd.DataFrame) -> list[str]:
    return [f"{count(classes)} classes" for classes in sorted(rows["n_classes"].unique())]
