"""The static figures of head and tails: where labels fall, where the time goes, and their rooflines."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from zipfmax.reports.panels import TASK_TITLES, colour_of, legend, plain_ticks, series, task_panels
from zipfmax.reports.style import LIGHT, Theme, count, in_colours
from zipfmax.reports.tables import label_order, tasks

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
            colour = colour_of(theme, position)
            axes.barh(
                labels, 100 * values, left=100 * left, color=colour, edgecolor=theme.surface, label=name
            )
            for label, value, start in zip(labels, values, left, strict=True):
                if value > 0.12:
                    middle = 100 * (start + value / 2)
                    axes.text(
                        middle, label, f"{100 * value:.0f}", color=theme.surface, ha="center", va="center"
                    )
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
    figure, panels = task_panels(rows, theme)
    panels[0][1].set_ylabel("GFLOP/s")
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, name in enumerate(dict.fromkeys(rows["impl"])):
            points = here[here["impl"] == name]
            look = {**series(theme, position, name), "linestyle": "none", "alpha": 0.8}
            axes.plot(points["intensity"], points["flops_per_s"] / 1e9, **look)
        limit = here.drop_duplicates("case").sort_values("intensity")
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
        axes.set_xlabel("FLOPs per byte of the products")
        axes.grid(visible=True, which="major", axis="both")
    legend(figure, panels, "implementation")
    return figure


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
                look = theme.muted if name == OTHER else colour_of(theme, position)
                axes.barh(
                    labels, 100 * width, left=100 * left, color=look, edgecolor=theme.surface, label=name
                )
                for label, value, start in zip(labels, width, left, strict=True):
                    if value > 0.12:
                        middle = 100 * (start + value / 2)
                        axes.text(
                            middle, label, f"{100 * value:.0f}", color=theme.surface, ha="center", va="center"
                        )
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
    figure, panels = task_panels(parts, theme)
    panels[0][1].set_ylabel("GFLOP/s")
    for task, axes in panels:
        here = parts[parts["task"] == task]
        for position, name in enumerate(dict.fromkeys(parts["part"])):
            points = here[here["part"] == name]
            look = {**series(theme, position, name), "linestyle": "none", "alpha": 0.8}
            axes.plot(points["intensity"], points["flops_per_s"] / 1e9, **look)
        axes.plot(
            here["intensity"],
            here["limit_flops_per_s"] / 1e9,
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
        axes.set_xlabel("FLOPs per byte of the part's products")
        axes.grid(visible=True, which="major", axis="both")
    legend(figure, panels, "part")
    return figure
