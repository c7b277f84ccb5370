"""Figures of this package's results, drawn by whichever package registered that it draws them.

So nothing here imports a package above this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from zipfmax.errors import UsageError


class Drawing(Protocol):
    """What an entry point of the group `zipfmax.figures` holds."""

    def check(self, path: Path) -> None:
        """Raise UsageError where it does not write files with that ending."""

    def __call__(self, record: Mapping[str, Any], path: Path) -> None:
        """Draw a record into a file."""


def figure(name: str, path: Path) -> Callable[[Mapping[str, Any]], None]:
    """What draws records into a file, which is refused before there is a record to draw.

    Args:
        name: of the entry point.
        path: the file; its ending chooses the format.

    Raises:
        UsageError: nothing is installed that draws it, or not into files with that ending.
    """
    for entry in entry_points(group="zipfmax.figures", name=name):
        drawing: Drawing = entry.load()
        drawing.check(path)
        return partial(drawing, path=path)
    raise UsageError(
        f"nothing is installed that draws the figure of a {name}: pip install 'zipfmax[harness]'"
    )
