"""Several runs of one machine over time: every cell of the subject, run by run, and where it stepped.

A step is a change of the speedup from one run to the next that both intervals exclude and that is above 5 %.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pandas as pd

from zipfmax_reports import figures, tables
from zipfmax_reports.elements import Format, Picture, Table, text
from zipfmax_reports.figure import PANEL, Axis, Figure, Marks, ReferenceLine
from zipfmax_reports.runs import Run
from zipfmax_reports.style import count, factor
from zipfmax_reports.summary import name_of

FEWEST = 3
"""Runs that make a history; two are a comparison."""

LEAST_STEP = 0.05
_TICKS = (0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 5.0, 10.0)


def in_order(runs: Sequence[Run], names: Sequence[str]) -> list[tuple[str, Run]]:
    """Name and run from the oldest to the newest; a name has the commit where that is known."""
    dated = sorted(zip(names, runs, strict=True), key=lambda pair: str(pair[1].meta.get("created") or ""))
    commits = [str(run.meta.get("commit") or "")[:8] for _, run in dated]
    known = all(commits) and len(set(commits)) == len(commits)
    return [(commit if known else name, run) for commit, (name, run) in zip(commits, dated, strict=True)]


def steps(rows: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """The steps of every cell: `case`, the runs before and after, and the speedups with their intervals.

    Args:
        rows: `tables.ratios` of every run, with its name in `run`.
        order: the runs from the oldest to the newest.
    """
    found: list[dict[Any, Any]] = []
    place = {name: position for position, name in enumerate(order)}
    for _, cell in rows.assign(at=rows["run"].map(place)).sort_values("at").groupby("case", sort=False):
        lines = cell.to_dict("records")
        for then, now in itertools.pairwise(lines):
            apart = now["low"] > then["high"] or now["high"] < then["low"]
            change = now["speedup"] / then["speedup"]
            if apart and max(change, 1 / change) > 1 + LEAST_STEP:
                before = {f"{name}_before": then[name] for name in ("run", "speedup")}
                found.append({**dict(now), **before, "change": change})
    return pd.DataFrame(found)


def history(cells: Sequence[tuple[str, pd.DataFrame]], name: str, condition: pd.Series) -> list[Picture]:
    """A picture for each baseline: every cell of `name` over the runs, its steps marked and listed.

    Args:
        cells: name and `tables.cells` of every run, from the oldest to the newest.
        name: the implementation.
        condition: under which cells are drawn.
    """
    order = [run for run, _ in cells]
    pictures = []
    for baseline in tables.baselines(cells[0][1]):
        rows = tables.ratios_of_runs(cells, baseline, name, condition)
        rows = rows[rows.groupby("case")["run"].transform("nunique") > 1]
        if not rows.empty:
            pictures.append(_picture(rows, order, name, baseline))
    return pictures


def _picture(rows: pd.DataFrame, order: Sequence[str], name: str, baseline: str) -> Picture:
    found, other = steps(rows, order), name_of(baseline)
    number = f"{count(len(found))} step{'s' if len(found) != 1 else ''}" if len(found) else "No step"
    caption = (
        f"{name} over {other}, {count(rows['case'].nunique())} cells in {count(len(order))} runs. {number}."
    )
    columns: dict[str, tuple[str, Format]] = {
        "task": ("task", text),
        "n_classes": ("classes", count),
        "labels_name": ("labels", text),
        "run_before": ("from", text),
        "run": ("to", text),
        "speedup_before": ("speedup before", factor),
        "speedup": ("after", factor),
        "change": ("change", factor),
    }
    shown = found if len(found) else rows.iloc[:0].reindex(columns=list(columns))
    return Picture(
        name=f"history-{''.join(letter if letter.isalnum() else '-' for letter in baseline)}",
        title=f"Speedup over {other}, over the runs",
        reading="A line for each cell, relative to its first run, from the oldest run to the newest. A star marks a "
        f"step: a change from one run to the next of more than {LEAST_STEP:.0%}, in intervals that do not meet.",
        description=f"Lines of relative speedup over {count(len(order))} runs. {number}.",
        caption=caption,
        figure=drawn(rows, found, order),
        table=Table.of(f"The steps. {caption}", shown, columns),
    )


def drawn(rows: pd.DataFrame, found: pd.DataFrame, order: Sequence[str]) -> Figure:
    """Speedup relative to a cell's first run, a line a cell and a panel a task; steps are points."""
    place = {name: position for position, name in enumerate(order)}
    rows = rows.assign(at=rows["run"].map(place)).sort_values("at", kind="stable")
    rows["relative"] = rows["speedup"] / rows.groupby("case")["speedup"].transform("first")
    low, high = min(float(rows["relative"].min()), 0.9), max(float(rows["relative"].max()), 1.1)
    ticks = [value for value in _TICKS if low <= value <= high]
    stepped = {(line["case"], line["run"]) for line in found.to_dict("records")}
    rows["step"] = [(case, run) in stepped for case, run in zip(rows["case"], rows["run"], strict=True)]
    return Figure(
        "Speedup relative to the first run, a line per cell.",
        rows,
        x=Axis("at", "run", ticks={float(position): name for name, position in place.items()}),
        y=Axis(
            "relative",
            "speedup, relative to the first run",
            "log",
            ticks={value: factor(value) for value in ticks},
            limits=(low / 1.03, high * 1.03),
        ),
        marks=(Marks("line", opacity=0.45, by="case"), Marks("stars", where="step")),
        rules=(ReferenceLine("y", 1.0, "first run"),),
        panels=figures.by_task(rows),
        size=PANEL,
    )
