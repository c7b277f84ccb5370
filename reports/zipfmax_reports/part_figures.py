"""The descriptions of the figures of head and tails: where labels fall, where time goes, and rooflines."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from zipfmax_reports.figure import Axis, Figure, Look, Marks, Panels, Series
from zipfmax_reports.figures import TASK_TITLES, by_task
from zipfmax_reports.style import count
from zipfmax_reports.tables import label_order, tasks

OTHER = "other"
"""What is left of a step's time beside head and tails."""

LIMIT = "the limit, measured"

_WRITTEN = 12
"""The least percentage whose number has space in its bar."""


def occupancy(rows: pd.DataFrame) -> Figure:
    """Shares of the labels in head and tails, a bar per label distribution, a panel per vocabulary."""
    rows = rows.drop_duplicates(["n_classes", "labels_name"])
    rows = rows.assign(percent=rows["occupancy"].map(lambda shares: [100 * share for share in shares]))
    rows = rows.assign(part=rows["percent"].map(lambda shares: _clusters(len(shares))))
    titles = {classes: f"{count(classes)} classes" for classes in sorted(rows["n_classes"].unique())}
    return _stacks(
        rows.explode(["percent", "part"], ignore_index=True),
        "Shares of the labels in head and tails.",
        Panels("n_classes", titles),
        Series("part", tuple(_clusters(int(rows["occupancy"].map(len).max()))), "cluster"),
        "share of labels, %",
    )


def time_split(parts: pd.DataFrame) -> Figure:
    """Shares of a step's time in head, tails and the rest: a bar for each cell, panels for each task.

    `parts` has a row for each part of each cell, with its `share`. Where the rest is negative the shares are
    of the parts' sum.
    """
    share = parts["share"].clip(lower=0)
    whole = share.groupby(parts["case"]).transform("sum").clip(lower=1)
    sizes = sorted(parts["n_classes"].unique())
    titles = {
        (task, classes): f"{TASK_TITLES.get(task, task).split(' (')[0]}, {count(classes)} classes"
        for task in tasks(parts)
        for classes in sizes
    }
    order = tuple(dict.fromkeys(parts["part"]))
    return _stacks(
        parts.assign(
            percent=100 * share / whole,
            panel=pd.Series(zip(parts["task"], parts["n_classes"], strict=True), parts.index),
        ),
        "Shares of a step's time in head, tails and the rest.",
        Panels("panel", titles, across=len(sizes)),
        Series("part", order, "part", {OTHER: Look("muted", "circle")}),
        "share of the step's time, %",
    )


def _stacks(rows: pd.DataFrame, summary: str, panels: Panels, series: Series, x_title: str) -> Figure:
    """Stacked bars of percentages, a bar for each label distribution."""
    labels = label_order(rows)
    written = rows["percent"].map(lambda percent: f"{percent:.0f}" if percent > _WRITTEN else "")
    down = len(panels.titles) // (panels.across or len(panels.titles))
    return Figure(
        summary,
        rows.assign(written=written),
        x=Axis("percent", x_title),
        y=Axis("labels_name", scale="category", ticks={name: name for name in labels}),
        marks=(Marks("bars", text="written"),),
        series=series,
        panels=panels,
        size=(3.4 + 1.2 / len(panels.titles), 0.6 + 0.34 * len(labels) + 0.9 / down),
    )


def _clusters(number: int) -> list[str]:
    return ["head", *(f"tail {tail}" for tail in range(1, number))]


def roofline(rows: pd.DataFrame, series: str = "impl", title: str = "implementation") -> Figure:
    """FLOPs a second against FLOPs a byte of products: measured, and at the measured limit.

    `rows` has `intensity`, `flops_per_s`, `limit_flops_per_s` and the column `series`, whose title in the
    legend is `title`. The limit of one product is drawn once.
    """
    measured = rows.assign(name=rows[series], gflops_per_s=rows["flops_per_s"] / 1e9)
    limits = rows.assign(name=LIMIT, gflops_per_s=rows["limit_flops_per_s"] / 1e9)
    limits = limits.drop_duplicates(["task", "intensity", "gflops_per_s"])
    names: Sequence[str] = list(dict.fromkeys(rows[series]))
    return Figure(
        "Operations a second against arithmetic intensity.",
        pd.concat([measured, limits], ignore_index=True),
        x=Axis("intensity", "FLOPs per byte of the products", "log", grid=True),
        y=Axis("gflops_per_s", "GFLOP/s", "log", grid=True),
        marks=(Marks("points", opacity=0.8),),
        series=Series("name", (*names, LIMIT), title, {LIMIT: Look("ink", "dash", 14.0)}),
        panels=by_task(rows),
    )
