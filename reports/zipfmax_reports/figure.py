"""The plain description of a figure, from which `static` draws it with Matplotlib and `interactive` with Vega-Lite.

A description names columns of a table and says what stands along the axes, which marks are drawn, how series
are told apart, and which lines are for reference. It holds no colour and no drawing code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

PANEL = (4.6, 3.5)
"""Width and height of a panel in inches, unless a figure says otherwise."""

SERIES_MARKERS = ("circle", "square", "triangle", "diamond", "triangle-down", "plus", "wedge")
"""By position of a series; as many as a theme has colours for series."""


@dataclass(frozen=True)
class Axis:
    """What stands along an axis.

    Attributes:
        column: of the rows.
        title: with the unit.
        scale: "category" puts values at equal distances in the order of `ticks`, or as they come without.
        unit: how numbers are written: as they are, with separators (count), with a multiplication sign
            (factor; a logarithmic axis is in powers of two), as bytes, or as powers of ten.
        ticks: the values that are labelled, and their words; without, the renderer chooses.
        limits: both ends; without, the data decide.
        grid: whether lines cross the panel at the ticks.
    """

    column: str
    title: str = ""
    scale: Literal["linear", "log", "category"] = "linear"
    unit: Literal["plain", "count", "factor", "bytes", "power"] = "plain"
    ticks: Mapping[Any, str] | None = None
    limits: tuple[float, float] | None = None
    grid: bool = False


@dataclass(frozen=True)
class Look:
    """How a series is told apart.

    Attributes:
        colour: the position of a series' colour, or a colour of the text's.
        marker: a name of `style.MARKERS`.
        size: of the marker, in points.
    """

    colour: int | Literal["ink", "muted"]
    marker: str
    size: float = 6.0

    @classmethod
    def at(cls, position: int) -> Look:
        """The look of the series at this position."""
        return cls(position, SERIES_MARKERS[position % len(SERIES_MARKERS)])


@dataclass(frozen=True)
class Series:
    """Which rows belong together.

    Attributes:
        column: of the rows; a series for each value.
        order: the values that are drawn, in order; empty for all, as they come.
        title: of the legend.
        looks: of the values that do not look as their position says.
    """

    column: str
    order: tuple[Any, ...] = ()
    title: str = ""
    looks: Mapping[Any, Look] = field(default_factory=dict)

    def look(self, name: Any) -> Look:
        """The look of one of `order`."""
        return self.looks.get(name) or Look.at(self.order.index(name))


@dataclass(frozen=True)
class Marks:
    """One kind of mark for every row, or for those in which the column `where` is true.

    Attributes:
        kind: "line" joins a series' points along x and marks each; "points" and "ticks" do not join;
            "bars" lie along x, stacked in the order of the series; "cells" fill a grid of categories with
            the speedup's colours.
        where: a column of truth values.
        interval: the columns of the lower and the upper end of each point's interval, along the axis that
            is not a category.
        dashed: a column of truth values: lines of such rows are dashed.
        dodge: the distance between series that share a place: along y where that is a category, else x.
        opacity: from 0 to 1.
        text: a column of words that are written in a cell or a bar, or beside a point.
        value: of cells, the column of base-2 logarithms that is coloured.
        by: of lines without a series, the column that tells one line from another.
        span: of cells, the values of the strongest colour of one side, of the middle, and of the other side.
    """

    kind: Literal["line", "points", "stars", "ticks", "bars", "cells"]
    where: str = ""
    interval: tuple[str, str] | None = None
    dashed: str = ""
    dodge: float = 0.0
    opacity: float = 1.0
    text: str = ""
    value: str = ""
    by: str = ""
    span: tuple[float, float, float] = (-1.0, 0.0, 1.0)


@dataclass(frozen=True)
class ReferenceLine:
    """A line for reference: at a value of one axis, or where both axes are equal.

    Attributes:
        axis: "x", "y" or "equal".
        at: the value; without effect for "equal".
        label: words beside it.
        quiet: whether it only divides, in the grid's colour; otherwise it is dashed in the text's colour.
    """

    axis: Literal["x", "y", "equal"]
    at: float = 1.0
    label: str = ""
    quiet: bool = False


@dataclass(frozen=True)
class Panels:
    """Panels that share their axes: one for each value of a column.

    Attributes:
        column: of the rows.
        titles: the values in order, and the words above each panel.
        across: panels beside each other; 0 for all.
    """

    column: str
    titles: Mapping[Any, str]
    across: int = 0


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        summary: what it shows, in a sentence for screen readers.
        rows: a row for each mark.
        x: the horizontal axis.
        y: the vertical axis; categories run from top to bottom.
        marks: drawn in this order.
        series: what tells rows apart, if anything does.
        rules: lines for reference.
        panels: what the panels are, if there are several.
        size: width and height of a panel in inches.
        title: words above the figure, where it stands without a page.
    """

    summary: str
    rows: pd.DataFrame
    x: Axis
    y: Axis
    marks: tuple[Marks, ...]
    series: Series | None = None
    rules: tuple[ReferenceLine, ...] = ()
    panels: Panels | None = None
    size: tuple[float, float] = PANEL
    title: str = ""

    def rows_of(self, panel: Any) -> pd.DataFrame:
        """The rows of the panel with this value."""
        return self.rows if self.panels is None else self.rows[self.rows[self.panels.column] == panel]
