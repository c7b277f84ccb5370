"""`zipfmax report`: from run directories to the page and, when asked, figures and a Markdown summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zipfmax.errors import UsageError
from zipfmax_reference.records.files import check_writable, write_text
from zipfmax_reports.elements import Picture
from zipfmax_reports.page import Page
from zipfmax_reports.runs import read_run
from zipfmax_reports.static import draw
from zipfmax_reports.style import THEMES
from zipfmax_reports.svg import standalone_svg

_PNG_DPI = 160


def write_report(
    directories: Sequence[Path],
    output: Path | None = None,
    figures: Path | None = None,
    markdown: Path | None = None,
) -> Path:
    """Write the page of one run directory, or of several beside each other.

    Args:
        directories: run directories; of several, the first is the one that the others are compared with.
        output: the HTML file; by default `index.html` in the first directory.
        figures: a folder for the figures as SVG and PNG, light and dark.
        markdown: a file for a summary in Markdown.

    Returns:
        The path of the page.

    Raises:
        UsageError: no directory, one that is not a readable run, or a place that cannot be written.
    """
    if not directories:
        raise UsageError("name at least one run directory")
    runs = [read_run(directory) for directory in directories]
    path = output if output is not None else directories[0] / "index.html"
    check_writable(path, markdown, figures and figures / "any.svg")
    page = Page.of(runs)
    write_text(path, page.html())
    if figures is not None:
        for picture in page.pictures:
            _draw(picture, figures)
    if markdown is not None:
        write_text(markdown, page.markdown())
    return path


def _draw(picture: Picture, folder: Path) -> None:
    """NAME-light.svg, NAME-dark.svg and the same as PNG."""
    for theme in THEMES:
        drawing = draw(picture.figure, theme)
        path = folder / f"{picture.name}-{theme.name}.svg"
        write_text(path, standalone_svg(drawing, picture.name, picture.title, picture.description))
        try:
            drawing.savefig(path.with_suffix(".png"), dpi=_PNG_DPI, bbox_inches="tight")
        except OSError as error:
            raise UsageError(f"cannot write {path.with_suffix('.png')}: {error.strerror or error}") from error
