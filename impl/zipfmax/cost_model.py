"""What the parts of an adaptive softmax cost: a linear model in the work that each part does.

The paper (Grave et al. 2016, section 4.1) measures a product of B rows by k columns on a GPU and models it as
g(k, B) = max(c + lambda * k0 * B0, c + lambda * k * B): a constant, then proportional to the product. That is
`call` and `per_product` below. Measurements of this operator add to it:

- a logit costs an exponential and its way through the cache whatever its width, and a narrow product runs far
  below the peak, in steps that depend on the library: so a logit has a price of its own for each width;
- a weight is read, and in training its gradient written, however few rows there are: most of a rare tail;
- a small product runs below the peak and a larger one less so: the root of the number of logits is charged,
  between the constant and the logits (without it, steps of 2 ms with middling clusters were predicted 15 %
  too cheap against those with tiny and large ones); products of a single column are a vector's, free of it;
- logits and weights beyond the first few megabytes leave the caches and cost more each;
- so do logits of long rows: few such rows fit a block, so its gradient products read and write a weight's
  gradient for the sake of few rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zipfmax.clusters import ClusterLayout

Floats = npt.NDArray[np.float64]

NEAR_LOGITS = (1 << 21, 1 << 24)
"""Logits of one part beyond which each costs more: they leave the caches, then they take several blocks."""
LONG_ROW = 1 << 15
"""Logits of one row beyond which each costs `per_long_logit` more."""
NEAR_WEIGHTS = 1 << 20
"""Weights of one part beyond which each costs `per_far_weight` more."""
TAIL_WIDTHS = (1, 2, 4, 8, 16, 32, 64)
"""Widths of a tail at which its logits are priced; a wider tail pays the last price."""
N_PRICES = 9
"""Numbers of a `PartCost` beside the prices of a logit at each width."""
WIDE = (1,)
"""The head and full softmax are always wide: one price."""


@dataclass(frozen=True, slots=True)
class ClusterCost:
    """Seconds of the head or of a tail of one width, as a function of its classes C and expected rows R:

    constant + per_class * C + per_row * R + per_logit * C * R + per_root_logit * sqrt(C * R), and more for
    each class and each logit beyond some number of them, in all or in a row.
    """

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
class PartCost:
    """Seconds of one part that scores `rows` hidden states against `classes` of width `width`."""

    call: float
    per_product: float
    """A multiply-add of a logit or of a projected element: rows * classes * width of them."""
    per_weight: float
    """classes * width, and the projection's"""
    per_far_weight: float
    """Those beyond `NEAR_WEIGHTS`, on top."""
    per_input: float
    """rows * width of the layer's input, gathered, and in training scattered."""
    per_long_logit: float
    """rows * classes beyond `LONG_ROW`, on top of `per_logit`"""
    per_root_logit: float
    """the square root of rows * classes, where width > 1"""
    per_far_logit: tuple[float, ...]
    """Logits, rows * classes, beyond each of `NEAR_LOGITS`, on top of `per_logit`."""
    per_logit: tuple[float, ...]
    """At each of `widths`; between them linear in the logarithm of the width, beyond them constant."""
    widths: tuple[int, ...] = WIDE

    def seconds(
        self, rows: float, classes: float, width: float, projected_from: int = 0, slots: int = 0
    ) -> float:
        """Cost of the part; `part_features` says what the arguments mean."""
        work = part_features(rows, classes, width, projected_from, slots=slots, widths=self.widths)
        return float(np.dot(self.coefficients(), work))

    def coefficients(self) -> Floats:
        """[9 + len(widths)], in the order of `part_features`."""
        return np.array(
            [
                self.call,
                self.per_product,
                self.per_weight,
                self.per_far_weight,
                self.per_input,
                self.per_long_logit,
                self.per_root_logit,
                *self.per_far_logit,
                *self.per_logit,
            ]
        )

    @classmethod
    def of(cls, coefficients: Sequence[float] | Floats, widths: tuple[int, ...] = WIDE) -> PartCost:
        """The inverse of `coefficients`."""
        call, product, weight, far_weight, per_input, long_logit, root, *logit = map(float, coefficients)
        n_far = len(NEAR_LOGITS)
        return cls(
            call,
            product,
            weight,
            far_weight,
            per_input,
            long_logit,
            root,
            per_far_logit=tuple(logit[:n_far]),
            per_logit=tuple(logit[n_far:]),
            widths=widths,
        )

    def at_width(self, width: int, projected_from: int = 0) -> ClusterCost:
        """The part's cost as a function of classes and rows only; arguments as of `part_features`."""
        if width == 0:
            return ClusterCost(self.call, 0.0, 0.0, 0.0)
        projection = projected_from * width
        logit_price = float(np.dot(self.per_logit, _shares(width, self.widths)))
        return ClusterCost(
            constant=self.call + self.per_weight * projection,
            per_class=self.per_weight * width,
            per_row=self.per_product * projection + self.per_input * (projected_from or width),
            per_logit=self.per_product * width + logit_price,
            per_root_logit=self.per_root_logit if width > 1 else 0.0,
            far_classes=((NEAR_WEIGHTS / width - projected_from, self.per_far_weight * width),),
            long_rows=((LONG_ROW, self.per_long_logit),),
            far_logits=tuple(zip(NEAR_LOGITS, self.per_far_logit, strict=True)),
        )


def part_features(
    rows: float,
    classes: float,
    width: float,
    projected_from: int = 0,
    *,
    slots: int = 0,
    widths: tuple[int, ...] = WIDE,
) -> Floats:
    """The work of one part, [9 + len(widths)]: what a `PartCost`'s numbers multiply.

    Args:
        rows: hidden states scored.
        classes: logits of each.
        width: of the hidden state that is scored.
        projected_from: in_features of the projection in front, as a tail has one; 0 for none.
        slots: logits beside the classes, as the head has one a tail. Never counted as far or long:
            so a tail adds the same to every head, and the search stays exact.
        widths: as the `PartCost` has them.
    """
    if width == 0:  # a uniform tail: nothing is scored
        return np.array([1.0, *[0.0] * (N_PRICES - 1 + len(widths))])
    projection = projected_from * width
    weights, logits = classes * width + projection, rows * classes
    return np.array(
        [
            1.0,
            rows * ((classes + slots) * width + projection),
            weights + slots * width,
            max(0.0, weights - NEAR_WEIGHTS),
            rows * (projected_from or width),
            rows * max(0, classes - LONG_ROW),
            logits**0.5 if width > 1 else 0.0,
            *(max(0.0, logits - near) for near in NEAR_LOGITS),
            *(rows * (classes + slots) * _shares(width, widths)),
        ]
    )


def _shares(width: float, widths: Sequence[int]) -> Floats:
    """[len(widths)], of sum 1: how much of each width's price a logit of this width pays."""
    position = np.interp(np.log2(width), np.log2(widths), np.arange(len(widths)))
    shares: Floats = np.maximum(0.0, 1.0 - np.abs(position - np.arange(len(widths))))
    return shares


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of a step of adaptive and of full softmax on one device, dtype and task."""

    head: PartCost
    tail: PartCost
    full: PartCost
    error: float = 0.0
    """Median of |predicted - measured| / measured on steps that it was not fitted to: times that differ by
    less are not told apart. 0 for a model that is taken as exact."""

    def adaptive_s(self, layout: ClusterLayout, rows: Sequence[float]) -> float:
        """A step of that layout when `rows` of a batch, in expectation, have labels in each part.

        Args:
            layout: the partition.
            rows: the shortlist's rows, then each tail's; their sum is the batch size.
        """
        head = self.head.seconds(
            sum(rows), layout.shortlist_size, layout.in_features, slots=layout.n_clusters
        )
        return head + sum(
            self.tail.seconds(tail_rows, tail.size, tail.projection_size, layout.in_features)
            for tail, tail_rows in zip(layout, rows[1:], strict=True)
        )

    def full_s(self, batch_size: int, in_features: int, n_classes: int) -> float:
        """A step of linear and cross entropy over all classes."""
        return self.full.seconds(batch_size, n_classes, in_features)

    def to_record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> CostModel:
        """Reads `to_record` back.

        Raises:
            KeyError, TypeError: a record of another form.
            ValueError: prices or an error that are negative or not finite, or a part that costs nothing.
        """

        def part(name: str) -> PartCost:
            values: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in record[name].items()
            }
            found = PartCost(**values)
            prices = found.coefficients()
            if len(prices) != N_PRICES + len(found.widths) or not (np.isfinite(prices) & (prices >= 0)).all():
                raise ValueError(f"the prices of the {name} should be numbers of at least 0, got {prices}")
            if not prices.any():
                raise ValueError(f"the prices of the {name} are all 0")
            return found

        return cls(part("head"), part("tail"), part("full"), checked_error(record["error"]))


def checked_error(value: Any) -> float:
    """A relative error as a record holds it.

    Raises:
        TypeError, ValueError: a value that is not a number of at least 0.
    """
    found = float(value)
    if not 0 <= found < math.inf:
        raise ValueError(f"an error should be a number of at least 0, got {value}")
    return found


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
