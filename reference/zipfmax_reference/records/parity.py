"""Parity: whether one tensor of one implementation agrees with a reference, and where it does not."""

from __future__ import annotations

from typing import ClassVar, Literal

from zipfmax_reference.records.base import Part, Real, Record, Verdict


class ParityPart(Part):
    """Error and budget of some of a tensor's elements: those of the classes that are named."""

    kind: Literal["decade", "shortlist", "tail", "targets", "absent"]
    """Classes by decade of their rank, of the shortlist, of a tail, of the batch's labels, or not in it."""
    number: int | None = None
    """Which decade (0 is ranks 0 to 9, 1 is 10 to 99, ...) or which tail."""
    n_values: int
    """How many elements."""
    error: Real
    """Largest distance from the truth."""
    budget: Real
    """What is allowed where that error is."""


class Place(Part):
    """One element that is out of budget."""

    index: list[int]
    """Where it is in the tensor."""
    value: Real
    """What was computed."""
    truth: Real
    """What is right."""
    budget: Real
    """How far from it the value may be."""


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
    places: list[Place] = []
    """Where it is wrong: the elements furthest beyond their budget, the worst first."""
    cause: str | None = None
    """The likely cause, in one sentence."""
