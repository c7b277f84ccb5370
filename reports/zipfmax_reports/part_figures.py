"""The static figures of head and tails: where labels fall, where the time goes, and their rooflines."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zipfmax_reports.panels import TASK_TITLES, colour_of, legend, plain_ticks, series, task_panels
from zipfmax_reports.style import LIGHT, Theme, count, in_colours
from zipfmax_reports.tables import label_order, tasks

OTHER = "other"
"""What is left of a step's time beside head and tails."""


@in_colours
def occupancy(rows: pd.DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """Shares of the labels in head and tails, a bar per label distribution, a panel per vocabulary."""
    sizes = sorted(rows["n_classes"].unique())
    labels = label_order(rows)[::-1]
    figure = Figure(figsize=(3.4 * len(sizes) + 1.2, 1.4 + 0.34 * len(labels)), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, classes in zip(panels, sizes, strict=True):
        first = rows[rows["n_classes"] == classes].drop_duplicates("labels_name").set_index("labels_name")
        shares = pd.DataFrame(first["occupancy"].to_dict()).reindex(columns=labels)
        left = pd.Series(0.0, index=labels)
        for part, values in shares.iterrows():
            position = int(str(part))
            name = "head" if position == 0 else f"tail {position}"
            _stack(axes, labels, values, left, colour_of(theme, position), name, theme)
            left = left + values.fillna(0.0)
        axes.set_title(f"{count(classes)} classes")
        axes.set_xlabel("share of labels, %")
        axes.grid(visible=False)
    legend(figure, [("", axes) for axes in panels], "cluster")
    return figure


@in_colours
def roofline(rows: pd.DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """FLOPs a second against FLOPs a byte of each cell's products: measured, and at the measured limit.

    `rows` has `intensity`, `flops_per_s` and `limit_flops_per_s`.
    """
    return _roofline(rows, "impl", "case", ("implementation", "FLOPs per byte of the products"), theme)


@in_colours
def time_split(parts: pd.DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """Shares of a step's time in head, tails and the rest: a bar for each cell, panels for each task.

    `parts` has a row for each part of each cell, with its `share`. Where the rest is negative the shares are
    of the parts' sum.
    """
    names, sizes = tasks(parts), sorted(parts["n_classes"].unique())
    labels, order = label_order(parts)[::-1], list(dict.fromkeys(parts["part"]))
    height = 0.9 + (0.6 + 0.34 * len(labels)) * len(names)
    figure = Figure(figsize=(3.4 * len(sizes) + 1.2, height), layout="constrained")
    grid = figure.subplots(len(names), len(sizes), sharey=True, sharex=True, squeeze=False)
    for row, task in zip(grid, names, strict=True):
        for axes, classes in zip(row, sizes, strict=True):
            here = parts[(parts["task"] == task) & (parts["n_classes"] == classes)]
            shares = here.pivot_table(index="labels_name", columns="part", values="share").reindex(labels)
            shares = shares.clip(lower=0)
            shares = shares.div(shares.sum(axis="columns").clip(lower=1), axis="index")
            left = pd.Series(0.0, index=labels)
            for position, name in enumerate(order):
                width = shares[name].fillna(0) if name in shares else 0.0 * left
                colour = theme.muted if name == OTHER else colour_of(theme, position)
                _stack(axes, labels, width, left, colour, name, theme)
                left = left + width
            axes.set_title(f"{TASK_TITLES.get(task, task).split(' (')[0]}, {count(classes)} classes")
            axes.grid(visible=False)
        for axes in grid[-1]:
            axes.set_xlabel("share of the step's time, %")
    legend(figure, [("", axes) for axes in grid.flat], "part")
    return figure


@in_colours
def part_roofline(parts: pd.DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """FLOPs a second against FLOPs a byte of head and tails apart: measured, and of their bare products."""
    return _roofline(parts, "part", None, ("part", "FLOPs per byte of the part's products"), theme)


def _roofline(
    rows: pd.DataFrame, series_of: str, limit_once: str | None, titles: tuple[str, str], theme: Theme
) -> Figure:
    """A series for each value of `series_of`, and the limit: once for each value of `limit_once`."""
    legend_title, x_title = titles
    figure, panels = task_panels(rows, theme)
    panels[0][1].set_ylabel("GFLOP/s")
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, name in enumerate(dict.fromkeys(rows[series_of])):
            points = here[here[series_of] == name]
            look = {**series(theme, position, name), "linestyle": "none", "alpha": 0.8}
            axes.plot(points["intensity"], points["flops_per_s"] / 1e9, **look)
        limit = here if limit_once is None else here.drop_duplicates(limit_once)
        axes.plot(
            limit["intensity"],
            limit["limit_flops_per_s"] / 1e9,
            marker="_",
            markersize=14,
            markeredgewidth=2,
            linestyle="none",
            color=theme.ink,
            label="the limit, measured",
        )
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        axes.set_xlabel(x_title)
        axes.grid(visible=True, which="major", axis="both")
    legend(figure, panels, legend_title)
    return figure


def _stack(
    axes: Axes, labels: Any, shares: pd.Series, left: pd.Series, colour: str, name: str, theme: Theme
) -> None:
    """One part of every label's bar, from `left`, with its percentage where there is space.

    `labels` are text; Matplotlib takes them for places, which its types do not know.
    """
    axes.barh(labels, 100 * shares, left=100 * left, color=colour, edgecolor=theme.surface, label=name)
    for label, value, start in zip(labels, shares, left, strict=True):
        if value > 0.12:
            middle = 100 * (start + value / 2)
            axes.text(middle, label, f"{100 * value:.0f}", color=theme.surface, ha="center", va="center")
