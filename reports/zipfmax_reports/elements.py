"""What a page is made of: tables of text, and figures with their reading, their data and their command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup

from zipfmax_reports.figure import Figure
from zipfmax_reports.static import draw
from zipfmax_reports.style import amount, count, factor, percent, scientific, seconds, size
from zipfmax_reports.svg import inline_svg

Format = Callable[[Any], str]

_LINE = 44
"""Letters of a table's cell that stand on one line."""

MOST_ROWS = 300
"""Rows of a table, unless it says otherwise; the run directory holds the rest, and the caption says so."""

_NUMBERS = (amount, count, factor, percent, scientific, seconds, size)


@dataclass(frozen=True)
class Table:
    """A table of text; `numeric` names the columns that are set to the right."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    numeric: frozenset[str] = frozenset()

    @property
    def wrapped(self) -> frozenset[str]:
        """The columns whose text is so long that it has to wrap."""
        return frozenset(
            heading
            for heading, values in zip(self.columns, zip(*self.rows, strict=True), strict=False)
            if max(map(len, values)) > _LINE
        )

    @classmethod
    def of(
        cls,
        caption: str,
        frame: pd.DataFrame,
        columns: Mapping[str, tuple[str, Format]],
        most: int = MOST_ROWS,
    ) -> Table:
        """The first rows of `frame`, by a heading and a format for each of its columns."""
        if len(frame) > most:
            limits = f"The first {count(most)} of {count(len(frame))} rows; the run directory holds all."
            caption = f"{caption.removesuffix('.')}. {limits}"
            frame = frame.head(most)
        formats = [(frame[name], fmt) for name, (_, fmt) in columns.items()]
        rows = list(zip(*([fmt(value) for value in values] for values, fmt in formats), strict=True))
        numeric = frozenset(heading for heading, fmt in columns.values() if fmt in _NUMBERS)
        return cls(caption, tuple(heading for heading, _ in columns.values()), rows, numeric)


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        name: short and unique; the figure's id and file name.
        title: what it shows.
        reading: how to read it, in a sentence or two.
        description: what a reader who cannot see it should know of its shape.
        caption: what it was drawn from.
        figure: what is drawn.
        table: its data.
        command: the command that measures it again.
        chart: the name of its interactive chart, if it has one.
    """

    name: str
    title: str
    reading: str
    description: str
    caption: str
    figure: Figure
    table: Table
    command: str | None = None
    chart: str | None = None

    @property
    def svg(self) -> Markup:
        """The drawn figure, as SVG in the page's own colours. Its text was escaped when it was written."""
        return Markup(inline_svg(draw(self.figure), self.name, self.title, self.description))


@dataclass(frozen=True)
class Details:
    """A table that opens on demand."""

    summary: str
    table: Table
    opened: bool = False


@dataclass
class Section:
    """A part of the page: a lead sentence, then figures and tables."""

    lead: str
    figures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    details: list[Details] = field(default_factory=list)


def text(value: object) -> str:
    """A value as text; what is missing as an empty string."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    return str(value)
