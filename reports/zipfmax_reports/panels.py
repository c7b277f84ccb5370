"""The pieces that every static figure is put together from: panels, lines, axes, ticks and the legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from zipfmax_reports.style import MARKERS, Theme, count
from zipfmax_reports.tables import evenly, tasks

PANEL = (4.6, 3.5)
"""Width and height of a panel in inches."""

TASK_TITLES = {
    "train": "Training step (forward + backward)",
    "forward": "Forward",
    "log_prob": "All log-probabilities",
    "predict": "Prediction",
    "topk": "Ten most probable classes",
}


def task_panels(
    rows: pd.DataFrame, theme: Theme, height: float = PANEL[1], width: float = PANEL[0]
) -> tuple[Figure, list[tuple[str, Axes]]]:
    """A figure with a panel for each task, and the panels by task."""
    names = tasks(rows)
    figure = Figure(figsize=(width * len(names), height), layout="constrained")
    grid = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for name, axes in zip(names, grid, strict=True):
        axes.set_title(TASK_TITLES.get(name, name))
    return figure, list(zip(names, grid, strict=True))


def speedup_line(
    axes: Axes,
    at: pd.Series,
    points: pd.DataFrame,
    position: int,
    name: str | None,
    theme: Theme,
    dashed: bool = False,
    joined: bool = True,
) -> None:
    """Speedups with their intervals at the places `at`."""
    if points.empty:
        return
    look = series(theme, position, name)
    look["linestyle"] = (0, (2, 2)) if dashed else "-" if joined else "none"
    below = (points["speedup"] - points["low"]).clip(lower=0).fillna(0)
    above = (points["high"] - points["speedup"]).clip(lower=0).fillna(0)
    axes.errorbar(at, points["speedup"], yerr=[below, above], elinewidth=1.2, capsize=2.5, **look)


def extent(axes: Axes, low: pd.Series, high: pd.Series, position: int, theme: Theme) -> None:
    """A bar from `low` to `high` at each of their places."""
    axes.vlines(low.index, low, high, color=colour_of(theme, position), alpha=0.5, linewidth=1.2)


def series(theme: Theme, position: int, name: str | None) -> dict[str, Any]:
    """Colour, marker and label of the series at this position."""
    marker = MARKERS[position % len(MARKERS)]
    return {"color": colour_of(theme, position), "marker": marker, "label": name}


def colour_of(theme: Theme, position: int) -> str:
    """The colour of the series at this position."""
    return theme.series[position % len(theme.series)]


def speedup_axis(axes: Axes, rows: pd.DataFrame, baseline: str, theme: Theme) -> None:
    """A logarithmic axis in powers of two with the break-even line; values are speedups."""
    reach = pd.concat([rows["speedup"], rows["low"], rows["high"]]).dropna()
    low, high = min(float(reach.min()), 0.9) / 1.15, max(float(reach.max()), 1.1) * 1.15
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    factor_ticks(axes.yaxis, low, high)
    axes.axhline(1.0, color=theme.ink, linewidth=1.1, linestyle=(0, (4, 3)))
    place = axes.get_subplotspec()
    if place and place.is_last_col():  # beside the panels, where no line can cross it
        axes.annotate(
            "break-even",
            (1.0, 1.0),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=theme.muted,
        )
    if place and place.is_first_col():
        axes.set_ylabel(f"speedup over\n{baseline}")


def plain_ticks(axis: Axis) -> None:
    """Decimal numbers at 1, 2 and 5 of each decade of a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def factor_ticks(axis: Axis, low: float, high: float) -> None:
    """Ticks at powers of two, and at 1.5 times them where the axis spans little."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    powers = [2.0**power for power in range(first, last + 1)]
    levels = powers if last - first > 3 else sorted(powers + [1.5 * power for power in powers])
    axis.set_major_locator(FixedLocator(levels))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axis.set_minor_locator(NullLocator())


def value_ticks(axes: Axes, values: Iterable[float]) -> None:
    """A tick at each distinct value of a logarithmic x axis, or at as many as fit."""
    distinct = sorted(set(values))
    axes.xaxis.set_major_locator(FixedLocator(evenly(distinct, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    if len(distinct) > 1:
        margin = (distinct[-1] / distinct[0]) ** 0.08
        axes.set_xlim(distinct[0] / margin, distinct[-1] * margin)


def legend(figure: Figure, panels: Sequence[tuple[str, Axes]], title: str | None) -> None:
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
