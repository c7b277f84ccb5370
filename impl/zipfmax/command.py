"""The `zipfmax` command: finds the commands that are installed, and runs one.

A command is an entry point of the group `zipfmax.commands`: a function whose parameters Typer turns into
options. It belongs to the package that does the work, and is imported only when it is called; so this module
imports no package above it, and `zipfmax --help` needs nothing but the standard library.

Exit status everywhere: 0 holds, 1 a finding (parity failed, a regression), 2 wrong use, missing input or
nothing to judge, with one line on standard error and no traceback.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from zipfmax.errors import UsageError, unknown

if TYPE_CHECKING:
    from typer import Typer

GROUP = "zipfmax.commands"
COMPLETION = ("--install-completion", "--show-completion")
COMPLETING = "_ZIPFMAX_COMPLETE"
"""The environment variable by which a shell asks for completions."""
_SHELL_IS_NAMED = "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"
"""The environment variable that makes Typer take the shell's name, where it would look for the calling shell."""
INTERRUPTED = 130


def commands() -> dict[str, EntryPoint]:
    """The installed commands by name, in order of the alphabet."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def application(name: str) -> Typer:
    """The command line of one command.

    Raises:
        UsageError: no such command.
        ModuleNotFoundError: a package that it needs is missing.
    """
    found = commands()
    if name not in found:
        raise UsageError(unknown("command", name, found))
    from zipfmax.command_line import application_of

    return application_of({name: found[name].load()})


def all_applications() -> Typer:
    """Every command in one, which completes names and options in a shell."""
    from zipfmax.command_line import application_of

    return application_of({name: entry.load() for name, entry in commands().items()}, completes=True)


def summary(entry: EntryPoint) -> str:
    """First line of a command's docstring, read from its source without importing it."""
    package, *rest = entry.module.split(".")
    spec = find_spec(package)  # of a module inside it, it would import what lies above that
    if spec is None or spec.origin is None:
        return ""
    source = Path(spec.origin).parent.joinpath(*rest).with_suffix(".py") if rest else Path(spec.origin)
    for node in ast.parse(source.read_bytes()).body if source.is_file() else ():
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
        "zipfmax COMMAND --help shows the options of one, with examples; zipfmax --version, the version.",
        "zipfmax --install-completion [SHELL] completes commands and options in your shell.",
    ]
    return "\n".join(lines)


def run(arguments: Sequence[str]) -> None:
    """Do what the arguments ask for.

    Raises:
        UsageError: wrong use or missing input.
        SystemExit: with the command's exit status.
    """
    try:
        if COMPLETING in os.environ or (arguments and arguments[0].partition("=")[0] in COMPLETION):
            if len(arguments) > 1 or "=" in "".join(arguments):
                os.environ[_SHELL_IS_NAMED] = "1"
            run_application(all_applications(), arguments, "zipfmax")
        if not arguments or arguments[0] in ("--help", "-h"):
            print(usage())
            sys.exit(0 if arguments else 2)
        name, *rest = arguments
        if name == "--version":
            print(version("zipfmax"))
            return
        if name.startswith("-"):
            raise UsageError(unknown("option", name, ("--help", "--version", *COMPLETION, "a command")))
        _refuse_empty(rest)
        run_application(application(name), rest, f"zipfmax {name}")
    except ModuleNotFoundError as error:
        extra = _extra(error.name)
        if extra is None:
            raise
        raise UsageError(
            f"{arguments[0]} needs the package {error.name}, which is not installed: "
            f"pip install 'zipfmax[{extra}]'"
        ) from error


def run_application(application: Typer, arguments: Sequence[str], name: str) -> NoReturn:
    """Run a command and exit with its status; what Typer finds wrong becomes a `UsageError`."""
    import typer
    from typer.main import get_command

    try:
        status = get_command(application).main(args=arguments, prog_name=name, standalone_mode=False)
    except typer.TyperException as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        raise UsageError(f"{message}; see {name} --help") from error
    except typer.Abort:
        sys.exit(INTERRUPTED)
    sys.exit(status or 0)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Raise UsageError for an empty value, which no option has: an unset variable of a script."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        option, equals, value = argument.partition("=")
        if not argument:
            where = before if before.startswith("--") else "an argument"
            raise UsageError(f"{where} is empty: give it a value, or leave it out")
        if option.startswith("--") and equals and not value:
            raise UsageError(f"{option} is empty: give it a value, or leave it out")


def _extra(module: str | None) -> str | None:
    """The extra that installs a module, or None where none does: then its absence is a fault, not wrong use."""
    wanted = re.sub(r"[-_.]+", "-", (module or "").partition(".")[0]).lower()
    for line in requires("zipfmax") or ():
        found = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)", line)
        # A distribution is called as its module is, with what it was built for added: paddlepaddle, tensorflow-cpu.
        if found and wanted and found[1].lower().startswith(wanted):
            return found[2]
    return None


def main() -> NoReturn:
    """Run the command line; turns a `UsageError` into one line and exit status 2."""
    try:
        run(sys.argv[1:])
    except UsageError as error:
        print(f"zipfmax: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


if __name__ == "__main__":
    main()
