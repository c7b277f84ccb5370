"""The one error that the command line turns into a single line, and how errors and unknown names are told."""

from __future__ import annotations

from collections.abc import Iterable


class UsageError(Exception):
    """Wrong use or missing input: the message says what was wrong and what is allowed, in one line."""


MOST_CHARACTERS = 300
"""Of an error that is told in one line."""


def one_line(error: BaseException) -> str:
    """An error as "TypeName: message", cut at `MOST_CHARACTERS`.

    A `UsageError` is its message alone, an error without a message its name alone.
    """
    name, message = type(error).__name__, str(error)
    if isinstance(error, UsageError):
        return shortened(message)
    return shortened(f"{name}: {message}" if message else name)


def shortened(text: str) -> str:
    """The text in one line, cut at `MOST_CHARACTERS`."""
    line = " ".join(text.split())
    return line if len(line) <= MOST_CHARACTERS else f"{line[: MOST_CHARACTERS - 4]} ..."


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
