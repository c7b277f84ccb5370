"""What a parity run found, for its reader: failures grouped by cause, one command each, the verdict last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, field

from zipfmax_reference.truth.oracle import WHOLE, Attempts, Record, fault

MOST = 10
"""Causes that are shown; the records hold the rest."""


@dataclass
class Cause:
    """Failures of one implementation that look alike."""

    worst: Record
    tensors: dict[str, None] = field(default_factory=dict)
    against: dict[str, None] = field(default_factory=dict)
    cells: set[str] = field(default_factory=set)

    def add(self, record: Record) -> None:
        """Count a failure."""
        self.tensors[record["tensor"]] = None
        self.against[record["against"]] = None
        self.cells.add(record["case"])
        if share(record) > share(self.worst):
            self.worst = record

    def text(self, tried: set[str]) -> str:
        """The implementation, what is wrong of which tensors at the worst, and in how many of its cells."""
        if self.worst["tensor"] == WHOLE:
            given_up = self.cells == tried and len(self.cells) == Attempts.CELLS
            more = "; it was not tried in others" if given_up else ""
            return f"{self.worst['impl']}: {self.worst['reason']} ({count(self.cells, 'cell')}{more})"
        first, *others = self.tensors
        names = f"{first} and {count(others, 'other tensor')}" if len(others) > 2 else ", ".join(self.tensors)
        cells = f"{count(self.cells, 'cell')}, against {', '.join(self.against)}"
        return f"{self.worst['impl']}, {names}: {fault(self.worst)} ({cells})"


def causes(failures: Sequence[Record]) -> list[Cause]:
    """The failures grouped: by the likely cause where one is known, by the reason, or by the tensor."""
    groups: dict[tuple[str, str], Cause] = {}
    for record in failures:
        alike = record["cause"] or record["reason"] or record["tensor"]
        groups.setdefault((record["impl"], alike), Cause(record)).add(record)
    return sorted(groups.values(), key=lambda cause: len(cause.cells), reverse=True)


def lines(
    failures: Sequence[Record], tried: dict[str, set[str]], rerun: Callable[[str, str], str], kept: str
) -> Iterator[str]:
    """At most `MOST` causes, those of most cells first, each with the command that shows it again.

    Args:
        failures: records whose status is "fail".
        tried: by implementation, the ids of the cells that it was put to.
        rerun: the command for an implementation and a case's id.
        kept: where the other records are, in words.
    """
    found = causes(failures)
    for cause in found[:MOST]:
        impl = cause.worst["impl"]
        yield f"FAILED {cause.text(tried[impl])}"
        yield f"  {rerun(impl, cause.worst['case'])}"
    if len(found) > MOST:
        yield f"and {count(found[MOST:], 'other cause')}: {kept}"


def share(record: Record) -> float:
    """The error over its budget; infinity for what is wrong without a distance."""
    error, budget = record["error"], record["budget"]
    if error is None or budget is None:
        return float("inf") if record["status"] == "fail" else 0.0
    if budget == 0:
        return 0.0 if error == 0 else float("inf")
    return float(error / budget)


def count(things: Sized, name: str) -> str:
    """The number of things with their name: "1 cell", "2 cells"."""
    return f"{len(things):,} {name}{'s' if len(things) != 1 else ''}"
