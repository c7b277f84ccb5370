"""What the protocol of calls asks: a rule drives one fresh module through a few calls, and judges what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from zipfmax_reference.runs.case import DTYPES
from zipfmax_reference.truth.session import CallSession

Steps = Callable[[CallSession], None]


@dataclass(frozen=True)
class Rule:
    """One rule; its name is what is held."""

    steps: Steps
    optional: bool
    """Whether a layer may refuse it, by NotPromisedError. What it does not refuse has to be right."""
    large: bool
    """Whether it is asked of large cases too."""
    dtypes: tuple[str, ...]
    """In which it is asked."""
    devices: tuple[str, ...]
    """On which kinds it is asked."""


RULES: dict[str, Rule] = {}


def rule(
    *,
    optional: bool = False,
    large: bool = False,
    dtypes: tuple[str, ...] = DTYPES,
    devices: tuple[str, ...] = ("cpu", "cuda"),
) -> Callable[[Steps], Steps]:
    """Enter a function among the rules, under its own name with hyphens."""

    def enter(steps: Steps) -> Steps:
        RULES[steps.__name__.replace("_", "-")] = Rule(steps, optional, large, dtypes, devices)
        return steps

    return enter
