"""The regression gate's test of itself: each gate run, and how many of each kind failed."""

from __future__ import annotations

from typing import ClassVar

from zipfmax_reference.records.base import Part, Record


class SaidFinding(Part):
    """What the gate says of one cell."""

    case: str
    impl: str
    outcome: str
    """ok, slower, faster, changed, missing or unmeasured."""
    text: str
    update: str | None = None
    """The line that would make the baseline agree, for counted figures that changed."""
    doubtful: bool = False
    """Whether a sharper measurement might well say "slower"."""


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
    said: list[SaidFinding] = []
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
