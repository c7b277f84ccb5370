"""What a step costs where the vocabulary is split over ranks: the parts' cost on one rank, and the collectives'.

    step = sum over head and tails of the cost of classes / W
         + sum over collectives of (call + bytes sent * per_byte)

A rank takes its logits twice in training, once for the log-sum-exp that the ranks join and once for the
gradients, where one process takes them once: four products a logit in place of three. Sums that go on while
weights' gradients are taken are charged in full, so a backend that overlaps them is faster than this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zipfmax.clusters import ClusterLayout
from zipfmax.cost_model import CostModel

PRODUCTS = {"train": 4 / 3, "forward": 1.0}
"""Products of a rank's logits over those of one process."""
STATISTICS_BYTES = 4
"""Of a log-sum-exp or a target's logit."""


@dataclass(frozen=True, slots=True)
class CollectiveCost:
    """Seconds of a collective by the bytes that a rank sends in it."""

    call_s: float
    per_byte_s: float

    def seconds(self, sent_bytes: float) -> float:
        """Of one collective."""
        return self.call_s + self.per_byte_s * sent_bytes

    @classmethod
    def fit(cls, samples: Sequence[tuple[float, float]]) -> CollectiveCost:
        """From (bytes sent, seconds) of collectives of several sizes; neither term is negative.

        Raises:
            ValueError: fewer than two sizes.
        """
        if len({sent for sent, _ in samples}) < 2:
            raise ValueError("the cost of collectives is fitted to two sizes or more")
        sent, seconds = np.array(samples, dtype=np.float64).T
        per_byte, call = np.polyfit(sent, seconds, 1, w=1.0 / seconds)
        if per_byte < 0:
            return cls(float(np.median(seconds)), 0.0)
        return cls(max(0.0, float(call)), float(per_byte))


def traffic(
    layout: ClusterLayout, rows: Sequence[float], world: int, itemsize: int, task: str = "train"
) -> list[float]:
    """Bytes that a rank sends in each collective of a step.

    Args:
        layout: of the whole layer.
        rows: the shortlist's rows, then each tail's; their sum is the batch size.
        world: number of ranks.
        itemsize: bytes of an element of the hidden states and weights.
        task: "train" or "forward".
    """
    n_rows, in_tails = sum(rows), sum(rows[1:])
    sent = [2.0 * STATISTICS_BYTES * (n_rows + in_tails) * (world - 1)]
    if task == "train":
        share = 2.0 * (world - 1) / world
        projections = sum(
            tail.projection_size * layout.in_features
            for tail, tail_rows in zip(layout, rows[1:], strict=True)
            if tail_rows
        )
        sent += [share * n_rows * layout.in_features * itemsize, share * projections * itemsize]
    return sent


@dataclass(frozen=True, slots=True)
class RankPrediction:
    """A step over ranks, in seconds."""

    world: int
    computing_s: float
    collectives_s: float
    one_rank_s: float
    sent_bytes: float
    parameter_bytes: int
    """Of the weights that a rank holds."""

    @property
    def seconds(self) -> float:
        """Of the step."""
        return self.computing_s + self.collectives_s

    @property
    def efficiency(self) -> float:
        """Time on one rank over ranks times the time on them."""
        return self.one_rank_s / (self.world * self.seconds)


def predict(
    model: CostModel,
    layout: ClusterLayout,
    rows: Sequence[float],
    world: int,
    collective: CollectiveCost,
    itemsize: int,
    task: str = "train",
) -> RankPrediction:
    """A step of that layout over so many ranks; arguments as of `traffic`.

    Raises:
        ValueError: fewer than 2 ranks, or more than the classes of a cluster.
    """
    sizes = [layout.head_size, *(tail.size for tail in layout)]
    if not 2 <= world <= min(sizes):
        raise ValueError(f"a vocabulary is split over 2 to {min(sizes)} ranks here, got {world}")
    head = model.head.seconds(
        sum(rows),
        -(-layout.shortlist_size // world),
        layout.in_features,
        slots=-(-layout.n_clusters // world),
    )
    tails = sum(
        model.tail.seconds(tail_rows, -(-tail.size // world), tail.projection_size, layout.in_features)
        for tail, tail_rows in zip(layout, rows[1:], strict=True)
    )
    sent = traffic(layout, rows, world, itemsize, task)
    split = -(-layout.head_size // world) * layout.in_features
    split += sum(tail.projection_size * (-(-tail.size // world) + layout.in_features) for tail in layout)
    return RankPrediction(
        world,
        PRODUCTS[task] * (head + tails),
        sum(collective.seconds(each) for each in sent),
        model.adaptive_s(layout, rows),
        sum(sent),
        split * itemsize,
    )
