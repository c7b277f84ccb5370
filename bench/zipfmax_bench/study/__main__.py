"""`python -m zipfmax_bench.study`: `zipfmax study` where the package is not installed but on the path.

On a machine with a GPU, from a checkout; then with --resume, as often as it takes:

    PYTHONPATH=impl:reference:bench:reports python -m zipfmax_bench.study --preset gpu --out OUT --limit 480
"""

from __future__ import annotations

import sys

from zipfmax.command import run_application
from zipfmax.command_line import application_of
from zipfmax.errors import UsageError


def main() -> None:
    """The command; a `UsageError` is one line and exit status 2."""
    from zipfmax_bench.study.command import study

    try:
        run_application(application_of({"study": study}), sys.argv[1:], "zipfmax study")
    except UsageError as error:
        print(f"zipfmax study: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
