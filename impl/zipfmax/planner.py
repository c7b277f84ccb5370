"""Which cutoffs to take: a cheap partition under a cost model, chosen so that it stays the same, and its worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zipfmax import hardware, quality
from zipfmax.calibration import BUDGET_S, Calibration, calibrated
from zipfmax.clusters import ClusterLayout
from zipfmax.cost_model import CostModel
from zipfmax.errors import unknown
from zipfmax.search import Search, unit_of
from zipfmax.steps import DTYPES, TASKS

Floats = npt.NDArray[np.float64]

MAX_CLUSTERS = 6
MOST_GIVEN_UP = 0.1
"""Share of the predicted time that the preference costs at most, however large the model's error is."""


@dataclass(frozen=True)
class Plan:
    """Cutoffs, what a step with them is predicted to cost, and how that compares."""

    layout: ClusterLayout
    batch_size: int
    predicted_s: float
    full_s: float
    """Predicted time of full softmax: linear and cross entropy over all classes."""
    occupancy: tuple[float, ...]
    """Share of the labels in the shortlist and in each tail."""
    unseen: int
    """Classes with count 0: they rank last, are expected in no batch, and still can be predicted."""
    by_clusters: tuple[tuple[tuple[int, ...], float], ...]
    """The cheapest cutoffs of the grid for each number of tails, and their predicted seconds."""
    neighbours: tuple[tuple[tuple[int, ...], float], ...]
    """The plan with one cutoff a quarter lower or higher, and the predicted seconds of that."""
    source: str
    """Where the cost model is from, in words."""
    search: Search = field(repr=False, compare=False)
    """What the plan was found by; its `curve` draws the cost around the choice."""

    @property
    def cutoffs(self) -> tuple[int, ...]:
        """What `AdaptiveLogSoftmaxWithLoss` takes."""
        return self.layout.cutoffs

    @property
    def predicted_speedup(self) -> float:
        """Predicted time of full softmax over that of the plan."""
        return self.full_s / self.predicted_s

    @property
    def full_is_better(self) -> bool:
        """Whether full softmax is predicted to be at least as fast as the plan."""
        return self.full_s <= self.predicted_s

    @property
    def parameters(self) -> int:
        """Weights of the planned layer, in elements, without biases."""
        return self.layout.parameter_count()

    @property
    def full_parameters(self) -> int:
        """Weights of full softmax, in elements."""
        return self.layout.n_classes * self.layout.in_features

    def to_record(self) -> dict[str, Any]:
        """The plan as JSON holds it; times in seconds."""
        return {
            "n_classes": self.layout.n_classes,
            "in_features": self.layout.in_features,
            "batch_size": self.batch_size,
            "div_value": self.layout.div_value,
            "cutoffs": list(self.cutoffs),
            "projection_sizes": [tail.projection_size for tail in self.layout],
            "occupancy": list(self.occupancy),
            "unseen": self.unseen,
            "predicted_s": self.predicted_s,
            "error": self.search.model.error,
            "source": self.source,
            "full_s": self.full_s,
            "predicted_speedup": self.predicted_speedup,
            "full_is_better": self.full_is_better,
            "parameters": self.parameters,
            "full_parameters": self.full_parameters,
            "by_clusters": [
                {"cutoffs": list(cutoffs), "predicted_s": cost} for cutoffs, cost in self.by_clusters
            ],
            "neighbours": [
                {"cutoffs": list(cutoffs), "predicted_s": cost} for cutoffs, cost in self.neighbours
            ],
        }


def plan_cutoffs(
    counts: npt.ArrayLike,
    in_features: int,
    batch_size: int,
    div_value: float = 4.0,
    clusters: int | str = "auto",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    task: str = "train",
    *,
    backend: str = "auto",
    max_parameters: int | None = None,
    min_projection: int | None = None,
    min_shortlist_share: float | None = None,
    multiple: int | None = None,
    calibrate: bool = False,
    budget_s: float = BUDGET_S,
    on_sample: Callable[[float], None] | None = None,
    model: Calibration | CostModel | None = None,
    prior: Calibration | CostModel | None = None,
) -> Plan:
    """The cutoffs that make a step cheap for labels with these counts (Grave et al. 2016, section 4.3).

    Cutoffs are of a coarse grid (`zipfmax.search.grid`), and two times that differ by less than the model's
    own error in each, or 10 % where that is less, are not told apart: of all partitions that near the
    cheapest, a fixed preference takes the fewest tails, hence the widest last projection, then powers of
    two, then the largest shortlist.

    By default nothing is measured: the bundled cost model of the nearest hardware plans, which is the same
    everywhere. A measured model (`calibrate`) overrules that plan only where it finds it slower than its own
    cheapest by more than twice the errors of both models together.

    A tail's classes are scored in a narrower space, which costs perplexity. The bounds `min_projection` and
    `min_shortlist_share` are, by default, those that `zipfmax.quality` rests on studies; within them only time
    is weighed. Where a default bound allows no plan it is dropped.

    Args:
        counts: [V] how often each label occurs, in any order and of any sum; 0 is allowed.
        in_features: hidden width d.
        batch_size: rows N of a step.
        div_value: as `AdaptiveLogSoftmaxWithLoss` takes it.
        clusters: number of tail clusters, 1 to 6, or "auto".
        device: what to plan for.
        dtype: what to plan for.
        task: what to plan for, "train" or "forward".
        backend: what to plan for, as the layer takes it.
        max_parameters: upper bound of the layer's weights.
        min_projection: smallest projection a tail may have; bounds the number of tails. By default what the
            studies found, unless a number of clusters is given; one tail is always allowed.
        min_shortlist_share: least share of the labels that the shortlist must hold; by default what the
            studies found.
        multiple: cutoffs are multiples of this, for instance of a kernel's tile; by default of 16, and of 1
            for fewer than 1,024 classes.
        calibrate: measure this machine's cost model, or take it from the cache.
        budget_s: of the measuring, as `zipfmax.calibration.calibrate` takes it.
        on_sample: called while measuring, as `zipfmax.calibration.calibrate` takes it.
        model: a cost model to plan with, in place of a bundled or a measured one.
        prior: beside `model`, one whose plan stands unless `model` overrules it.

    Raises:
        ValueError: counts, a number of clusters or bounds that allow no plan, an unknown task, or a kind of
            device of which no model is bundled; says which.
        TypeError: a dtype that is not one of `DTYPES`.
        ImportError, TimeoutError: as `zipfmax.calibration.calibrate`.
    """
    if task not in TASKS:
        raise ValueError(unknown("task", task, TASKS))
    if dtype not in DTYPES:
        raise TypeError(f"dtype should be one of {', '.join(map(str, DTYPES))}, got {dtype!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size should be a positive integer, got {batch_size}")
    if min_projection is not None and min_projection < 1:
        raise ValueError(f"min_projection should be a positive integer, got {min_projection}")
    if min_shortlist_share is not None and not 0 <= min_shortlist_share < 1:
        raise ValueError(f"min_shortlist_share should be at least 0 and below 1, got {min_shortlist_share}")
    probabilities, unseen = rank_counts(counts)
    widths = _projection_sizes(in_features, div_value, clusters, min_projection)
    least_share = (
        quality.bundled().min_shortlist_share if min_shortlist_share is None else min_shortlist_share
    )
    unit = unit_of(len(probabilities), multiple)
    if model is None:
        model, prior = cost_models(
            device, dtype, task, backend, calibrate=calibrate, budget_s=budget_s, on_sample=on_sample
        )
    source = hardware.described(model) if isinstance(model, Calibration) else "given"
    model = model.model if isinstance(model, Calibration) else model
    prior = prior.model if isinstance(prior, Calibration) else prior
    search = Search(
        probabilities=probabilities,
        in_features=in_features,
        batch_size=batch_size,
        div_value=div_value,
        widths=widths,
        model=model,
        unit=unit,
        min_shortlist_share=least_share,
        max_parameters=np.inf if max_parameters is None else max_parameters,
        n_tails=None if clusters == "auto" else int(clusters),
    )
    cheapest = _cheapest(search)
    if not cheapest and min_shortlist_share is None and least_share:
        search = replace(search, min_shortlist_share=0.0)
        cheapest = _cheapest(search)
    if not cheapest and min_projection is None and clusters == "auto":
        search = replace(search, widths=_projection_sizes(in_features, div_value, clusters, 1))
        cheapest = _cheapest(search)
    if not cheapest:
        raise ValueError(_no_plan(search, clusters))
    costs = {n_tails: search.cost_s(layout) for n_tails, layout in cheapest.items()}
    layout = _chosen(search, min(costs.values()), prior)
    return Plan(
        layout=layout,
        batch_size=batch_size,
        predicted_s=search.cost_s(layout),
        full_s=model.full_s(batch_size, in_features, layout.n_classes),
        occupancy=tuple(layout.occupancy(probabilities).tolist()),
        unseen=unseen,
        by_clusters=tuple((layout.cutoffs, costs[n_tails]) for n_tails, layout in cheapest.items()),
        neighbours=tuple(
            (cutoffs, search.cost_s(search.layout(cutoffs)))
            for cutoffs in _neighbours(layout.cutoffs, layout.n_classes)
        ),
        source=source,
        search=search,
    )


def cost_models(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    task: str = "train",
    backend: str = "auto",
    *,
    calibrate: bool = False,
    refresh: bool = False,
    budget_s: float = BUDGET_S,
    on_sample: Callable[[float], None] | None = None,
) -> tuple[Calibration, Calibration | None]:
    """What to plan with, and what has the prior plan: the bundled model, or the measured one beside it.

    Args:
        device, dtype, task, backend: what to plan for.
        calibrate: take this machine's, from the cache or measured.
        refresh, budget_s, on_sample: as `zipfmax.calibration.calibrated` takes them.

    Raises:
        ValueError: nothing is to be measured, and no model of that kind of device is bundled.
        ImportError, TimeoutError: as `zipfmax.calibration.calibrate`.
    """
    bundled = hardware.nearest(torch.device(device), dtype, task)
    if calibrate:
        measured = calibrated(
            device, dtype, task, backend, refresh=refresh, budget_s=budget_s, on_sample=on_sample
        )
        return measured, bundled
    if bundled is None:
        raise ValueError(
            f"no cost model of a {torch.device(device).type} device is bundled; measure one: calibrate=True, "
            "or --calibrate"
        )
    return bundled, None


def _cheapest(search: Search) -> dict[int, ClusterLayout]:
    """The cheapest layout of each number of tails that the bounds allow."""
    return {n_tails: layout for n_tails in search.numbers_of_tails if (layout := search.cheapest(n_tails))}


def _chosen(search: Search, least_s: float, prior: CostModel | None) -> ClusterLayout:
    """The prior's plan where the search's model lets it stand, else the preferred of those near the cheapest."""
    if prior is not None:
        standing = _chosen(theirs := replace(search, model=prior), theirs.least_s(), None)
        if search.cost_s(standing) <= (1 + 2 * search.model.error + 2 * prior.error) * least_s:
            return standing
    chosen = search.preferred((1 + min(2 * search.model.error, MOST_GIVEN_UP)) * least_s)
    assert chosen is not None, "the cheapest is among them"
    return chosen


def _no_plan(search: Search, clusters: int | str) -> str:
    if (least := search.least_parameters()) > search.max_parameters and np.isfinite(least):
        return f"max_parameters = {search.max_parameters} allows no plan: the smallest has {least:.0f}"
    return (
        f"no cutoffs satisfy the bounds clusters = {clusters}, cutoffs in multiples of {search.unit}, "
        f"min_shortlist_share = {search.min_shortlist_share}, max_parameters = {search.max_parameters}"
    )


def rank_counts(counts: npt.ArrayLike) -> tuple[Floats, int]:
    """The probabilities of the labels, most frequent first, and how many labels have count 0."""
    values = np.asarray(counts, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"counts should have one dimension, got shape {values.shape}")
    if len(values) < 2:
        raise ValueError(f"counts of at least two classes are needed, got {len(values)}")
    if not np.isfinite(values).all():
        raise ValueError(f"counts should be finite, got {values[~np.isfinite(values)][0]}")
    if (values < 0).any():
        raise ValueError(f"counts should not be negative, got {values[values < 0][0]:g}")
    if not values.any():
        raise ValueError("all counts are 0: nothing to plan for")
    ranked = np.sort(values)[::-1]
    if ranked[0] > np.finfo(np.float64).max / len(ranked):  # their sum would be infinite
        ranked = ranked / ranked[0]
    return ranked / ranked.sum(), int((values == 0).sum())


def _projection_sizes(
    in_features: int, div_value: float, clusters: int | str, min_projection: int | None
) -> list[int]:
    if clusters != "auto" and not (isinstance(clusters, int) and 1 <= clusters <= MAX_CLUSTERS):
        raise ValueError(f"clusters should be 'auto' or a number from 1 to {MAX_CLUSTERS}, got {clusters!r}")
    wanted = MAX_CLUSTERS if clusters == "auto" else int(clusters)
    trial = ClusterLayout(in_features, wanted + 1, tuple(range(1, wanted + 1)), div_value)
    widths = [tail.projection_size for tail in trial]
    if widths[0] == 0:
        raise ValueError(
            f"div_value {div_value:g} leaves nothing of in_features {in_features}: every projection would have "
            "size 0, and the tails no score"
        )
    if min_projection is None:
        min_projection = min(quality.bundled().min_projection, widths[0]) if clusters == "auto" else 1
    allowed = [width for width in widths if width >= min_projection]
    if not allowed or (clusters != "auto" and len(allowed) < wanted):
        raise ValueError(
            f"projections of at least {min_projection} (min_projection) allow {len(allowed)} of {wanted} "
            f"clusters: theirs are {', '.join(map(str, widths))}"
        )
    return allowed


def _neighbours(cutoffs: tuple[int, ...], n_classes: int) -> list[tuple[int, ...]]:
    """The cutoffs with one of them a quarter lower or higher, where that is still a partition."""
    neighbours = []
    for index, cutoff in enumerate(cutoffs):
        for moved in (round(cutoff / 1.25), round(cutoff * 1.25)):
            changed = (*cutoffs[:index], moved, *cutoffs[index + 1 :])
            if moved != cutoff and all(low < high for low, high in pairwise((0, *changed, n_classes))):
                neighbours.append(changed)
    return neighbours
