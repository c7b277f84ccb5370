"""The `zipfmax` command: finds the commands that are installed, and runs one.

A command is an entry point of the group `zipfmax.commands`: a function whose parameters Typer turns into
options. It belongs to the package that does the work, and is imported only when it is called; so this module
imports no package above it, and `zipfmax --help` needs nothing but the standard library.

Exit status everywhere: 0 holds, 1 a finding (parity failed, a regression), 2 wrong use, missing input or
nothing to judge, with one line on standard error and no traceback.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from zipfmax.errors import UsageError

if TYPE_CHECKING:
    from typer import Typer

GROUP = "zipfmax.commands"


def commands() -> dict[str, EntryPoint]:
    """The installed commands by name, in order of the alphabet."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def application(name: str) -> Typer:
    """The command line of one command.

    Raises:
        UsageError: no such command, or a package that it needs is missing.
    """
    found = commands()
    if name not in found:
        near = get_close_matches(name, found, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; choose one of: {', '.join(found)}"
        raise UsageError(f"unknown command {name!r}{hint}")
    try:
        import typer

        function = found[name].load()
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{name} needs the package {error.name}, which is not installed: pip install 'zipfmax[harness]'"
        ) from error
    made = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    made.command()(function)
    return made


def summary(entry: EntryPoint) -> str:
    """First line of a command's docstring, read from its source without importing it."""
    spec = find_spec(entry.module)
    source = spec.origin if spec is not None else None
    if source is None:
        return ""
    for node in ast.parse(Path(source).read_bytes()).body:
        if isinstance(node, ast.FunctionDef) and node.name == entry.attr:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


def usage() -> str:
    """What `zipfmax --help` prints."""
    found = commands()
    width = max(map(len, found), default=0)
    lines = [
        "Usage: zipfmax COMMAND [OPTIONS]",
        "",
        "Adaptive softmax that is fast, verified and measured.",
        "",
        "Commands:",
        *(f"  {name:{width}}  {summary(entry)}" for name, entry in found.items()),
        "",
        "zipfmax COMMAND --help shows the options of one; zipfmax --version, the version.",
    ]
    return "\n".join(lines)


def run(arguments: Sequence[str]) -> None:
    """Do what the arguments ask for.

    Raises:
        UsageError: wrong use or missing input.
        SystemExit: with the command's exit status.
    """
    if not arguments or arguments[0] in ("--help", "-h"):
        print(usage())
        sys.exit(0 if arguments else 2)
    name, *rest = arguments
    if name == "--version":
        print(version("zipfmax"))
        return
    if name.startswith("-"):
        raise UsageError(f"unknown option {name!r}; choose --help, --version or a command")
    application(name)(args=rest, prog_name=f"zipfmax {name}")


def main() -> NoReturn:
    """Run the command line; turns a `UsageError` into one line and exit status 2."""
    try:
        run(sys.argv[1:])
    except UsageError as error:
        print(f"zipfmax: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


if __name__ == "__main__":
    main()
