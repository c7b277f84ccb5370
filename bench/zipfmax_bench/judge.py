"""The gate's judgement of one cell: pure functions of a record and the baseline's line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from zipfmax.errors import UsageError
from zipfmax_bench.baseline import BaselineCell, cell_of
from zipfmax_bench.timings import STEADY, interval_of
from zipfmax_reference.records import Finding, Outcome, Timing

THRESHOLD = 0.05
"""Slowdown that is let pass, relative, however surely it was seen."""

K = TypeVar("K")
Again = Callable[[Sequence[K]], Mapping[K, Finding]]


def check_threshold(threshold: float) -> None:
    """Raise UsageError where a threshold is not a share."""
    if not 0 <= threshold < 1:
        raise UsageError(f"--threshold should be a share between 0 and 1, got {threshold:g}")


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
        """Slower or faster if surely so and by more than max(threshold, floor); "ok" if surely not so slow.

        Sure is that there is a change; how large it is the estimate says. To ask that the whole interval lie
        beyond the threshold would let a slowdown of twice the threshold pass where six processes differ by
        some per cent, as they do. So "ok" asks that the interval, and what replicates differ by, exclude
        twice the threshold; what allows for it is "undecided".
        """
        if abs(self.log) > max(self._margin(threshold), self.uncertainty):
            return "slower" if self.log > 0 else "faster"
        shown = self.log + self.uncertainty < _excluded(threshold) and self.floor < _excluded(threshold)
        return "ok" if shown else "undecided"

    def _margin(self, threshold: float) -> float:
        return max(math.log1p(threshold), self.floor)

    def __str__(self) -> str:
        low, high = (math.expm1(self.log + sign * self.uncertainty) for sign in (-1, 1))
        return f"{math.expm1(self.log):+.1%} against {self.reference} ({low:+.1%} to {high:+.1%})"


def _excluded(threshold: float) -> float:
    """Log-ratio that the interval of an unchanged cell has to exclude."""
    return math.log1p(2 * threshold)


def judge(cell: BaselineCell, timing: Timing | None, threshold: float = THRESHOLD) -> Finding:
    """Judge a cell of the baseline by a run's record of it, or by its absence.

    Counted figures are compared exactly, in both directions. A time is judged against the reference that it
    is known best against: one that itself varies between processes says nothing.
    """

    def found(outcome: Outcome, text: str, **more: Any) -> Finding:
        return Finding(case=cell.case, impl=cell.impl, outcome=outcome, text=text, **more)

    if timing is None:
        return found("missing", "the run has no such cell")
    if timing.status != "ok":
        return found("unmeasured", f"{timing.status}: {timing.reason}")
    differences = [
        f"{figure} {then:,} -> {_number(now)}"
        for figure, then in cell.counted().items()
        if (now := getattr(timing, figure)) != then
    ]
    if differences:
        return found("changed", "; ".join(differences), update=cell_of(timing).line())
    kept = [reference for reference in STEADY if cell.ratio(reference) is not None]
    changes = [change for reference in kept if (change := change_of(cell, timing, reference)) is not None]
    if kept and not changes:
        return found("unmeasured", f"the run lacks its reference: {' or '.join(kept)}")
    if not changes:
        return found("ok", "its time was not kept")
    best = min(changes, key=lambda change: change.uncertainty + change.floor)
    outcome = best.outcome(threshold)
    return found(outcome, str(best), doubtful=outcome == "undecided")


def twice(findings: Mapping[K, Finding], again: Again[K]) -> dict[K, Finding]:
    """The findings after a second look: what is slower has been so twice.

    What is undecided is judged again first: one process in a bad place makes an interval from six wide.

    Args:
        findings: of each cell.
        again: judges cells by measurements in fresh processes.
    """
    settled = dict(findings)
    undecided = [key for key, one in settled.items() if one.outcome == "undecided"]
    for key, second in (again(undecided) if undecided else {}).items():
        text = f"in doubt: first {settled[key].text}, then {second.text}"
        settled[key] = second.model_copy(update={"text": text})
    slower = [key for key, one in settled.items() if one.outcome == "slower"]
    for key, second in (again(slower) if slower else {}).items():
        text = f"{settled[key].text}; again {second.text}"
        said = text if second.outcome == "slower" else f"not confirmed: {text}"
        settled[key] = second.model_copy(update={"text": said})
    return settled


def suspected(findings: Mapping[K, Finding]) -> list[K]:
    """The cells that are, or may be, slower."""
    return [key for key, one in findings.items() if one.outcome in ("slower", "undecided")]


def unconfirmed(finding: Finding) -> Finding:
    """The finding of a cell that only an earlier measurement calls slower: it may be the machine that changed."""
    if finding.outcome != "slower":
        return finding
    text = f"slower than the baseline, which --base REVISION would confirm: {finding.text}"
    return finding.model_copy(update={"outcome": "undecided", "text": text})


def confirmed(findings: Mapping[K, Finding], beside: Again[K]) -> dict[K, Finding]:
    """The findings after what is suspected was measured beside the base revision, twice where it is slower.

    Args:
        findings: of each cell, from the baseline.
        beside: judges cells by interleaved measurements of base and head, in fresh processes.
    """
    keys = suspected(findings)
    if not keys:
        return dict(findings)
    settled = {}
    for key, second in twice(beside(keys), beside).items():
        text = f"suspected: {findings[key].text}; beside the base: {second.text}"
        settled[key] = second.model_copy(update={"text": text})
    return {**findings, **settled}


def blur(timing: Timing) -> float:
    """Half-width of the interval of a cell's log-ratio to the reference that it is known best against.

    Infinite where it has no interval.
    """
    intervals = [interval_of(timing, reference) for reference in STEADY if reference != timing.impl]
    return min((_log_ratio(*known)[1] for known in intervals if None not in known), default=math.inf)


def change_of(cell: BaselineCell, timing: Timing, reference: str) -> Change | None:
    """The change of a cell's relative time, or None where either side has no interval for this reference."""
    then = cell.ratio(reference)
    now = interval_of(timing, reference)
    if then is None or None in then or None in now:
        return None
    (before, before_width), (after, after_width) = _log_ratio(*then), _log_ratio(*now)
    floor = getattr(timing, f"speedup_vs_{reference}_floor") or 0.0
    return Change(reference, before - after, math.hypot(before_width, after_width), floor)


def _log_ratio(estimate: Any, low: Any, high: Any) -> tuple[float, float]:
    """Logarithm of a ratio, and the half-width of its interval."""
    return math.log(estimate), math.log(high / low) / 2


def _number(value: Any) -> str:
    return "none" if value is None else f"{value:,}"
