"""The regression gate's test of itself: each gate run, and how many of each kind failed."""

from __future__ import annotations

from typing import ClassVar, Literal

from zipfmax_reference.records.base import Part, Record

Outcome = Literal["ok", "slower", "faster", "undecided", "changed", "missing", "unmeasured"]
"""What became of a cell of the baseline. "undecided": neither a slowdown nor its absence has been shown."""


class Finding(Part):
    """What the gate says of one cell."""

    case: str
    impl: str
    outcome: Outcome
    text: str
    update: str | None = None
    """The line that would make the baseline agree, for counted figures that changed."""
    doubtful: bool = False
    """Whether a sharper measurement could decide it."""

    @property
    def failed(self) -> bool:
        """Whether it fails the gate."""
        return self.outcome not in ("ok", "faster", "undecided")


class SelfTestRun(Record):
    """One gate run: a line of `selftest_runs.jsonl`."""

    FILE: ClassVar[str] = "selftest_runs"
    KEY: ClassVar[tuple[str, ...]] = ("kind", "run")

    kind: str
    """What was planted."""
    run: int
    """Which of its kind."""
    failed: bool
    """Whether the gate failed, where a fault is planted for that fault."""
    undecided: bool = False
    """Whether it did not fail and a cell ended undecided."""
    said: list[Finding] = []
    """Of cells that failed, were undecided or had a fault planted."""
    seconds: float
    """How long it took."""


class SelfTest(Record):
    """The gate runs of one kind, counted: a line of `selftest.jsonl`."""

    FILE: ClassVar[str] = "selftest"
    KEY: ClassVar[tuple[str, ...]] = ("kind",)

    kind: str
    runs: int
    failed: int
    undecided: int = 0
    """Gate runs that did not fail, with a cell that ended undecided."""
    required: str
    """How many should fail: "all", "none", "at most 1%" or "at least 95%"."""
    holds: bool
    share: float
    """failed / runs."""
