"""`zipfmax report`: from run directories to the page and, when asked, figures and a Markdown summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zipfmax.errors import UsageError
from zipfmax.reports.page import render
from zipfmax.reports.rundir import read_run


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
    page = output if output is not None else directories[0] / "index.html"
    _write(page, render(runs[0]))
    return page


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
