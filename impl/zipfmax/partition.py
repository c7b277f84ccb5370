"""The best partition under a cost that is a sum over head and tails: an exact dynamic program.

A tail that holds the labels a <= y < b costs

    w(a, b) = constant + per_class * C + per_row * R + per_logit * C * R + per_root_logit * sqrt(C * R)

with C = b - a its classes, R = N * (F(b) - F(a)) its rows and F the cumulative share of the labels, and more
for each class and each logit beyond some number of them, in all or in a row.
The terms in b - a and in F(b) - F(a) only are a function of a plus a function of b, and for F increasing
their product, the number of logits, satisfies the quadrangle inequality

    w(a, c) + w(b, d) <= w(a, d) + w(b, c)    for a <= b <= c <= d.

So does every convex increasing function of a number that satisfies it and grows with the cluster, and so do
rows times a convex increasing function of b - a, as the surcharges are. The root satisfies it because labels
come by falling frequency: its mixed derivative in a and b is -(p - m)(m - q) / (4 C m ** 1.5), where the rows
per class m of the cluster lie between those of its first class, p, and of its last, q. Hence the best start
of a cluster moves right when its end does (Yao 1980). Divide and conquer over the ends then finds every
minimum of a layer in O(C log C) for C candidate cutoffs, in place of O(C**2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClusterCost:
    """Seconds that the head or a tail of one width costs: see the module's formula."""

    constant: float
    per_class: float
    per_row: float
    per_logit: float
    per_root_logit: float = 0.0
    """Times the square root of the number of logits."""
    far_classes: tuple[tuple[float, float], ...] = ()
    """Pairs (beyond, seconds): more for each class beyond a number of them."""
    long_rows: tuple[tuple[float, float], ...] = ()
    """The same for each row: rows times the classes beyond."""
    far_logits: tuple[tuple[float, float], ...] = ()
    """The same for logits."""

    def __call__(self, classes: Floats, rows: Floats) -> Floats:
        """Cost of clusters with that many classes and expected rows, elementwise."""
        logits = classes * rows
        cost = self.constant + self.per_class * classes + self.per_row * rows + self.per_logit * logits
        if self.per_root_logit:
            cost = cost + self.per_root_logit * np.sqrt(logits)
        for beyond, seconds in self.far_classes:
            cost = cost + seconds * np.maximum(classes - beyond, 0.0)
        for beyond, seconds in self.long_rows:
            cost = cost + seconds * rows * np.maximum(classes - beyond, 0.0)
        for beyond, seconds in self.far_logits:
            cost = cost + seconds * np.maximum(logits - beyond, 0.0)
        return cost


@dataclass(frozen=True, slots=True)
class Partition:
    """Cutoffs and what they cost."""

    cutoffs: tuple[int, ...]
    cost_s: float


def best_partitions(
    candidates: Indices,
    rows_below: Floats,
    head_cost: Floats,
    slot_cost: float,
    tail_costs: Sequence[ClusterCost],
) -> list[Partition]:
    """For each number of tails 1, 2, ..., len(tail_costs): the cheapest cutoffs among the candidates.

    Args:
        candidates: [C] increasing label ranks; all but the last may be cutoffs, the last is n_classes.
        rows_below: [C] expected rows of a batch whose label is below each candidate; increasing, ever less.
        head_cost: [C] seconds of a head with that shortlist and no slots.
        slot_cost: seconds that each tail adds to the head.
        tail_costs: one a level, the most frequent tail first.

    Returns:
        One partition for each number of tails that C - 1 cutoffs allow.

    Raises:
        ValueError: fewer than two candidates.
    """
    if len(candidates) < 2:
        raise ValueError("a partition needs at least one candidate cutoff below n_classes")
    classes = candidates.astype(np.float64)
    best = head_cost.copy()
    best[-1] = np.inf  # the shortlist must leave something to the tails
    starts: list[Indices] = []
    partitions = []
    for n_tails, tail_cost in enumerate(tail_costs[: len(candidates) - 1], start=1):
        last = best[:-1] + tail_cost(classes[-1] - classes[:-1], rows_below[-1] - rows_below[:-1])
        index = int(last.argmin())
        cutoffs = [index]
        for start in reversed(starts):
            cutoffs.append(int(start[cutoffs[-1]]))
        labels = tuple(int(candidates[i]) for i in reversed(cutoffs))
        partitions.append(Partition(labels, float(last[index]) + n_tails * slot_cost))
        if n_tails < len(tail_costs):
            best, start = _extend(best, classes, rows_below, tail_cost)
            best[-1] = np.inf
            starts.append(start)
    return partitions


def _extend(
    best: Floats, classes: Floats, rows_below: Floats, tail_cost: ClusterCost
) -> tuple[Floats, Indices]:
    """One more tail: for every end the cheapest start, by divide and conquer, a level at a time.

    The ends of one level of the recursion are independent, so NumPy takes them together: each owns the slice
    of starts between its neighbours' best ones, and the slices of a level overlap only at their borders.
    """
    count = len(best)
    cost = np.full(count, np.inf)
    start = np.zeros(count, dtype=np.int64)
    for level in reversed(range((count - 1).bit_length())):
        stride = 1 << level
        ends = np.arange(stride, count, 2 * stride)
        following = ends + stride
        low = start[ends - stride]
        high = np.where(following < count, start[np.minimum(following, count - 1)], count - 1)
        high = np.minimum(high, ends - 1)
        widths = high - low + 1
        first_of = np.concatenate(([0], np.cumsum(widths)[:-1]))
        end_of = np.repeat(ends, widths)
        start_of = np.arange(widths.sum()) + np.repeat(low - first_of, widths)
        total = best[start_of] + tail_cost(
            classes[end_of] - classes[start_of], rows_below[end_of] - rows_below[start_of]
        )
        cost[ends] = np.minimum.reduceat(total, first_of)
        # Ties go to the leftmost start, so that the best starts are monotone whatever the rounding.
        minima = np.flatnonzero(total == np.repeat(cost[ends], widths))
        start[ends] = start_of[minima[np.searchsorted(minima, first_of)]]
    return cost, start
