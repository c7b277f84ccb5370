"""The terminal that every command prints on."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

_ANY_WIDTH = 100_000


def terminal(stderr: bool = False, width: int | None = None, soft_wrap: bool = False) -> Console:
    """A console that prints text as it is: file names and error messages of users are no markup of rich.

    Args:
        stderr: print on standard error.
        width: columns; by default those of the terminal.
        soft_wrap: leave long lines whole.
    """
    return Console(stderr=stderr, width=width, soft_wrap=soft_wrap, markup=False, emoji=False)


def print_table(console: Console, table: Table) -> None:
    """Print a table: with all its columns, as wide as they are, into a pipe or a file; folded in a terminal."""
    if not console.is_terminal:
        console = Console(file=console.file, width=_ANY_WIDTH, markup=False, emoji=False)
    console.print(table)
