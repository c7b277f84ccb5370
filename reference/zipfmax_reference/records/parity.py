"""Parity: whether one tensor of one implementation agrees with a reference, and where it does not."""

from __future__ import annotations

from typing import ClassVar

from zipfmax_reference.records.base import Part, Real, Record, Verdict


class ParityPart(Part):
    """How far off one group of a tensor's elements is."""

    name: str
    """Such as "shortlist", "tail 2", "targets", "absent classes", "ranks 1,000 to 9,999"."""
    error: Real
    """Root mean square of the distance from the truth."""
    budget: Real
    """What is allowed."""
    relative: Real
    """The error over the root mean square of the truth."""


class Parity(Record):
    """One tensor of one case against one reference: a line of `parity.jsonl`."""

    FILE: ClassVar[str] = "parity"
    KEY: ClassVar[tuple[str, ...]] = ("case", "impl", "against", "tensor")

    case: str
    """Id of the case."""
    impl: str
    """Name of the implementation that is judged."""
    against: str
    """Name of the reference."""
    tensor: str
    """output, loss, grad.NAME, log_prob, ...; "*" for a cell that could not be judged."""
    dtype: str = "float32"
    """The case's."""
    status: Verdict
    """Whether the error is within the budget."""
    error: Real | None = None
    """Distance from the float64 truth, of the element nearest to, or furthest beyond, its budget."""
    budget: Real | None = None
    """What is allowed there."""
    reference_error: Real | None = None
    """Distance of the reference from the truth."""
    norm: str | None = None
    """Which norm `error` is in: "max" or "rms"."""
    error_ulp: Real | None = None
    """Largest error in units in the last place of the largest magnitude."""
    reason: str | None = None
    """Why it was skipped, or what is wrong where that is not a distance."""
    parts: list[ParityPart] = []
    """Error and budget by decade of label rank, for the shortlist, each tail, targets and absent classes."""
    grain: str | None = None
    """What is nearest to its budget, or furthest beyond it: an element, a row (one class), or a group."""
    where: str | None = None
    """Which element, row or group that is."""
    cause: str | None = None
    """The likely cause, in one sentence."""
