"""What the parts of an adaptive softmax cost: a linear model in the work that each part does.

The paper (Grave et al. 2016, section 4.1) measures a product of B rows by k columns on a GPU and models it as
g(k, B) = max(c + lambda * k0 * B0, c + lambda * k * B): a constant, then proportional to the product. That is
`call` and `per_product` below. Two more terms come from measurements of this operator: a logit costs an
exponential and its way through the cache whatever the width, which is most of a narrow tail; and a weight is
read, and in training its gradient written, however few rows there are, which is most of a rare tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zipfmax.clusters import ClusterLayout
from zipfmax.partition import TailCost

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PartCost:
    """Seconds of one part that scores `rows` hidden states against `classes` of width `width`."""

    call: float
    per_product: float
    """A multiply-add of a logit: rows * classes * width of them."""
    per_logit: float
    """rows * classes"""
    per_weight: float
    """classes * width"""
    per_input: float
    """rows * width of the layer's input, gathered, and in training scattered."""

    def seconds(self, rows: float, classes: float, width: float, projected_from: int = 0) -> float:
        """Cost of the part; `part_features` says what the arguments mean."""
        return float(np.dot(self.coefficients(), part_features(rows, classes, width, projected_from)))

    def coefficients(self) -> Floats:
        """The five numbers in the order of `part_features`."""
        return np.array([self.call, self.per_product, self.per_logit, self.per_weight, self.per_input])


def part_features(rows: float, classes: float, width: float, projected_from: int = 0) -> Floats:
    """The work of one part, [5]: what a `PartCost`'s numbers multiply.

    Args:
        rows: hidden states scored.
        classes: logits of each.
        width: of the hidden state that is scored.
        projected_from: in_features of the projection in front, as a tail has one; 0 for none.
    """
    if width == 0:  # a uniform tail: nothing is scored
        return np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    return np.array(
        [
            1.0,
            rows * (classes * width + projected_from * width),
            rows * classes,
            classes * width + projected_from * width,
            rows * (projected_from or width),
        ]
    )


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of a step of adaptive and of full softmax on one device, dtype and task."""

    head: PartCost
    tail: PartCost
    full: PartCost

    def adaptive_s(self, layout: ClusterLayout, rows: Sequence[float]) -> float:
        """A step of that layout when `rows` of a batch, in expectation, have labels in each part.

        Args:
            layout: the partition.
            rows: the shortlist's rows, then each tail's; their sum is the batch size.
        """
        head = self.head.seconds(sum(rows), layout.head_size, layout.in_features)
        return head + sum(
            self.tail.seconds(tail_rows, tail.size, tail.projection_size, layout.in_features)
            for tail, tail_rows in zip(layout, rows[1:], strict=True)
        )

    def full_s(self, batch_size: int, in_features: int, n_classes: int) -> float:
        """A step of linear and cross entropy over all classes."""
        return self.full.seconds(batch_size, n_classes, in_features)

    def tail_cost(self, in_features: int, projection_size: int) -> TailCost:
        """The tail's cost at a given width, as a function of classes and rows alone."""
        tail, projected = self.tail, in_features * projection_size
        if projection_size == 0:
            return TailCost(tail.call, 0.0, 0.0, 0.0)
        return TailCost(
            constant=tail.call + tail.per_weight * projected,
            per_class=tail.per_weight * projection_size,
            per_row=tail.per_product * projected + tail.per_input * in_features,
            per_logit=tail.per_product * projection_size + tail.per_logit,
        )

    def to_record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, dict[str, float]]) -> CostModel:
        """Reads `to_record` back."""
        return cls(**{part: PartCost(**record[part]) for part in ("head", "tail", "full")})


def fit_nonnegative(features: Floats, seconds: Floats) -> Floats:
    """Non-negative coefficients that minimise the relative error of features @ coefficients.

    Args:
        features: [M, K] work done in each of M measurements.
        seconds: [M] measured.
    """
    from scipy.optimize import nnls  # only a calibration needs SciPy; the operator does not

    scale = features.max(axis=0)
    scale[scale == 0] = 1.0
    solution, _ = nnls(features / scale / seconds[:, None], np.ones(len(seconds)))
    coefficients: Floats = solution / scale
    return coefficients
