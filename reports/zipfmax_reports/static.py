"""Draws the description of a figure with Matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis as DrawnAxis
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from zipfmax_reports.figure import Axis, Figure, Look, Marks, ReferenceLine
from zipfmax_reports.style import LIGHT, MARKERS, SPEEDUP_SCHEME, Theme, count, settings, size
from zipfmax_reports.tables import evenly

_LETTERS = 45
"""Letters of tick labels that stand beside each other along a panel."""

_DASHES = (0, (4, 3))
_FORMATS = {"plain": "{:g}".format, "count": count, "factor": "{:g}×".format, "bytes": size}


def draw(figure: Figure, theme: Theme = LIGHT) -> Drawing:
    """The figure in a scheme's colours."""
    with matplotlib.rc_context(settings(theme)):
        return _draw(figure, theme)


def _draw(figure: Figure, theme: Theme) -> Drawing:
    titles = figure.panels.titles if figure.panels else {None: figure.title}
    across = (figure.panels.across if figure.panels else 0) or len(titles)
    down = math.ceil(len(titles) / across)
    width, height = figure.size
    drawing = Drawing(figsize=(width * across, height * down), layout="constrained")
    grid = drawing.subplots(down, across, sharex=down > 1, sharey=True, squeeze=False)
    for (panel, title), axes in zip(titles.items(), grid.flat, strict=True):
        axes.set_title(title)
        _scale(axes, "x", figure.x)
        _scale(axes, "y", figure.y)
        for marks in figure.marks:
            _mark(axes, figure, figure.rows_of(panel), marks, theme)
        for rule in figure.rules:
            _rule(axes, rule, theme)
    for axes in grid.flat:  # the data of all panels decide on the axes that they share
        _ticks(axes, "x", figure.x)
        _ticks(axes, "y", figure.y)
    for axes in grid[-1]:
        axes.set_xlabel(figure.x.title)
    for axes in grid[:, 0]:
        axes.set_ylabel(figure.y.title)
    _legend(drawing, figure, list(grid.flat))
    return drawing


def _places(figure: Figure, name: str) -> dict[Any, int] | None:
    """Where each category stands; categories of y run from top to bottom."""
    axis: Axis = getattr(figure, name)
    if axis.scale != "category":
        return None
    names = list(axis.ticks or dict.fromkeys(figure.rows[axis.column]))
    return {value: len(names) - 1 - i if name == "y" else i for i, value in enumerate(names)}


def _at(figure: Figure, rows: pd.DataFrame, name: str) -> pd.Series:
    """The places of the rows along an axis."""
    places = _places(figure, name)
    axis: Axis = getattr(figure, name)
    values = rows[axis.column]
    return values.astype(float) if places is None else values.map(places).astype(float)


def _series(figure: Figure, rows: pd.DataFrame) -> Iterator[tuple[str, Look, int, pd.DataFrame]]:
    """Name, look, position and rows of every series that has rows."""
    if figure.series is None:
        yield "", Look.at(0), 0, rows
        return
    for position, name in enumerate(figure.series.order):
        here = rows[rows[figure.series.column] == name]
        if not here.empty:
            yield str(name), figure.series.look(name), position, here


def _mark(axes: Axes, figure: Figure, rows: pd.DataFrame, marks: Marks, theme: Theme) -> None:
    if marks.where:
        rows = rows[rows[marks.where].astype(bool)]
    if marks.kind == "cells":
        _cells(axes, figure, rows, marks, theme)
    elif marks.kind == "bars":
        _bars(axes, figure, rows, marks, theme)
    elif marks.by:
        for _, line in rows.groupby(marks.by, sort=False):
            _points(axes, figure, line, marks, "", Look.at(0), 0, theme)
    elif marks.kind == "stars":
        _points(axes, figure, rows, marks, "", Look(1, "star", 11.0), 0, theme)
    else:
        for name, look, position, here in _series(figure, rows):
            _points(axes, figure, here, marks, name, look, position, theme)


def _points(
    axes: Axes,
    figure: Figure,
    rows: pd.DataFrame,
    marks: Marks,
    name: str,
    look: Look,
    position: int,
    theme: Theme,
) -> None:
    x, y = _at(figure, rows, "x"), _at(figure, rows, "y")
    level = figure.y.scale == "category"
    if marks.dodge and figure.series:
        shift = marks.dodge * (position - (len(figure.series.order) - 1) / 2)
        x, y = (x, y - shift) if level else (x + shift, y)
    if marks.kind == "line":
        order = x.sort_values(kind="stable").index
        rows, x, y = rows.loc[order], x.loc[order], y.loc[order]
    dashed = bool(marks.dashed) and bool(rows[marks.dashed].all())
    drawn: dict[str, Any] = {
        "color": theme.colour(look.colour),
        "marker": "|" if marks.kind == "ticks" else MARKERS[look.marker].matplotlib,
        "markersize": look.size,
        "linestyle": "none" if marks.kind != "line" else (0, (2, 2)) if dashed else "-",
        "alpha": marks.opacity,
        "label": name or None,
    }
    if look.marker == "dash":
        drawn["markeredgewidth"] = 2
    if marks.interval:
        drawn["xerr" if level else "yerr"] = _spread(rows, figure.x if level else figure.y, marks.interval)
        axes.errorbar(x, y, elinewidth=1.2, capsize=2.5, **drawn)
    else:
        axes.plot(x, y, **drawn)
    if marks.text:
        for left, up, words in zip(x, y, rows[marks.text], strict=True):
            if words:
                axes.annotate(words, (left, up), xytext=(8, -14), textcoords="offset points")


def _spread(rows: pd.DataFrame, axis: Axis, interval: tuple[str, str]) -> list[pd.Series]:
    """The lengths below and above each point; zero where an end is not known."""
    middle, (low, high) = rows[axis.column], interval
    return [(middle - rows[low]).clip(lower=0).fillna(0), (rows[high] - middle).clip(lower=0).fillna(0)]


def _bars(axes: Axes, figure: Figure, rows: pd.DataFrame, marks: Marks, theme: Theme) -> None:
    places = _places(figure, "y")
    assert places is not None
    left = pd.Series(0.0, index=list(places.values()))
    for name, look, _, here in _series(figure, rows):
        at, widths = _at(figure, here, "y"), here[figure.x.column].astype(float).fillna(0.0)
        start = at.map(left)
        colour = theme.colour(look.colour)
        axes.barh(at, widths, left=start, color=colour, edgecolor=theme.surface, label=name)
        left[at] = (start + widths).to_numpy()
        if marks.text:
            middles = start + widths / 2
            for middle, place, words in zip(middles, at, here[marks.text], strict=True):
                axes.text(middle, place, words, color=theme.surface, ha="center", va="center")


def _cells(axes: Axes, figure: Figure, rows: pd.DataFrame, marks: Marks, theme: Theme) -> None:
    columns, lines = _places(figure, "x"), _places(figure, "y")
    assert columns is not None
    assert lines is not None
    values = np.full((len(lines), len(columns)), np.nan)
    words = np.full(values.shape, "–", dtype=object)
    for row in rows.to_dict("records"):
        place = lines[row[figure.y.column]], columns[row[figure.x.column]]
        values[place], words[place] = row[marks.value], row[marks.text]
    low, middle, high = marks.span
    norm = TwoSlopeNorm(middle, low, high)
    axes.imshow(values, cmap=matplotlib.colormaps[SPEEDUP_SCHEME], norm=norm, aspect="auto", origin="lower")
    for (line, column), value in np.ndenumerate(values):
        deep = not math.isnan(value) and abs(value - middle) > 0.62 * (high - middle)
        ink = "#ffffff" if deep else theme.muted if math.isnan(value) else "#101114"
        axes.text(column, line, str(words[line, column]), ha="center", va="center", color=ink, fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _rule(axes: Axes, rule: ReferenceLine, theme: Theme) -> None:
    look: dict[str, Any] = (
        {"color": theme.grid, "linewidth": 1.0}
        if rule.quiet
        else {"color": theme.ink, "linewidth": 1.1, "linestyle": _DASHES}
    )
    if rule.axis == "equal":
        axes.axline((1.0, 1.0), (2.0, 2.0), **look)
        return
    (axes.axvline if rule.axis == "x" else axes.axhline)(rule.at, **look)
    place = axes.get_subplotspec()
    if rule.label and place and place.is_last_col():  # beside the panels, where no line can cross it
        level = rule.axis == "y"
        axes.annotate(
            rule.label,
            (1.0, rule.at) if level else (rule.at, 1.0),
            xycoords=("axes fraction", "data") if level else ("data", "axes fraction"),
            xytext=(4, 0) if level else (3, 2),
            textcoords="offset points",
            va="center" if level else "bottom",
            fontsize=8,
            color=theme.muted,
        )


def _scale(axes: Axes, name: str, axis: Axis) -> None:
    if axis.scale == "log":
        base = {"base": 2} if axis.unit == "bytes" else {}
        (axes.set_xscale if name == "x" else axes.set_yscale)("log", **base)
    axes.grid(visible=axis.grid, axis="x" if name == "x" else "y")
    limits = axis.limits
    if limits is None and axis.scale == "log" and axis.ticks and len(axis.ticks) > 1:
        low, high = min(axis.ticks), max(axis.ticks)
        margin = (high / low) ** 0.08
        limits = low / margin, high * margin
    if limits:
        (axes.set_xlim if name == "x" else axes.set_ylim)(*limits)


def _ticks(axes: Axes, name: str, axis: Axis) -> None:
    drawn = axes.xaxis if name == "x" else axes.yaxis
    if axis.scale == "category":
        words = list((axis.ticks or {}).values())
        places = range(len(words)) if name == "x" else range(len(words) - 1, -1, -1)
        drawn.set_ticks(list(places), words)
        if name == "y" and not axes.images:
            axes.set_ylim(-0.6, len(words) - 0.4)
    elif axis.ticks is not None:
        longest = max((len(line) for words in axis.ticks.values() for line in words.split(", ")), default=1)
        kept = evenly(sorted(axis.ticks), max(2, _LETTERS // longest))
        drawn.set_ticks(kept, [axis.ticks[value].replace(", ", ",\n") for value in kept])
        drawn.set_minor_locator(NullLocator())
    elif axis.scale == "log" and axis.unit == "factor":
        _factor_ticks(drawn, *(axes.get_xlim() if name == "x" else axes.get_ylim()))
    elif axis.unit in _FORMATS:
        form = _FORMATS[axis.unit]
        if axis.scale == "log" and axis.unit == "plain":
            drawn.set_major_locator(LogLocator(subs=(1, 2, 5)))
            drawn.set_minor_locator(NullLocator())
        drawn.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
        if axis.scale == "log":
            drawn.set_minor_formatter(NullFormatter())


def _factor_ticks(drawn: DrawnAxis, low: float, high: float) -> None:
    """Ticks at powers of two, and at 1.5 times them where the axis spans little."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    powers = [2.0**power for power in range(first, last + 1)]
    levels = powers if last - first > 3 else sorted(powers + [1.5 * power for power in powers])
    drawn.set_major_locator(FixedLocator(levels))
    drawn.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    drawn.set_minor_locator(NullLocator())


def _legend(drawing: Drawing, figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend above the panels, with each name once, in the order of the series."""
    if figure.series is None:
        return
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    names = [str(name) for name in figure.series.order if str(name) in entries]
    drawing.legend(
        [entries[name] for name in names],
        names,
        title=figure.series.title or None,
        loc="outside upper left",
        ncols=max(1, min(len(names), 7)),
        alignment="left",
        columnspacing=1.2,
        handletextpad=0.4,
    )
