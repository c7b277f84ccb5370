"""The partitions of a coarse grid of cutoffs: their predicted times, the cheapest, and all nearly as cheap.

A step's predicted time is a sum over its head and its tails, so the cheapest way to cut off the classes from
some rank on does not depend on what lies before it. That is computed backwards, once for each number of
tails, and bounds from below what any beginning of a partition can still become: partitions are then
enumerated from the front, and a beginning that cannot stay within a limit is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from zipfmax.clusters import ClusterLayout
from zipfmax.cost_model import CostModel

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

TILE = 16
"""Cutoffs are multiples of this, unless there are so few classes that it would be coarse."""
FEW_CLASSES = 1024
LIMITS = (1.05, 1.25, 2.0, 4.0, 1e9)
"""Times the least time without a bound on weights: how far partitions are enumerated to find one within it."""


def unit_of(n_classes: int, multiple: int | None = None) -> int:
    """What cutoffs are multiples of: `multiple`, or else a tile of 16, or 1 for fewer than 1,024 classes.

    Raises:
        ValueError: no multiple lies below n_classes.
    """
    unit = multiple if multiple is not None else TILE if n_classes >= FEW_CLASSES else 1
    if unit < 1:
        raise ValueError(f"multiple should be a positive integer, got {unit}")
    if unit >= n_classes:
        raise ValueError(f"no multiple of {unit} lies below n_classes = {n_classes}")
    return unit


def grid(n_classes: int, unit: int) -> Integers:
    """The ranks that may be cutoffs, and n_classes as the last: 1, 2, 3, 4, 6, 8, 12, 16, 24, ... units.

    Powers of two and the middle between each two of them, so each is a third or a half above the one before.
    """
    powers = 2 ** np.arange(n_classes.bit_length() + 1)
    ranks = unit * np.unique(np.concatenate([powers, 3 * powers]))
    return np.append(ranks[ranks < n_classes], n_classes)


@dataclass(frozen=True)
class Search:
    """A label distribution, a shape, a cost model and a grid: everything that a plan is chosen by."""

    probabilities: Floats
    """[V], most frequent first."""
    in_features: int
    batch_size: int
    div_value: float
    widths: Sequence[int]
    """Projection size of each tail that may be used, in order."""
    model: CostModel
    unit: int
    """Of the grid."""
    min_shortlist_share: float = 0.0
    max_parameters: float = np.inf
    n_tails: int | None = None
    """Only layouts of so many tails; None for any number."""

    def layout(self, cutoffs: Sequence[int]) -> ClusterLayout:
        """The layout of these cutoffs."""
        return ClusterLayout(self.in_features, len(self.probabilities), tuple(cutoffs), self.div_value)

    def cost_s(self, layout: ClusterLayout) -> float:
        """Predicted seconds of a step; every cluster is charged as if each batch had labels of it."""
        rows = np.diff(self._cumulative[list(layout.bounds)]) * self.batch_size
        return self.model.adaptive_s(layout, rows.tolist())

    @cached_property
    def numbers_of_tails(self) -> Sequence[int]:
        """How many tails the bounds, the widths and the grid allow."""
        most = min(len(self.widths), len(self._ranks) - 1)
        return [n for n in range(1, 1 + most) if self.n_tails in (None, n)]

    def least_s(self) -> float:
        """Predicted seconds of the cheapest layout; infinite where none keeps the bounds."""
        found = [layout for n_tails in self.numbers_of_tails if (layout := self.cheapest(n_tails))]
        return min(map(self.cost_s, found), default=np.inf)

    def cheapest(self, n_tails: int) -> ClusterLayout | None:
        """The fastest layout of the grid with so many tails that keeps the bounds; None if none does."""
        free_s = float((self._head_s + self._to_go(self._tail_s, n_tails)[0]).min()) + n_tails * self._slot_s
        if not np.isfinite(free_s):
            return None
        for limit in LIMITS:
            cutoffs, seconds = self.partitions(n_tails, limit * free_s)
            if len(seconds):
                return self.layout(cutoffs[seconds.argmin()].tolist())
        return None

    def preferred(self, limit_s: float) -> ClusterLayout | None:
        """Of all partitions that keep the bounds and take at most so long, by a preference that is fixed:

        the fewest tails, which has the widest last projection; of these the most cutoffs that are a power of
        two times the unit; of these the largest shortlist, then the largest first tail, and so on.
        """
        for n_tails in self.numbers_of_tails:
            cutoffs, _ = self.partitions(n_tails, limit_s)
            if len(cutoffs):
                return self.layout(max(cutoffs.tolist(), key=lambda one: (self._n_round(one), one)))
        return None

    def _n_round(self, cutoffs: Sequence[int]) -> int:
        units = [divmod(cutoff, self.unit) for cutoff in cutoffs]
        return sum(not rest and not count & (count - 1) for count, rest in units)

    def least_parameters(self) -> float:
        """Weights of the smallest layout with the least share in its shortlist."""
        sizes = (
            float((self._head_weights(n) + self._to_go(self._tail_weights, n)[0]).min())
            for n in self.numbers_of_tails
        )
        return min(sizes, default=np.inf)

    def partitions(self, n_tails: int, limit_s: float) -> tuple[Integers, Floats]:
        """Every partition of the grid that keeps the bounds and takes at most so long.

        Returns:
            [M, n_tails] cutoffs, and [M] predicted seconds.
        """
        seconds_to_go = self._to_go(self._tail_s, n_tails)
        weights_to_go = self._to_go(self._tail_weights, n_tails)
        slots_s = n_tails * self._slot_s
        seconds, weights = self._head_s + slots_s, self._head_weights(n_tails)
        chosen = np.arange(len(self._ranks))[:, None]
        for tail in range(n_tails):
            kept = (seconds + seconds_to_go[tail][chosen[:, -1]] <= limit_s * (1 + 1e-12)) & (
                weights + weights_to_go[tail][chosen[:, -1]] <= self.max_parameters
            )
            chosen, seconds, weights = chosen[kept], seconds[kept], weights[kept]
            start = chosen[:, -1]
            if tail == n_tails - 1:
                return self._ranks[chosen], seconds + self._tail_s[tail][start, -1]
            before, stop = np.nonzero(np.isfinite(self._tail_s[tail][start, :-1]))
            seconds = seconds[before] + self._tail_s[tail][start[before], stop]
            weights = weights[before] + self._tail_weights[tail][start[before], stop]
            chosen = np.column_stack([chosen[before], stop])
        raise ValueError(f"n_tails should be a positive integer, got {n_tails}")

    def curve(self, max_tails: int = 4) -> dict[int, list[tuple[int, float]]]:
        """For 1 to max_tails tails: each first cutoff of the grid, and the least seconds with it."""
        curves: dict[int, list[tuple[int, float]]] = {}
        for n_tails in self.numbers_of_tails[:max_tails]:
            seconds = self._head_s + n_tails * self._slot_s + self._to_go(self._tail_s, n_tails)[0]
            points = zip(self._ranks[:-1].tolist(), seconds[:-1].tolist(), strict=True)
            curves[n_tails] = [(first, cost) for first, cost in points if np.isfinite(cost)]
        return curves

    @cached_property
    def _cumulative(self) -> Floats:
        """[V + 1]: share of the labels below each rank."""
        return np.concatenate([[0.0], np.cumsum(self.probabilities)])

    @cached_property
    def _ranks(self) -> Integers:
        """[C]: the grid; with the first rank of the least share, where no rank of the grid has it."""
        ranks = grid(len(self.probabilities), self.unit)
        if (self._cumulative[ranks[:-1]] >= self.min_shortlist_share).any():
            return ranks
        first = int(np.searchsorted(self._cumulative, self.min_shortlist_share))
        first = -(-first // self.unit) * self.unit
        return ranks if first >= ranks[-1] else np.union1d(ranks, [first])

    @cached_property
    def _head_s(self) -> Floats:
        """[C]: the head with each shortlist, without its slots; infinite where a bound or no tail is left."""
        head = self.model.head.at_width(self.in_features)
        seconds = head(self._ranks.astype(np.float64), np.array(float(self.batch_size)))
        allowed = self._cumulative[self._ranks] >= self.min_shortlist_share
        allowed[-1] = False
        return np.where(allowed, seconds, np.inf)

    @cached_property
    def _slot_s(self) -> float:
        head = self.model.head.at_width(self.in_features)
        return head.per_class + head.per_logit * self.batch_size

    @cached_property
    def _tail_s(self) -> list[Floats]:
        """For each tail [C, C]: seconds of the classes from one rank to another; infinite where there are none."""
        ranks, rows = self._ranks.astype(np.float64), self._cumulative[self._ranks] * self.batch_size
        classes, rows = np.subtract.outer(-ranks, -ranks), np.subtract.outer(-rows, -rows)
        return [
            np.where(
                classes > 0,
                self.model.tail.at_width(width, self.in_features)(
                    np.maximum(classes, 0), np.maximum(rows, 0)
                ),
                np.inf,
            )
            for width in self.widths
        ]

    def _head_weights(self, n_tails: int) -> Floats:
        return np.where(np.isfinite(self._head_s), self.in_features * (self._ranks + n_tails), np.inf)

    @cached_property
    def _tail_weights(self) -> list[Floats]:
        classes = np.subtract.outer(-self._ranks, -self._ranks)
        return [np.where(classes > 0, width * (self.in_features + classes), np.inf) for width in self.widths]

    def _to_go(self, tails: Sequence[Floats], n_tails: int) -> list[Floats]:
        """For each tail [C]: the least that this and the later tails add, if it starts at each rank."""
        found = [tails[n_tails - 1][:, -1]]
        for table in reversed(tails[: n_tails - 1]):
            found.append((table + found[-1]).min(axis=1))
        return found[::-1]
