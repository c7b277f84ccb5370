"""The regression gate's test of itself: each gate run, and how many of each kind failed."""

from __future__ import annotations

from typing import ClassVar, Literal

from zipfmax_reference.records.base import Part, Record

Outcome = Literal["ok", "slower", "faster", "changed", "missing", "unmeasured"]
"""What became of a cell of the baseline."""


class Finding(Part):
    """What the gate says of one cell."""

    case: str
    impl: str
    outcome: Outcome
    text: str
    update: str | None = None
    """The line that would make the baseline agree, for counted figures that changed."""
    doubtful: bool = False
    """Whether a sharper measurement might well say "slower"."""

    @property
    def failed(self) -> bool:
        """Whether it fails the gate."""
        return self.outcome not in ("ok", "faster")


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
    said: list[Finding] = []
    """Of cells that failed or that had a fault planted."""
    seconds: float
    """How long it took."""


class SelfTest(Record):
    """The gate runs of one kind, counted: a line of `selftest.jsonl`."""

    FILE: ClassVar[str] = "selftest"
    KEY: ClassVar[tuple[str, ...]] = ("kind",)

    kind: str
    runs: int
    failed: int
    required: str
    """How many should fail: "all", "none", "at most 1%" or "at least 95%"."""
    holds: bool
    share: float
    """failed / runs."""
