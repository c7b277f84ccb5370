"""The one error that the command line turns into a single line, and the words for a name that does not exist."""

from __future__ import annotations

from collections.abc import Iterable


class UsageError(Exception):
    """Wrong use or missing input: the message says what was wrong and what is allowed, in one line."""


def unknown(kind: str, given: object, choices: Iterable[str]) -> str:
    """What to say of a value that is none of the choices: the nearest of them, if one is near, and all.

    Args:
        kind: what the value names, such as "dtype".
        given: the value.
        choices: what is allowed, in the order to list them.
    """
    from difflib import get_close_matches

    allowed = list(choices)
    near = get_close_matches(str(given), allowed, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown {kind} {given!r}; {hint}choose one of: {', '.join(allowed)}"
