"""The terminal that every command prints on."""

from __future__ import annotations

from rich.console import Console


def terminal(stderr: bool = False, width: int | None = None, soft_wrap: bool = False) -> Console:
    """A console that prints text as it is: file names and error messages of users are no markup of rich.

    Args:
        stderr: print on standard error.
        width: columns; by default those of the terminal.
        soft_wrap: leave long lines whole.
    """
    return Console(stderr=stderr, width=width, soft_wrap=soft_wrap, markup=False, emoji=False)
