"""What the options of several commands have in common: their names, their values, their groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import typer

from zipfmax_reference.contestants.registry import names

IMPLEMENTATIONS = f"{', '.join(names())}, or your own as path/file.py:Class or package.module:Class"
"""What --impl takes, in words."""

RECORDS = "Records, as in --out runs/mine --resume"


def option(text: str, group: str, *declarations: str, values: Sequence[str] = (), **more: Any) -> Any:
    """An option of a command.

    Args:
        text: its help.
        group: the heading that it stands under, which holds an example.
        declarations: its names where they do not follow from the parameter's.
        values: what a shell completes.
        more: further arguments of `typer.Option`.
    """
    if values:
        more["autocompletion"] = _completion(values)
    return typer.Option(*declarations, help=text, rich_help_panel=group, **more)


def _completion(values: Sequence[str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete
