"""The command that shows what was measured: `zipfmax report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    directories: Annotated[
        list[Path], typer.Argument(help="Run directories; the others are compared with the first.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="The page; by default index.html in the first directory.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="A folder for the figures as SVG and PNG, light and dark.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="A file for a summary in Markdown, to paste in a pull request.")
    ] = None,
) -> None:
    """Make the page of a run: is it right, is it worth it, why, and how to repeat it.

    Examples:

        zipfmax report runs/mine
        zipfmax report runs/new runs/old --output both.html --markdown summary.md
    """
    from zipfmax_reports.report import write_report

    print(write_report(directories, output, figures, markdown))
