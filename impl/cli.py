"""The `zipfmax` command: the door to every room. Each command imports its room when it is called.

Exit status everywhere: 0 holds, 1 a finding (parity failed, a regression), 2 wrong use or missing input, with
one line on standard error and no traceback.
"""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from zipfmax.errors import UsageError

app = typer.Typer(
    name="zipfmax",
    help=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Adaptive softmax that is fast, verified and measured."""


def main() -> NoReturn:
    """Run the command line; turns a `UsageError` into one line and exit status 2."""
    try:
        app()
    except UsageError as error:
        print(f"zipfmax: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


if __name__ == "__main__":
    main()
