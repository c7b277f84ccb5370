"""The static figures, drawn by Matplotlib from the page's tables: a panel per task.

Each function takes rows that stand under one condition and returns a figure; nothing is computed here beyond
what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from zipfmax.reports.style import LIGHT, MARKERS, SPEEDUP_SCHEME, Theme, count, factor, in_colours, size
from zipfmax.reports.tables import label_order, tasks

PANEL = (4.6, 3.5)
"""Width and height of a panel in inches."""

TASK_TITLES = {
    "train": "Training step (forward + backward)",
    "forward": "Forward",
    "log_prob": "All log-probabilities",
    "predict": "Prediction",
}


@in_colours
def speedup_by_vocabulary(rows: pd.DataFrame, baseline: str, *, theme: Theme = LIGHT) -> Figure:
    """Speedup against vocabulary size, a line per label distribution; real frequencies are dashed."""
    figure, panels = _panels(rows, theme)
    order = label_order(rows)
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, name in enumerate(order):
            line = here[here["labels_name"] == name].sort_values("n_classes")
            real = bool(line["skew"].isna().all())
            _line(axes, line["n_classes"], line, position, name, theme, dashed=real)
        axes.set_xscale("log")
        _ticks(axes, rows["n_classes"])
        axes.set_xlabel("vocabulary size")
        _speedup_axis(axes, rows, baseline, theme)
    _legend(figure, panels, "labels")
    return figure


@in_colours
def speedup_by_skew(rows: pd.DataFrame, baseline: str, *, theme: Theme = LIGHT) -> Figure:
    """Speedup against Zipf's exponent, a line per vocabulary; real frequencies stand beside, by name."""
    order = sorted(rows["n_classes"].unique())
    real_names = sorted(rows.loc[rows["skew"].isna(), "labels_name"].unique())
    skews = sorted(rows["skew"].dropna().unique())
    place = (max(skews) if skews else 0.0) + 0.45
    figure, panels = _panels(rows, theme)
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, classes in enumerate(order):
            of_size = here[here["n_classes"] == classes]
            synthetic = of_size[of_size["skew"].notna()].sort_values("skew")
            name = f"{count(classes)} classes"
            _line(axes, synthetic["skew"], synthetic, position, name, theme)
            real = of_size[of_size["skew"].isna()]
            at = real["labels_name"].map(lambda label: place + 0.45 * real_names.index(label))
            # Vocabularies stand side by side at a list's place, or their intervals would hide each other.
            at = at.astype(float) + 0.07 * (position - (len(order) - 1) / 2)
            _line(axes, at, real, position, None if len(synthetic) else name, theme, joined=False)
        axes.set_xticks([*skews, *(place + 0.45 * i for i in range(len(real_names)))])
        axes.set_xticklabels(
            [f"{value:g}" for value in skews] + [name.replace(", ", ",\n") for name in real_names]
        )
        axes.set_xlabel("Zipf exponent of the labels" + (" | real frequencies" if real_names else ""))
        if skews and real_names:
            axes.axvline(place - 0.25, color=theme.grid, linewidth=1)
        _speedup_axis(axes, rows, baseline, theme)
    _legend(figure, panels, "vocabulary")
    return figure


@in_colours
def speedup_heat_map(rows: pd.DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """Speedup over vocabulary x labels, the value in each cell; orange is slower, purple faster, white 1x."""
    columns, labels = sorted(rows["n_classes"].unique()), label_order(rows)
    figure, panels = _panels(rows, theme, height=1.3 + 0.42 * len(labels), width=1.6 + 0.95 * len(columns))
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
    figure, panels = _panels(rows, theme)
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
                    color=_colour(theme, position),
                    markersize=11 if real else 6,
                    label=f"{count(classes)} classes" + (", real" if real else "") if len(points) else None,
                )
        axes.set_xlabel("labels that fall in the shortlist, %")
        _speedup_axis(axes, rows, baseline, theme)
    _legend(figure, panels, "vocabulary")
    return figure


@in_colours
def efficiency(rows: pd.DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """Limit over measured time against vocabulary size, a line per implementation: 1 is the bare products."""
    figure, panels = _panels(rows, theme)
    panels[0][1].set_ylabel("limit / measured")
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, name in enumerate(dict.fromkeys(rows["impl"])):
            by_size = here[here["impl"] == name].groupby("n_classes")["efficiency"]
            middle = by_size.median()
            _range(axes, by_size.min(), by_size.max(), position, theme)
            axes.plot(middle.index, middle, **_series(theme, position, name))
        axes.axhline(1.0, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_ylim(bottom=0)
        axes.set_xscale("log")
        _ticks(axes, rows["n_classes"])
        axes.set_xlabel("vocabulary size")
    _legend(figure, panels, "implementation")
    return figure


@in_colours
def peak_memory(rows: pd.DataFrame, axis: str, *, theme: Theme = LIGHT) -> Figure:
    """Peak bytes of temporaries against `axis` ("n_classes" or "batch_size"), a line per implementation."""
    figure, panels = _panels(rows, theme)
    panels[0][1].set_ylabel("peak temporary memory")
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, name in enumerate(dict.fromkeys(rows["impl"])):
            by_size = here[here["impl"] == name].groupby(axis)["peak_bytes"]
            middle = by_size.median()
            axes.plot(middle.index, middle, **_series(theme, position, name))
        axes.set_xscale("log")
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
        _ticks(axes, rows[axis])
        axes.set_xlabel("vocabulary size" if axis == "n_classes" else "batch size")
    _legend(figure, panels, "implementation")
    return figure


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
            colour = _colour(theme, position)
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
    _legend(figure, [("", axes) for axes in panels], "cluster")
    return figure


@in_colours
def parity_strip(rows: pd.DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """Every comparison's error in units of its budget on a log axis, a row per implementation and dtype."""
    rows = rows[rows["used"].notna()].assign(row=rows["impl"] + ", " + rows["dtype"])
    names = list(dict.fromkeys(rows["row"]))[::-1]
    smallest = rows.loc[rows["used"] > 0, "used"].min()
    floor = 10 ** math.floor(math.log10(smallest)) / 10 if smallest == smallest else 1e-3
    figure = Figure(figsize=(8.2, 1.3 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    for position, (against, points) in enumerate(rows.groupby("against", sort=False)):
        offset = 0.18 * (position - (rows["against"].nunique() - 1) / 2)
        axes.plot(
            points["used"].clip(floor, 1e6),
            points["row"].map(names.index) + offset,
            MARKERS[position % len(MARKERS)],
            color=_colour(theme, position),
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
    axes.set_xlabel(f"error / budget (exact results are drawn at {floor:.0e})")
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    _legend(figure, [("", axes)], None)
    return figure


@in_colours
def predicted_against_measured(rows: pd.DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """The planner's predicted milliseconds against the measured ones; on the dashed line they are equal."""
    figure, panels = _panels(rows, theme, width=4.4, height=4.2)
    panels[0][1].set_ylabel("predicted, ms")
    ends = 1e3 * pd.concat([rows["predicted_s"], rows["median_s"]]).agg(["min", "max"]) * [0.8, 1.25]
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, classes in enumerate(sorted(rows["n_classes"].unique())):
            points = here[here["n_classes"] == classes]
            look = {**_series(theme, position, f"{count(classes)} classes"), "linestyle": "none"}
            axes.plot(1e3 * points["median_s"], 1e3 * points["predicted_s"], **look)
        axes.plot(ends, ends, color=theme.ink, linewidth=1.1, linestyle=(0, (4, 3)))
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_ticks(axes.xaxis)
        _plain_ticks(axes.yaxis)
        axes.set_xlabel("measured, ms")
        axes.grid(visible=True, axis="both")
    _legend(figure, panels, "vocabulary")
    return figure


@in_colours
def runs_beside(rows: pd.DataFrame, baseline: str, *, theme: Theme = LIGHT) -> Figure:
    """Speedups of the same cells in several runs: a row per cell, a mark and its interval per run."""
    rows = rows.assign(cell=rows["n_classes"].map(count) + " classes, " + rows["labels_name"])
    ordered = rows.sort_values(["n_classes", "skew"], ascending=False, na_position="first")
    names = list(dict.fromkeys(ordered["cell"]))
    runs = list(dict.fromkeys(rows["run"]))
    figure, panels = _panels(rows, theme, height=1.5 + 0.32 * len(names))
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, run in enumerate(runs):
            points = here[here["run"] == run]
            offset = 0.24 * (position - (len(runs) - 1) / 2)
            spread = [
                (points["speedup"] - points["low"]).clip(lower=0).fillna(0),
                (points["high"] - points["speedup"]).clip(lower=0).fillna(0),
            ]
            look = {**_series(theme, position, run), "linestyle": "none"}
            axes.errorbar(points["speedup"], points["cell"].map(names.index) - offset, xerr=spread, **look)
        axes.axvline(1.0, color=theme.ink, linewidth=1.1, linestyle=(0, (4, 3)))
        axes.set_xscale("log")
        _factor_ticks(axes.xaxis, *axes.get_xlim())
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=True, axis="x")
        axes.set_xlabel(f"speedup over {baseline}")
    _legend(figure, panels, "run")
    return figure


@in_colours
def roofline(rows: pd.DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """FLOPs a second against FLOPs a byte of each cell's products: measured, and at the measured limit.

    `rows` has `intensity`, `flops_per_s` and `limit_flops_per_s`.
    """
    figure, panels = _panels(rows, theme)
    panels[0][1].set_ylabel("GFLOP/s")
    for task, axes in panels:
        here = rows[rows["task"] == task]
        for position, name in enumerate(dict.fromkeys(rows["impl"])):
            points = here[here["impl"] == name]
            look = {**_series(theme, position, name), "linestyle": "none", "alpha": 0.8}
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
        _plain_ticks(axes.xaxis)
        _plain_ticks(axes.yaxis)
        axes.set_xlabel("FLOPs per byte of the products")
        axes.grid(visible=True, which="major", axis="both")
    _legend(figure, panels, "implementation")
    return figure


def _panels(
    rows: pd.DataFrame, theme: Theme, height: float = PANEL[1], width: float = PANEL[0]
) -> tuple[Figure, list[tuple[str, Axes]]]:
    names = tasks(rows)
    figure = Figure(figsize=(width * len(names), height), layout="constrained")
    grid = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for name, axes in zip(names, grid, strict=True):
        axes.set_title(TASK_TITLES.get(name, name))
    return figure, list(zip(names, grid, strict=True))


def _line(
    axes: Axes,
    at: pd.Series,
    points: pd.DataFrame,
    position: int,
    name: str | None,
    theme: Theme,
    dashed: bool = False,
    joined: bool = True,
) -> None:
    if points.empty:
        return
    look = _series(theme, position, name)
    look["linestyle"] = (0, (2, 2)) if dashed else "-" if joined else "none"
    below = (points["speedup"] - points["low"]).clip(lower=0).fillna(0)
    above = (points["high"] - points["speedup"]).clip(lower=0).fillna(0)
    axes.errorbar(at, points["speedup"], yerr=[below, above], elinewidth=1.2, capsize=2.5, **look)


def _range(axes: Axes, low: pd.Series, high: pd.Series, position: int, theme: Theme) -> None:
    axes.vlines(low.index, low, high, color=_colour(theme, position), alpha=0.5, linewidth=1.2)


def _series(theme: Theme, position: int, name: str | None) -> dict[str, Any]:
    marker = MARKERS[position % len(MARKERS)]
    return {"color": _colour(theme, position), "marker": marker, "label": name}


def _colour(theme: Theme, position: int) -> str:
    return theme.series[position % len(theme.series)]


def _speedup_axis(axes: Axes, rows: pd.DataFrame, baseline: str, theme: Theme) -> None:
    """A logarithmic axis in powers of two with the break-even line; values are speedups."""
    reach = pd.concat([rows["speedup"], rows["low"], rows["high"]]).dropna()
    low, high = min(float(reach.min()), 0.9) / 1.1, max(float(reach.max()), 1.1) * 1.1
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    _factor_ticks(axes.yaxis, low, high)
    axes.axhline(1.0, color=theme.ink, linewidth=1.1, linestyle=(0, (4, 3)))
    axes.annotate(
        "break-even",
        (1.0, 1.0),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 2),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=theme.muted,
    )
    if axes.get_subplotspec() and axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel(f"speedup over\n{baseline}")


def _plain_ticks(axis: Axis) -> None:
    """Decimal numbers at 1, 2 and 5 of each decade of a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _factor_ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks at powers of two, and at 1.5 times them where the axis spans little."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    powers = [2.0**power for power in range(first, last + 1)]
    levels = powers if last - first > 3 else sorted(powers + [1.5 * power for power in powers])
    axis.set_major_locator(FixedLocator(levels))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axis.set_minor_locator(NullLocator())


def _ticks(axes: Axes, values: Iterable[float]) -> None:
    distinct = sorted(set(values))
    axes.xaxis.set_major_locator(FixedLocator(distinct))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    if len(distinct) > 1:
        room = (distinct[-1] / distinct[0]) ** 0.08
        axes.set_xlim(distinct[0] / room, distinct[-1] * room)


def _legend(figure: Figure, panels: Sequence[tuple[str, Axes]], title: str | None) -> None:
    """One legend under the panels, with each name once."""
    entries: dict[str, Any] = {}
    for _, axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    if entries:
        figure.legend(
            entries.values(),
            entries.keys(),
            title=title,
            loc="outside lower center",
            ncols=min(len(entries), 5),
        )


def has_items(value: object) -> bool:
    """Whether a record's field is a list with something in it."""
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
