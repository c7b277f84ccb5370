"""Which cutoffs to take: the cheapest partition under a measured cost model, and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zipfmax.calibration import calibrated
from zipfmax.clusters import ClusterLayout
from zipfmax.cost_model import CostModel
from zipfmax.partition import ClusterCost, best_partitions

Floats = npt.NDArray[np.float64]

MAX_CLUSTERS = 6
# Up to here every rank is a candidate cutoff; beyond, candidates are a geometric grid with steps this fine.
EXACT_CANDIDATES = 1 << 16
GRID_STEPS_PER_OCTAVE = 1 << 13
# What a weight may be priced at to keep a bound on weights, in seconds: from nothing to more than any time.
PRICES = (1e-16, 1e-4)
PRICE_STEPS = 30


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
    """The best cutoffs for each number of tails that was looked at, and their predicted seconds."""
    neighbours: tuple[tuple[tuple[int, ...], float], ...]
    """The plan with one cutoff a quarter lower or higher, and the predicted seconds of that."""
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
        """Whether full softmax is predicted to be at least as fast as the best partition."""
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
    min_projection: int = 1,
    min_shortlist_share: float = 0.0,
    multiple: int = 1,
    model: CostModel | None = None,
) -> Plan:
    """The cutoffs that make a step cheapest for labels with these counts (Grave et al. 2016, section 4.3).

    Only time is weighed, not perplexity: a tail's classes are scored in a narrower space, so where quality
    matters keep the frequent classes in the head by `min_shortlist_share`, or bound `min_projection`.

    Args:
        counts: [V] how often each label occurs, in any order and of any sum; 0 is allowed.
        in_features: hidden width d.
        batch_size: rows N of a step.
        div_value: as `AdaptiveLogSoftmaxWithLoss` takes it.
        clusters: number of tail clusters, 1 to 6, or "auto" for the cheapest.
        device, dtype, task, backend: what to plan for; measured on first use, under a minute, then cached.
        max_parameters: upper bound of the layer's weights; the best plan on the bound's convex hull is taken.
        min_projection: smallest projection a tail may have; bounds the number of tails.
        min_shortlist_share: least share of the labels that the shortlist must hold.
        multiple: cutoffs are multiples of this, for instance of a kernel's tile.
        model: a cost model to plan with, in place of this machine's.

    Raises:
        ValueError: counts, a number of clusters or bounds that allow no plan; says which.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size should be a positive integer, got {batch_size}")
    if not 0 <= min_shortlist_share < 1:
        raise ValueError(f"min_shortlist_share should be at least 0 and below 1, got {min_shortlist_share}")
    probabilities, unseen = rank_counts(counts)
    widths = _projection_sizes(in_features, div_value, clusters, min_projection)
    if model is None:
        model = calibrated(device, dtype, task, backend).model
    search = Search(
        probabilities=probabilities,
        in_features=in_features,
        batch_size=batch_size,
        div_value=div_value,
        widths=widths,
        model=model,
        candidates=candidate_cutoffs(len(probabilities), multiple),
        min_shortlist_share=min_shortlist_share,
    )
    found = search.layouts() if max_parameters is None else search.layouts_within(max_parameters)
    if clusters != "auto":
        found = {n_tails: layout for n_tails, layout in found.items() if n_tails == clusters}
    if not found:
        raise ValueError(
            f"no cutoffs satisfy the bounds clusters = {clusters}, multiple = {multiple}, "
            f"min_shortlist_share = {min_shortlist_share}, max_parameters = {max_parameters}"
        )
    costs = {n_tails: search.cost_s(layout) for n_tails, layout in found.items()}
    layout = found[min(costs, key=costs.__getitem__)]
    return Plan(
        layout=layout,
        batch_size=batch_size,
        predicted_s=search.cost_s(layout),
        full_s=model.full_s(batch_size, in_features, layout.n_classes),
        occupancy=tuple(layout.occupancy(probabilities).tolist()),
        unseen=unseen,
        by_clusters=tuple((found[n_tails].cutoffs, costs[n_tails]) for n_tails in sorted(found)),
        neighbours=tuple(
            (cutoffs, search.cost_s(search.layout(cutoffs)))
            for cutoffs in _neighbours(layout.cutoffs, layout.n_classes)
        ),
        search=search,
    )


@dataclass(frozen=True)
class Search:
    """The search behind a plan: a label distribution, a shape, a cost model and the candidate cutoffs."""

    probabilities: Floats
    in_features: int
    batch_size: int
    div_value: float
    widths: Sequence[int]
    """Projection size of each tail that may be used, in order."""
    model: CostModel
    candidates: npt.NDArray[np.int64]
    min_shortlist_share: float = 0.0

    def layout(self, cutoffs: Sequence[int]) -> ClusterLayout:
        """The layout of these cutoffs."""
        return ClusterLayout(self.in_features, len(self.probabilities), tuple(cutoffs), self.div_value)

    def cost_s(self, layout: ClusterLayout) -> float:
        """Predicted seconds of a step; every cluster is charged as if each batch had labels of it."""
        rows = np.diff(self._cumulative[list(layout.bounds)]) * self.batch_size
        return self.model.adaptive_s(layout, rows.tolist())

    @cached_property
    def _cumulative(self) -> Floats:
        """[V + 1]: share of the labels below each rank."""
        return np.concatenate([[0.0], np.cumsum(self.probabilities)])

    def layouts(self, price: float = 0.0) -> dict[int, ClusterLayout]:
        """For each number of tails the cheapest layout; `price` is what a weight costs besides its time."""
        return self._layouts(self.candidates, self.widths, price)

    def _layouts(
        self,
        candidates: npt.NDArray[np.int64],
        widths: Sequence[int],
        price: float = 0.0,
        first: int | None = None,
    ) -> dict[int, ClusterLayout]:
        share_below = self._cumulative[candidates]
        head = self.model.head.at_width(self.in_features)
        slot = head.per_class + head.per_logit * self.batch_size + price * self.in_features
        head_cost = head(candidates.astype(np.float64), np.array(float(self.batch_size)))
        allowed = share_below >= self.min_shortlist_share
        if first is not None:
            allowed &= candidates == first
        partitions = best_partitions(
            candidates,
            share_below * self.batch_size,
            np.where(allowed, head_cost + price * self.in_features * candidates, np.inf),
            slot,
            [self._tail_cost(width, price) for width in widths],
        )
        return {
            len(partition.cutoffs): self.layout(partition.cutoffs)
            for partition in partitions
            if np.isfinite(partition.cost_s)
        }

    def layouts_within(self, max_parameters: int) -> dict[int, ClusterLayout]:
        """For each number of tails that allows it, the cheapest layout found of at most that many weights.

        A weight is given a price in seconds, and the least price that keeps the bound is found by bisection:
        so the layout is the best one on the convex hull of time against weights.

        Raises:
            ValueError: even the smallest layout has more weights.
        """
        found: dict[int, ClusterLayout] = {}
        smallest = []
        for n_tails, free in self.layouts().items():
            if free.parameter_count() <= max_parameters:
                found[n_tails] = free
                continue
            bounded = self._cheapest_within(n_tails, max_parameters)
            if bounded.parameter_count() <= max_parameters:
                found[n_tails] = bounded
            smallest.append(bounded.parameter_count())
        if smallest and not found:
            raise ValueError(
                f"max_parameters = {max_parameters} allows no plan: the smallest has {min(smallest)}"
            )
        return found

    def _cheapest_within(self, n_tails: int, max_parameters: int) -> ClusterLayout:
        """The cheapest layout found that keeps the bound, or a layout at the highest price."""
        low, high = PRICES
        best = self._layouts(self.candidates, self.widths[:n_tails], high)[n_tails]
        if best.parameter_count() > max_parameters:
            return best

        def within(candidates: npt.NDArray[np.int64], price: float) -> ClusterLayout | None:
            layout = self._layouts(candidates, self.widths[:n_tails], price).get(n_tails)
            return layout if layout and layout.parameter_count() <= max_parameters else None

        for _ in range(PRICE_STEPS):
            price = (low * high) ** 0.5
            low, high = (low, price) if within(self._coarse_candidates, price) else (price, high)
        # At this price the coarse candidates keep the bound; the fine ones nearly always do, and cost less.
        for candidates in (self._coarse_candidates, self.candidates):
            layout = within(candidates, high)
            if layout and self.cost_s(layout) < self.cost_s(best):
                best = layout
        return best

    @cached_property
    def _coarse_candidates(self) -> npt.NDArray[np.int64]:
        """[at most about 4096] of the candidates, n_classes among them."""
        step = max(1, len(self.candidates) // 4096)
        return np.union1d(self.candidates[::step], self.candidates[-1:])

    def curve(self, points: int = 48, max_tails: int = 4) -> dict[int, list[tuple[int, float]]]:
        """For 1 to max_tails tails: first cutoffs, geometrically spread, and the least seconds of each."""
        coarse = self._coarse_candidates
        inner = coarse[:-1]
        firsts = np.unique(np.geomspace(inner[0], inner[-1], points).astype(np.int64))
        firsts = np.unique(inner[np.minimum(np.searchsorted(inner, firsts), len(inner) - 1)])
        curves: dict[int, list[tuple[int, float]]] = {}
        for first in firsts.tolist():
            found = self._layouts(coarse, self.widths[:max_tails], 0.0, first)
            for n_tails, layout in found.items():
                curves.setdefault(n_tails, []).append((first, self.cost_s(layout)))
        return curves

    def _tail_cost(self, width: int, price: float) -> ClusterCost:
        cost = self.model.tail.at_width(width, self.in_features)
        return replace(
            cost,
            constant=cost.constant + price * self.in_features * width,
            per_class=cost.per_class + price * width,
        )


def candidate_cutoffs(n_classes: int, multiple: int = 1) -> npt.NDArray[np.int64]:
    """Increasing ranks that the search considers, ending with n_classes.

    Every multiple up to 65,536, then a geometric grid in steps of under 0.01 %.

    Raises:
        ValueError: no multiple lies below n_classes.
    """
    if multiple < 1:
        raise ValueError(f"multiple should be a positive integer, got {multiple}")
    if multiple >= n_classes:
        raise ValueError(f"no multiple of {multiple} lies below n_classes = {n_classes}")
    last = n_classes - 1
    near = np.arange(1, min(last, EXACT_CANDIDATES) + 1)
    octaves = np.log2(max(last / EXACT_CANDIDATES, 1.0))
    far = EXACT_CANDIDATES * 2.0 ** (
        np.arange(int(octaves * GRID_STEPS_PER_OCTAVE) + 1) / GRID_STEPS_PER_OCTAVE
    )
    ranks = np.concatenate([near, far.astype(np.int64)]) // multiple * multiple
    ranks = np.unique(ranks)
    return np.append(ranks[(ranks > 0) & (ranks <= last)], n_classes)


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
    return ranked / ranked.sum(), int((values == 0).sum())


def _projection_sizes(
    in_features: int, div_value: float, clusters: int | str, min_projection: int
) -> list[int]:
    if clusters != "auto" and not (isinstance(clusters, int) and 1 <= clusters <= MAX_CLUSTERS):
        raise ValueError(f"clusters should be 'auto' or a number from 1 to {MAX_CLUSTERS}, got {clusters!r}")
    wanted = MAX_CLUSTERS if clusters == "auto" else int(clusters)
    trial = ClusterLayout(in_features, wanted + 1, tuple(range(1, wanted + 1)), div_value)
    widths = [tail.projection_size for tail in trial]
    allowed = [width for width in widths if width >= min_projection]
    if not allowed or (clusters != "auto" and len(allowed) < wanted):
        raise ValueError(
            f"min_projection = {min_projection} allows {len(allowed)} of {wanted} clusters: "
            f"the projections are {', '.join(map(str, widths))}"
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
