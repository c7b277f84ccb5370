"""How a command's function becomes a command line: options in groups, and help that is shown as it was written.

An option belongs to the group that its `rich_help_panel` names. The help is the function's docstring: what is
indented in it, the examples, keeps its lines.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import typer
from typer.core import TyperCommand


class GroupedCommand(TyperCommand):
    """A command whose help lists its options in groups."""

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Paragraphs filled to the width, indented ones as they are."""
        for paragraph in (self.help or "").split("\n\n"):
            formatter.write("\n")
            if paragraph.startswith("    "):
                formatter.write(textwrap.indent(textwrap.dedent(paragraph), "    ").rstrip() + "\n")
            else:
                with formatter.indentation():
                    formatter.write_text(" ".join(paragraph.split()))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Each group under its heading, in the order of the function's parameters."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                plain = "Arguments" if parameter.param_type_name == "argument" else "Options"
                heading = getattr(parameter, "rich_help_panel", None) or plain
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def application_of(functions: Mapping[str, Callable[..., Any]], completes: bool = False) -> typer.Typer:
    """The command line of functions by the names of their commands; of one only, without its name.

    Args:
        functions: what the commands call.
        completes: whether there are options that install a shell's completion.
    """
    made = typer.Typer(add_completion=completes, rich_markup_mode=None, pretty_exceptions_enable=False)
    for name, function in functions.items():
        made.command(name, cls=GroupedCommand)(function)
    return made
