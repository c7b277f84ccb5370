"""Parity: whether one tensor of one implementation agrees with a reference, and where it does not."""

from __future__ import annotations

from typing import ClassVar

from zipfmax_reference.records.base import Part, Real, Record, Verdict


class ParityPart(Part):
    """Error and budget of a group of a tensor's values, such as those of one tail's labels."""

    name: str
    """Which values, in words."""
    error: Real
    """Largest distance from the truth, of the value nearest to or furthest beyond its budget."""
    budget: Real
    """What is allowed there."""
    relative: Real | None = None
    """The error relative to the truth's magnitude."""


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
    """output, loss, grad.NAME, log_prob, ...; protocol.RULE; "*" for a cell that could not be judged."""
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
    grain: str | None = None
    """What the worst error is of: an element, or a group of them."""
    where: str | None = None
    """The place of the worst error, in words."""
    reason: str | None = None
    """Why it was skipped, or what is wrong where that is not a distance."""
    parts: list[ParityPart] = []
    """Error and budget by group of values."""
    cause: str | None = None
    """The likely cause, in one sentence."""
