"""What one rounding, one sum and one softmax add to the variance of an error: the pieces of `budgets`.

With a the unit roundoff that sums are taken in, n terms x of one sign and their sum S:

    sum of n terms      var = n (a S)^2, S the sum of |x|: each of n additions rounds at random

A running sum is a multiple of its own spacing q, so that adding x to it adds x rounded to a multiple of q. That
is random only where terms differ by more than q. It is systematic

    for terms below half a spacing: each is lost whole, whatever their number;
    for terms that are nearly equal: each is rounded by the same amount.

A library keeps `LANES` partial sums at least (one vector of 128 bits), so half a spacing is a S / LANES at most, and

    stagnation          B = sum of x over the terms up to a S / LANES
                            + a S / LANES |sum over the others of exp(2 pi i x / q)|,   q = 2 a S / LANES

whose second part is the first harmonic of the rounding error as a function of x (Widrow & Kollar 2008, "Quantization
noise", chapter 4: an error is uniform and independent of its input where the input's characteristic function is 0
at 2 pi / q). Over n terms whose spread exceeds q it is about sqrt(n) a S / LANES, less than the random part; over n
equal terms it is n a S / LANES. So B nears S where n nears 1 / a, and adds nothing where n is small and terms differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LANES = 4
"""Partial sums over classes that a library keeps at least."""

_FAR = 6.0
"""Deviations at which the error of an exponential is taken, and that a value may be from what overflows."""

CERTAIN = 3.0
"""Weight of the square of a known error: one within +-u has the variance u^2 / 3, and u^2 is counted here."""

_FEW = 8
"""Multiples of the smallest number up to which a stored value's rounding is taken as it is."""

Floats = npt.NDArray[Any]


@dataclass(frozen=True)
class Rounding:
    """Unit roundoffs of a dtype's arithmetic."""

    unit: float
    """Of results and of intermediate results."""
    summed: float
    """Of the dtype that sums are taken in."""
    tiny: float
    """Half the spacing of the smallest numbers, or the smallest normal number where smaller ones are flushed."""
    operand: float = 0.0
    """Of the operands of products, where they are rounded first."""
    largest: float = np.inf
    """Beyond it a stored number may become infinite."""

    def stored(self, values: Floats, variance: Floats | float = 0.0) -> Floats:
        """Variance of the values once stored, of their own before; infinite where they may overflow."""
        found: Floats = variance + (self.unit * values) ** 2 + self.tiny**2
        if self.largest == np.inf:
            return found
        return np.where(np.abs(values) + _FAR * np.sqrt(found) > self.largest, np.inf, found)

    def underflow(self, values: Floats) -> Floats:
        """Error of storing values so small that they are rounded to a few multiples of the smallest number.

        It follows the value, where that of larger ones is as good as random; 0 for those.
        """
        spacing = 2 * self.tiny
        return np.where(np.abs(values) < _FEW * spacing, spacing * np.rint(values / spacing) - values, 0.0)

    def sum(self, n_terms: int, absolute: Floats, squares: Floats | None) -> Floats:
        """Variance of a sum: of the terms' absolute values and, where operands are rounded, squares."""
        variance: Floats = n_terms * (self.summed * absolute) ** 2
        return variance if squares is None else variance + 2 * self.operand**2 * squares

    def product(self, left: Floats, right: Floats) -> Floats:
        """Variance of the matrix product left @ right, for exact operands."""
        squares = left**2 @ right**2 if self.operand else None
        return self.sum(left.shape[1], np.abs(left) @ np.abs(right), squares)

    def lost(self, shares: Floats) -> Floats:
        """Which terms of a sum, given as shares of it, are below half the spacing of a running sum."""
        return shares <= self.summed / LANES

    def stagnation(self, shares: Floats) -> Floats:
        """Systematic error of sums over the last axis, whose terms are given as shares of them: [n, C] -> [n, 1]."""
        lost = self.lost(shares)
        half = self.summed / LANES
        phases = np.pi / half * shares
        waves = np.hypot(*(np.where(lost, 0.0, wave(phases)).sum(axis=1) for wave in (np.cos, np.sin)))
        found: Floats = (np.where(lost, shares, 0.0).sum(axis=1) + half * waves)[:, None]
        return found


ROUNDING = {
    "float64": Rounding(2.0**-53, 2.0**-53, 2.0**-500),
    "float32": Rounding(2.0**-24, 2.0**-24, 2.0**-126),
    "tf32": Rounding(2.0**-24, 2.0**-24, 2.0**-126, operand=2.0**-10),
    "bfloat16": Rounding(2.0**-8, 2.0**-24, 2.0**-126),
    "float16": Rounding(2.0**-11, 2.0**-24, 2.0**-25, largest=65504.0),
}
"""By the dtype of a case; "tf32" is float32 whose products cut their operands to 10 bits. float64's smallest
numbers are left out, because their squares underflow."""


class Softmax(NamedTuple):
    """A softmax over some rows, [n, C] unless said otherwise, and variances."""

    p: Floats
    log_p: Floats
    own: Floats
    """Variance of log p without what is common to a row."""
    row: Floats
    """[n, 1] Variance of the log-sum-exp."""
    stagnation: Floats
    """[n, 1] Systematic part of the log-sum-exp's error, which `row` holds too."""

    def variance(self) -> Floats:
        """Variance of log p."""
        return self.own + self.row

    @classmethod
    def of(
        cls,
        r: Rounding,
        logits: Floats,
        variance: Floats,
        out: Floats | None = None,
        q_variance: Floats | None = None,
    ) -> Softmax:
        """Of logits with the given variances; those of q go through `out` to all classes of a row."""
        largest = logits.max(axis=1, keepdims=True)
        log_sum = largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
        log_p = logits - log_sum
        p = np.exp(log_p)
        stagnation = r.stagnation(p)
        # A logit that overflows downwards has the probability 0 and adds nothing.
        row = np.where(p > 0, p**2 * variance, 0.0).sum(axis=1, keepdims=True)
        row += logits.shape[1] * r.summed**2 + stagnation**2 + (r.summed * log_sum) ** 2
        row += (r.unit * np.maximum(log_sum - largest, 1.0)) ** 2
        if out is not None and q_variance is not None:
            row += ((p @ out) ** 2 * q_variance).sum(axis=1, keepdims=True)
        own = r.stored(log_p, variance + r.summed**2 * (logits**2 + log_sum**2))
        return cls(p, log_p, own, row, stagnation)

    @classmethod
    def of_some(cls, r: Rounding, logits: Floats, variance: Floats, log_sum: Floats, row: Floats) -> Softmax:
        """Of some classes' logits [n, S], where the log-sum-exp over all and its variance are known, [n, 1]."""
        log_p = logits - log_sum
        own = r.stored(log_p, variance + r.summed**2 * (logits**2 + log_sum**2))
        return cls(np.exp(log_p), log_p, own, row, np.zeros_like(row))

    def grad_logits(
        self,
        r: Rounding,
        at: tuple[npt.NDArray[Any], npt.NDArray[Any]],
        g: Floats,
        through_q: Floats | None = None,
    ) -> GradLogits:
        """Gradients of the logits for upstream gradients -g [n, 1] of the log p at (rows, columns)."""
        own = (
            np.where(np.isinf(self.own) & (self.p == 0), 0.0, _of_exp(self.p, self.own))
            + (r.unit * self.p) ** 2
        )
        common = _of_exp(self.p, self.row if through_q is None else self.row + through_q)
        ds = self.p.copy()
        ds[at] -= 1
        own += 2 * r.unit**2 * ds**2
        coherence = self.coherence(r)
        lost = CERTAIN * (r.underflow(g * ds) ** 2 + (g * r.underflow(self.p)) ** 2)
        repeated = g**2 * ((self.stagnation * self.p) ** 2 + coherence**2 * (own + common)) + lost
        levelled = g * self.p * coherence * (self.log_p - self.log_p.mean(axis=0))
        return GradLogits(
            -g * ds, g**2 * own + r.tiny**2, g**2 * common, (np.sign(g) * np.sqrt(repeated), levelled)
        )

    def coherence(self, r: Rounding) -> Floats:
        """How far a class's roundings repeat from row to row, [C]: 1 where its log p differ by less than rounding."""
        spacing = 2 * r.unit * np.abs(self.log_p).mean(axis=0)
        found: Floats = np.exp(-2 * (np.pi * self.log_p.std(axis=0) / np.maximum(spacing, 1e-300)) ** 2)
        return found


class GradLogits(NamedTuple):
    """Gradients of logits, [n, C], and the variances of their errors."""

    ds: Floats
    own: Floats
    """Of what is each element's own."""
    common: Floats
    """Of what is common to a row or comes by q."""
    systematic: tuple[Floats, Floats]
    """Errors that do not average out over rows: those of one sign, and what is lost of the rows' differences."""


class Sum:
    """A weight's gradient over chunks of rows, left' right, with what its variance needs."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        size = (shape[0], shape[1] if len(shape) > 1 else 1)
        self.value, self._variance, self._absolute, *self._systematic = (np.zeros(size) for _ in range(5))
        self._squares: Floats | None = None

    def add(
        self,
        r: Rounding,
        left: Floats,
        left_variance: Floats,
        systematic: tuple[Floats, Floats],
        right: Floats,
        right_variance: Floats | None = None,
    ) -> None:
        """Add a chunk's rows: [n, C], [n, C], two of [n, C], [n, k], [n, k].

        Args:
            r: of the dtype.
            left: the factor that is transposed.
            left_variance: of its errors, which are independent from row to row.
            systematic: errors of it that do not average out, as `GradLogits` has them.
            right: the other factor.
            right_variance: of its errors; None for exact.
        """
        squares = right**2
        self.value += left.T @ right
        self._absolute += np.abs(left).T @ np.abs(right)
        self._variance += left_variance.T @ squares
        for own, errors in zip(self._systematic, systematic, strict=True):
            own += errors.T @ right
        if right_variance is not None:
            self._variance += (left**2).T @ right_variance
        if r.operand:
            more = (left**2).T @ squares
            self._squares = more if self._squares is None else self._squares + more

    def deviation(self, r: Rounding, n_rows: int, equal_rows: int) -> Floats:
        """Standard deviation of the error of each element."""
        spread = equal_rows * (self._variance + r.sum(n_rows, self._absolute, self._squares))
        spread += sum(own**2 for own in self._systematic)
        return np.sqrt(r.stored(self.value, spread)).reshape(self._shape)


def linear(r: Rounding, x: Floats, weight: Floats, bias: Floats | None) -> tuple[Floats, Floats]:
    """x weight' + bias, and the variance of its summation."""
    values, absolute = x @ weight.T, np.abs(x) @ np.abs(weight).T
    if bias is not None:
        values, absolute = values + bias, absolute + np.abs(bias)
    squares = x**2 @ (weight**2).T if r.operand else None
    return values, r.sum(x.shape[1] + 1, absolute, squares)


def _of_exp(p: Floats, variance: Floats) -> Floats:
    """Variance of p = exp(x) for one of x: 1 at most, and infinite where x itself may overflow."""
    relative = np.expm1(np.minimum(_FAR * np.sqrt(variance), 600.0)) / _FAR
    return np.where(np.isinf(variance), np.inf, np.minimum(p * relative, 1.0) ** 2)
