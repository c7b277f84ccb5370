"""The static figures, drawn by Matplotlib from the page's tables: a panel per task.

Each function takes rows that stand under one condition and returns a figure; nothing is computed here beyond
what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from zipfmax_reports.panels import (
    colour_of,
    extent,
    factor_ticks,
    legend,
    plain_ticks,
    series,
    speedup_axis,
    speedup_line,
    task_panels,
    value_ticks,
)
from zipfmax_reports.style import LIGHT, MARKERS, SPEEDUP_SCHEME, Theme, count, factor, in_colours, size
from zipfmax_reports.tables import label_order

_LEAST_USED = 1e-4
"""Where the strip's axis begins at the least: what is right by four digits more needs no space."""


@in_colours
def speedup_by_vocabulary(rows: pd.DataFrame, baseline: str, *, theme: Theme = LIGHT) -> Figure:
    """Speedup against vocabulary size, a line per label distribution; real frequencies are dashed."""
    figure, panels = task_panels(rows, theme)
    order = label_order(rows)
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, name in enumerate(order):
            line = here[here["labels_name"] == name].sort_values("n_classes")
            real = bool(line["skew"].isna().all())
            speedup_line(axes, line["n_classes"], line, position, name, theme, dashed=real)
        axes.set_xscale("log")
        value_ticks(axes, rows["n_classes"])
        axes.set_xlabel("vocabulary size")
        speedup_axis(axes, rows, baseline, theme)
    legend(figure, panels, "labels")
    return figure


@in_colours
def speedup_by_skew(rows: pd.DataFrame, baseline: str, *, theme: Theme = LIGHT) -> Figure:
    """Speedup against Zipf's exponent, a line per vocabulary; real frequencies stand beside, by name."""
    order = sorted(rows["n_classes"].unique())
    real_names = sorted(rows.loc[rows["skew"].isna(), "labels_name"].unique())
    skews = sorted(rows["skew"].dropna().unique())
    place = (max(skews) if skews else 0.0) + 0.45
    figure, panels = task_panels(rows, theme)
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, classes in enumerate(order):
            of_size = here[here["n_classes"] == classes]
            synthetic = of_size[of_size["skew"].notna()].sort_values("skew")
            name = f"{count(classes)} classes"
            speedup_line(axes, synthetic["skew"], synthetic, position, name, theme)
            real = of_size[of_size["skew"].isna()]
            at = real["labels_name"].map(lambda label: place + 0.45 * real_names.index(label))
            # Vocabularies stand side by side at a list's place, or their intervals would hide each other.
            at = at.astype(float) + 0.07 * (position - (len(order) - 1) / 2)
            speedup_line(axes, at, real, position, None if len(synthetic) else name, theme, joined=False)
        axes.set_xticks([*skews, *(place + 0.45 * i for i in range(len(real_names)))])
        axes.set_xticklabels(
            [f"{value:g}" for value in skews] + [name.replace(", ", ",\n") for name in real_names]
        )
        axes.set_xlabel("Zipf exponent of the labels" + (" | real frequencies" if real_names else ""))
        if skews and real_names:
            axes.axvline(place - 0.25, color=theme.grid, linewidth=1)
        speedup_axis(axes, rows, baseline, theme)
    legend(figure, panels, "vocabulary")
    return figure


@in_colours
def speedup_heat_map(rows: pd.DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """Speedup over vocabulary x labels, the value in each cell; orange is slower, purple faster, white 1x."""
    columns, labels = sorted(rows["n_classes"].unique()), label_order(rows)
    figure, panels = task_panels(
        rows, theme, height=1.3 + 0.42 * len(labels), width=1.6 + 0.95 * len(columns)
    )
    logs = rows["speedup"].map(math.log2)
    reach = max(1.0, float(logs.abs().max()))
    norm = TwoSlopeNorm(0.0, -reach, reach)
    colours = matplotlib.colormaps[SPEEDUP_SCHEME]
    for task, axes in panels:
        grid = rows[rows["task"] == task].pivot_table(
            index="labels_name", columns="n_classes", values="speedup"
        )
        grid = grid.reindex(index=labels, columns=columns)
        axes.imshow(grid.map(math.log2), cmap=colours, norm=norm, aspect="auto")
        for row, label in enumerate(labels):
            for column, classes in enumerate(columns):
                value = grid.loc[label, classes]
                deep = not math.isnan(value) and abs(math.log2(value)) > 0.62 * reach
                ink = "#ffffff" if deep else theme.muted if math.isnan(value) else "#101114"
                axes.text(column, row, factor(value), ha="center", va="center", color=ink, fontsize=10)
        axes.set_xticks(range(len(columns)), [count(classes) for classes in columns])
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlabel("vocabulary size")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


@in_colours
def speedup_by_head_share(rows: pd.DataFrame, baseline: str, *, theme: Theme = LIGHT) -> Figure:
    """Speedup against the share of labels that the shortlist takes; stars are real frequencies."""
    rows = rows[rows["occupancy"].map(has_items)]
    rows = rows.assign(head_share=rows["occupancy"].map(lambda shares: shares[0]))
    figure, panels = task_panels(rows, theme)
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, classes in enumerate(sorted(rows["n_classes"].unique())):
            of_size = here[here["n_classes"] == classes]
            for real, marker in ((False, MARKERS[position % len(MARKERS)]), (True, "*")):
                points = of_size[of_size["skew"].isna() == real]
                axes.plot(
                    100 * points["head_share"],
                    points["speedup"],
                    marker,
                    color=colour_of(theme, position),
                    markersize=11 if real else 6,
                    label=f"{count(classes)} classes" + (", real" if real else "") if len(points) else None,
                )
        axes.set_xlabel("labels that fall in the shortlist, %")
        speedup_axis(axes, rows, baseline, theme)
    legend(figure, panels, "vocabulary")
    return figure


@in_colours
def efficiency(rows: pd.DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """Limit over measured time against vocabulary size, a line per implementation: 1 is the bare products."""
    figure, panels = task_panels(rows, theme)
    panels[0][1].set_ylabel("limit / measured")
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, name in enumerate(dict.fromkeys(rows["impl"])):
            by_size = here[here["impl"] == name].groupby("n_classes")["efficiency"]
            middle = by_size.median()
            extent(axes, by_size.min(), by_size.max(), position, theme)
            axes.plot(middle.index, middle, **series(theme, position, name))
        axes.axhline(1.0, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(0, 1.06 * max(1.0, float(rows["efficiency"].max())))
        axes.set_xscale("log")
        value_ticks(axes, rows["n_classes"])
        axes.set_xlabel("vocabulary size")
    legend(figure, panels, "implementation")
    return figure


@in_colours
def peak_memory(rows: pd.DataFrame, axis: str, *, theme: Theme = LIGHT) -> Figure:
    """Peak bytes of temporaries against `axis` ("n_classes" or "batch_size"), a line per implementation."""
    figure, panels = task_panels(rows, theme)
    panels[0][1].set_ylabel("peak temporary memory")
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, name in enumerate(dict.fromkeys(rows["impl"])):
            by_size = here[here["impl"] == name].groupby(axis)["peak_bytes"]
            middle = by_size.median()
            axes.plot(middle.index, middle, **series(theme, position, name))
        axes.set_xscale("log")
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
        value_ticks(axes, rows[axis])
        axes.set_xlabel("vocabulary size" if axis == "n_classes" else "batch size")
    legend(figure, panels, "implementation")
    return figure


@in_colours
def parity_strip(rows: pd.DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """Every comparison's error in units of its budget on a log axis, a row per implementation and dtype."""
    rows = rows[rows["used"].notna()].assign(row=rows["impl"] + ", " + rows["dtype"])
    names = list(dict.fromkeys(rows["row"]))[::-1]
    smallest = rows.loc[rows["used"] > 0, "used"].min()
    floor = max(_LEAST_USED, 10 ** math.floor(math.log10(smallest)) / 10) if smallest == smallest else 1e-3
    figure = Figure(figsize=(8.2, 1.3 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    for position, (against, points) in enumerate(rows.groupby("against", sort=False)):
        offset = 0.18 * (position - (rows["against"].nunique() - 1) / 2)
        axes.plot(
            points["used"].clip(floor, 1e6),
            points["row"].map(names.index) + offset,
            MARKERS[position % len(MARKERS)],
            color=colour_of(theme, position),
            alpha=0.35,
            markersize=4,
            markeredgewidth=0,
            label=f"against {against}",
        )
    axes.axvline(1.0, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "budget", (1.0, 1.0), xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points"
    )
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(f"error / budget (smaller errors, and none, are drawn at {floor:.0e})")
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    legend(figure, [("", axes)], None)
    return figure


@in_colours
def predicted_against_measured(rows: pd.DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """The planner's predicted milliseconds against the measured ones; on the dashed line they are equal."""
    figure, panels = task_panels(rows, theme, width=4.4, height=4.2)
    panels[0][1].set_ylabel("predicted, ms")
    ends = 1e3 * pd.concat([rows["predicted_s"], rows["median_s"]]).agg(["min", "max"]) * [0.8, 1.25]
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, classes in enumerate(sorted(rows["n_classes"].unique())):
            points = here[here["n_classes"] == classes]
            look = {**series(theme, position, f"{count(classes)} classes"), "linestyle": "none"}
            axes.plot(1e3 * points["median_s"], 1e3 * points["predicted_s"], **look)
        axes.plot(ends, ends, color=theme.ink, linewidth=1.1, linestyle=(0, (4, 3)))
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        axes.set_xlabel("measured, ms")
        axes.grid(visible=True, axis="both")
    legend(figure, panels, "vocabulary")
    return figure


@in_colours
def runs_beside(rows: pd.DataFrame, baseline: str, *, theme: Theme = LIGHT) -> Figure:
    """Speedups of the same cells in several runs: a row per cell, a mark and its interval per run."""
    rows = rows.assign(cell=rows["n_classes"].map(count) + " classes, " + rows["labels_name"])
    ordered = rows.sort_values(["n_classes", "skew"], ascending=False, na_position="first")
    names = list(dict.fromkeys(ordered["cell"]))
    runs = list(dict.fromkeys(rows["run"]))
    figure, panels = task_panels(rows, theme, height=1.5 + 0.32 * len(names))
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, run in enumerate(runs):
            points = here[here["run"] == run]
            offset = 0.24 * (position - (len(runs) - 1) / 2)
            spread = [
                (points["speedup"] - points["low"]).clip(lower=0).fillna(0),
                (points["high"] - points["speedup"]).clip(lower=0).fillna(0),
            ]
            look = {**series(theme, position, run), "linestyle": "none"}
            axes.errorbar(points["speedup"], points["cell"].map(names.index) - offset, xerr=spread, **look)
        axes.axvline(1.0, color=theme.ink, linewidth=1.1, linestyle=(0, (4, 3)))
        axes.set_xscale("log")
        factor_ticks(axes.xaxis, *axes.get_xlim())
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=True, axis="x")
        axes.set_xlabel(f"speedup over {baseline}")
    legend(figure, panels, "run")
    return figure


def has_items(value: object) -> bool:
    """Whether a record's field is a list with something in it."""
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
