"""The other checks: planted faults, features of peers, stability, relations that need no reference."""

from __future__ import annotations

from typing import ClassVar, Literal

from zipfmax_reference.records.base import Real, Record, Verdict


class Mutant(Record):
    """One planted fault, or the control without one: a line of `mutants.jsonl`."""

    FILE: ClassVar[str] = "mutants"
    KEY: ClassVar[tuple[str, ...]] = ("mutant",)

    mutant: str
    """Name of the fault; "control" for the layer without one."""
    fault: str
    """What is wrong with it."""
    cells: int = 0
    """Cells that it was put through."""
    cells_failed: int = 0
    """Cells in which it was found wrong."""
    caught: bool = False
    """Whether it was found wrong at all."""
    tensor: str | None = None
    """What gave it away first."""
    case: str | None = None
    """Where."""
    error: Real | None = None
    budget: Real | None = None
    reason: str | None = None


class Conformance(Record):
    """One feature of one implementation: a line of `conformance.jsonl`."""

    FILE: ClassVar[str] = "conformance"
    KEY: ClassVar[tuple[str, ...]] = ("feature", "impl")

    feature: str
    impl: str
    verdict: Literal["agrees", "differs", "cannot", "not run"]
    """With the definition, or with torch.nn's documented behaviour where the definition says nothing."""
    detail: str | None = None


class Stability(Record):
    """One tensor of one implementation under a change that should not matter: a line of `stability.jsonl`."""

    FILE: ClassVar[str] = "stability"
    KEY: ClassVar[tuple[str, ...]] = ("impl", "change", "tensor")

    impl: str
    change: str
    """"again", "rows permuted" or "in two halves"."""
    tensor: str
    verdict: str
    difference: Real
    """Largest difference between the two results."""


class Metamorphic(Record):
    """One relation between an implementation's own results: a line of `metamorphic.jsonl`."""

    FILE: ClassVar[str] = "metamorphic"
    KEY: ClassVar[tuple[str, ...]] = ("case", "impl", "relation")

    case: str
    impl: str
    relation: str
    status: Verdict
    error: Real | None = None
    budget: Real | None = None
    reason: str | None = None


class TimingFault(Record):
    """One planted way to claim time, or an honest layer: a line of `timing_faults.jsonl`."""

    FILE: ClassVar[str] = "timing_faults"
    KEY: ClassVar[tuple[str, ...]] = ("name",)

    name: str
    """Of the layer."""
    text: str
    """What it does."""
    honest: bool
    """Whether it should keep its time."""
    status: str
    """What became of its cell."""
    reason: str | None = None
    """Why it is not "ok"."""
    speedup_vs_torch: float | None = None
    """Times less time than torch.nn's layer."""
    delegates: str | None = None
    """Another implementation that it called."""
