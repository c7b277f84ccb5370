"""The gate's judgement of one cell: pure functions of a record and the baseline's line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from zipfmax_bench.baseline import FIGURES, cell_of, interval_of
from zipfmax_bench.timing_lines import STEADY

THRESHOLD = 0.05
"""Slowdown that is let pass, relative, however surely it was seen."""

K = TypeVar("K")
Again = Callable[[Sequence[K]], Mapping[K, "Finding"]]

Outcome = Literal["ok", "slower", "faster", "changed", "missing", "unmeasured"]
FAILING: Sequence[Outcome] = ("slower", "changed", "missing", "unmeasured")


@dataclass(frozen=True)
class Finding:
    """What became of one cell of the baseline."""

    case: str
    impl: str
    outcome: Outcome
    text: str
    update: str | None = None
    """The line that would make the baseline agree, for figures that changed."""
    doubtful: bool = False
    """Whether a sharper measurement might well say "slower"."""

    @property
    def failed(self) -> bool:
        """Whether it fails the gate."""
        return self.outcome in FAILING


@dataclass(frozen=True)
class Change:
    """How a cell's time, relative to a reference measured beside it, changed: exp(log) - 1 is a slowdown."""

    reference: str
    log: float
    uncertainty: float
    """Half-width of the interval of `log`, from both measurements."""
    floor: float
    """Log-ratio between replicates of the same program, which no change below can be told from."""

    def outcome(self, threshold: float) -> Outcome:
        """Slower or faster if surely so and by more than max(threshold, floor), else "ok".

        Sure is that there is a change; how large it is the estimate says. To ask that the whole interval lie
        beyond the threshold would let a slowdown of twice the threshold pass where six processes differ by
        some per cent, as they do.
        """
        if abs(self.log) <= max(self._margin(threshold), self.uncertainty):
            return "ok"
        return "slower" if self.log > 0 else "faster"

    def doubtful(self, threshold: float) -> bool:
        """Nearer to a slowdown that counts than to none, in an interval that contains both."""
        return self._margin(threshold) / 2 < self.log <= self.uncertainty

    def _margin(self, threshold: float) -> float:
        return max(math.log1p(threshold), self.floor)

    def __str__(self) -> str:
        low, high = (math.expm1(self.log + sign * self.uncertainty) for sign in (-1, 1))
        return f"{math.expm1(self.log):+.1%} against {self.reference} ({low:+.1%} to {high:+.1%})"


def judge(cell: Mapping[str, Any], record: Mapping[str, Any] | None, threshold: float = THRESHOLD) -> Finding:
    """Judge a cell of the baseline by a run's record of it, or by its absence.

    Counted figures are compared exactly, in both directions. A time is judged against the reference that it
    is known best against: one that itself varies between processes says nothing.
    """
    case, impl = cell["case"], cell["impl"]
    if record is None:
        return Finding(case, impl, "missing", "the run has no such cell")
    if record["status"] != "ok":
        return Finding(case, impl, "unmeasured", f"{record['status']}: {record.get('reason')}")
    differences = [
        f"{figure} {cell[figure]:,} -> {_number(record.get(figure))}"
        for figure in FIGURES
        if figure in cell and record.get(figure) != cell[figure]
    ]
    if differences:
        return Finding(case, impl, "changed", "; ".join(differences), json.dumps(cell_of(record)))
    kept = [reference for reference in STEADY if f"speedup_vs_{reference}" in cell]
    changes = [change for reference in kept if (change := change_of(cell, record, reference)) is not None]
    if kept and not changes:
        return Finding(case, impl, "unmeasured", f"the run lacks its reference: {' or '.join(kept)}")
    if not changes:
        return Finding(case, impl, "ok", "its time was not kept")
    best = min(changes, key=lambda change: change.uncertainty + change.floor)
    return Finding(case, impl, best.outcome(threshold), str(best), doubtful=best.doubtful(threshold))


def twice(findings: Mapping[K, Finding], again: Again[K]) -> dict[K, Finding]:
    """The findings after a second look: what is slower has been so twice.

    What may be slower is judged again first: one process in a bad place makes an interval from six wide.

    Args:
        findings: of each cell.
        again: judges cells by measurements in fresh processes.
    """
    settled = dict(findings)
    doubtful = [key for key, one in settled.items() if one.doubtful]
    for key, second in (again(doubtful) if doubtful else {}).items():
        settled[key] = replace(second, text=f"in doubt: first {settled[key].text}, then {second.text}")
    slower = [key for key, one in settled.items() if one.outcome == "slower"]
    for key, second in (again(slower) if slower else {}).items():
        text = f"{settled[key].text}; again {second.text}"
        confirmed = second.outcome == "slower"
        settled[key] = replace(second, text=text if confirmed else f"not confirmed: {text}")
    return settled


def blur(record: Mapping[str, Any]) -> float:
    """Half-width of the interval of a cell's log-ratio to the reference that it is known best against.

    Infinite where it has no interval.
    """
    intervals = [interval_of(record, reference) for reference in STEADY if reference != record["impl"]]
    return min((_log_ratio(*known)[1] for known in intervals if None not in known), default=math.inf)


def change_of(cell: Mapping[str, Any], record: Mapping[str, Any], reference: str) -> Change | None:
    """The change of a cell's relative time, or None where either side has no interval for this reference."""
    name = f"speedup_vs_{reference}"
    then = cell.get(name)
    now = interval_of(record, reference)
    if then is None or None in then or None in now:
        return None
    (before, before_width), (after, after_width) = _log_ratio(*then), _log_ratio(*now)
    floor = record.get(f"{name}_floor") or 0.0
    return Change(reference, before - after, math.hypot(before_width, after_width), floor)


def _log_ratio(estimate: Any, low: Any, high: Any) -> tuple[float, float]:
    """Logarithm of a ratio, and the half-width of its interval."""
    return math.log(estimate), math.log(high / low) / 2


def _number(value: Any) -> str:
    return "none" if value is None else f"{value:,}"
