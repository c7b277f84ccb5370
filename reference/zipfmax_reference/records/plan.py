"""Plans: cutoffs, what a step with them is predicted to cost, and what it was then measured to cost."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any, ClassVar

from zipfmax_reference.records.base import Part, Record


class Partition(Part):
    """Cutoffs and the predicted time of a step with them."""

    cutoffs: list[int]
    predicted_s: float


class CurvePoint(Part):
    """The best plan with a given first cutoff."""

    first_cutoff: int
    predicted_s: float


class Plan(Record):
    """A planned partition for a label distribution and a shape: a line of `plans.jsonl`. Times in seconds."""

    FILE: ClassVar[str] = "plans"
    KEY: ClassVar[tuple[str, ...]] = ("case",)

    case: str
    """Id of the case with these cutoffs."""
    planned_for: str | None = None
    """Id of the case whose cutoffs they replace."""
    labels: str
    task: str
    n_classes: int
    in_features: int
    batch_size: int
    div_value: float = 4.0
    cutoffs: list[int]
    projection_sizes: list[int] = []
    """Width of each tail's projection."""
    occupancy: list[float] = []
    """Expected share of the labels in the shortlist and in each tail."""
    unseen: int = 0
    """Classes of probability 0."""
    predicted_s: float
    error: float | None = None
    """What the cost model says of itself: the median of |predicted - measured| / measured on steps held out."""
    source: str | None = None
    """Where the cost model is from: bundled or measured, on which machine."""
    full_s: float
    """Predicted time of full softmax."""
    predicted_speedup: float | None = None
    """full_s / predicted_s."""
    full_is_better: bool | None = None
    parameters: int | None = None
    """Weights of the planned layer, in elements."""
    full_parameters: int | None = None
    by_clusters: list[Partition] = []
    """The best cutoffs for each number of tails."""
    neighbours: list[Partition] = []
    """The plan with one cutoff a quarter lower or higher."""
    curve: dict[str, list[CurvePoint]] = {}
    """By number of tails: predicted time against the first cutoff."""
    customary_share: dict[str, Any] | None = None
    """The plan whose shortlist holds as many labels as the literature's, as `zipfmax plan` tells it."""
    quality: list[str] = []
    """What the published studies say of such a layout, in sentences."""
    calibration: dict[str, Any] | None = None
    """What the cost model was measured on, and how well it predicts."""


class PlanProof(Record):
    """A plan against a measured brute-force search: a line of `plan_proof.jsonl`. Times in seconds."""

    FILE: ClassVar[str] = "plan_proof"
    KEY: ClassVar[tuple[str, ...]] = ("labels", "n_classes", "in_features", "batch_size", "task")

    labels: str
    n_classes: int
    in_features: int
    batch_size: int
    task: str
    plan: list[int]
    """The planned cutoffs."""
    predicted_s: float
    plan_s: float
    best: list[int]
    """The fastest cutoffs of the grid."""
    best_s: float
    tried: int
    """Partitions of the grid that were timed."""
    literature: list[int]
    literature_s: float
    full_predicted_s: float
    full_s: float
    machine: dict[str, Any] = {}
    """What the cost model was measured on."""


class PlanError(Record):
    """A plan's prediction against its measured time: a line of `plan_error.jsonl`. Times in seconds.

    Its cells took no part in choosing the form of the cost model, nor in fitting it.
    """

    FILE: ClassVar[str] = "plan_error"
    KEY: ClassVar[tuple[str, ...]] = ("labels", "n_classes", "in_features", "batch_size", "task", "dtype")

    labels: str
    n_classes: int
    in_features: int
    batch_size: int
    task: str
    dtype: str
    cutoffs: list[int]
    """The planned cutoffs."""
    predicted_s: float
    measured_s: float
    full_predicted_s: float
    full_s: float
    """Measured time of full softmax."""
    source: str
    """Where the cost model is from."""
    machine: dict[str, Any] = {}
    """What the steps were measured on."""


class PlanAgreement(Record):
    """Whether calibrations of one machine plan alike: a line of `plan_agreement.jsonl`."""

    FILE: ClassVar[str] = "plan_agreement"
    KEY: ClassVar[tuple[str, ...]] = ("labels", "n_classes", "in_features", "batch_size", "task", "dtype")

    labels: str
    n_classes: int
    in_features: int
    batch_size: int
    task: str
    dtype: str
    bundled: list[int]
    """The plan of the bundled cost model."""
    plans: list[list[int]]
    """The plan after each calibration, in order."""
    alone: list[list[int]]
    """What each would be were no cost model bundled."""
    errors: list[float]
    """What each calibration says of itself."""
    source: str
    """Where the bundled cost model is from."""
    machine: dict[str, Any] = {}
    """What was calibrated."""


def errors(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The error of a cost model: median and 90th percentile of |predicted - measured| / measured.

    Args:
        times: at least two pairs of predicted and measured seconds.
    """
    off = [abs(predicted - measured) / measured for predicted, measured in times]
    return median(off), quantiles(off, n=10, method="inclusive")[-1]
