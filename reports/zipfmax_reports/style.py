"""Colours, markers and number formats, the same in static figures, interactive charts and the page.

Series are told apart by colour and by marker, and the hues are safe for the common kinds of colour blindness
(darker and lighter relatives of Okabe and Ito's set). Speedups run over a purple-orange scale around 1x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

SPEEDUP_SCHEME = "PuOr"
"""Matplotlib's name of the diverging map: orange is slower, purple is faster."""


class Marker(NamedTuple):
    """A marker's name, or its outline, for each of the two renderers."""

    matplotlib: str
    vega: str


MARKERS = {
    "circle": Marker("o", "circle"),
    "square": Marker("s", "square"),
    "triangle": Marker("^", "triangle-up"),
    "diamond": Marker("D", "diamond"),
    "triangle-down": Marker("v", "triangle-down"),
    "plus": Marker("P", "cross"),
    "wedge": Marker("X", "wedge"),
    "star": Marker("*", "M0,-1L.22,-.31H.95L.36,.12L.59,.81L0,.38L-.59,.81L-.36,.12L-.95,-.31H-.22Z"),
    "dash": Marker("_", "stroke"),
}
"""The same in both renderers, by the name that a figure's description gives."""


@dataclass(frozen=True)
class Theme:
    """The colours of one scheme, by what they are for."""

    name: str
    surface: str
    ink: str
    muted: str
    grid: str
    panel: str
    good: str
    bad: str
    mixed: str
    series: tuple[str, ...]

    def colour(self, of: int | Literal["ink", "muted"]) -> str:
        """The colour of the series at a position, or of text."""
        if isinstance(of, int):
            return self.series[of % len(self.series)]
        return self.ink if of == "ink" else self.muted


LIGHT = Theme(
    name="light",
    surface="#fdfdfc",
    ink="#1b1d21",
    muted="#565c66",
    grid="#d9dce1",
    panel="#f1f2f4",
    good="#00704e",
    bad="#b42318",
    mixed="#8a5a00",
    series=("#0066a8", "#b84500", "#007a55", "#9a3a86", "#7d6000", "#3f4650", "#0b8a9e"),
)
DARK = Theme(
    name="dark",
    surface="#14161a",
    ink="#eceef1",
    muted="#a4abb6",
    grid="#343a43",
    panel="#1e2127",
    good="#3fcf9f",
    bad="#ff8a7a",
    mixed="#f0b94d",
    series=("#5db8f0", "#ff9257", "#36c9a2", "#eba2d6", "#ecc352", "#c3c9d2", "#4fd3e6"),
)
THEMES = (LIGHT, DARK)


def settings(theme: Theme) -> dict[Any, Any]:
    """Matplotlib's settings for a scheme."""
    return {
        "figure.facecolor": theme.surface,
        "savefig.facecolor": theme.surface,
        "axes.facecolor": "none",
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.titlesize": 10,
        "axes.titleweight": "normal",
        "axes.labelsize": 9,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "axes.titlelocation": "left",
        "axes.edgecolor": theme.muted,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "font.family": "sans-serif",
        "font.size": 10,
        "lines.linewidth": 1.8,
        "lines.markersize": 6,
    }


def factor(value: float | None) -> str:
    """A ratio with its sign of multiplication, such as `3.2x` with a true multiplication sign."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.2f}×" if value < 10 else f"{value:.1f}×" if value < 100 else f"{value:.0f}×"


def seconds(value: float | None) -> str:
    """A duration in the unit that suits it."""
    if value is None or math.isnan(value):
        return "–"
    if value == 0:
        return "0 s"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def size(value: float | None) -> str:
    """A number of bytes with a binary unit."""
    if value is None or math.isnan(value):
        return "–"
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(value) >= 1024**power:
            return f"{value / 1024**power:.3g} {unit}"
    return f"{value:.0f} B"


def amount(value: float | None) -> str:
    """A large number of operations with its prefix, such as 1.2 G."""
    if value is None or math.isnan(value):
        return "–"
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g}"


def percent(value: float | None) -> str:
    """A share as a whole percentage, with one digit below ten."""
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:.1f} %" if abs(value) < 0.0995 else f"{100 * value:.0f} %"


def count(value: float | None) -> str:
    """A whole number with separators, such as 267,735."""
    if value is None or math.isnan(value):
        return "–"
    return f"{int(value):,}"


def scientific(value: float | None) -> str:
    """A small number, such as an error."""
    return "–" if value is None or math.isnan(value) else f"{value:.2e}"
