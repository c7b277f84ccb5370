"""What rounding can do to each element: the standard deviation of its error, in float64, beside the truth.

Every rounding is taken as an independent random relative error (Higham & Mary 2019, "A new approach to
probabilistic rounding error analysis"), and the variances are propagated to first order through the formulas of
`definition`. With u the unit roundoff of the dtype that results are stored in, a that of the dtype that sums are
taken in, and t that of a product's operands (tf32; else 0):

    stored x            var = (u x)^2 + tiny^2             tiny: half the spacing of the smallest numbers
    sum of n terms      var = n (a sum |terms|)^2 + 2 t^2 sum terms^2
                        for any order of summation and any blocking (Higham 2002, chapters 3 and 4, with sqrt(n)
                        in place of n)

    q = P h             var(q) = sum(q) + stored(q)
    s = O q (or W h+b)  var(s) = sum(s) + stored(s) + (O^2) var(q)
    L = log sum exp s   var(L) = sum_v p_v^2 var(s_v) + (p O)^2 var(q) + C a^2 + u^2 + (a L)^2   over C classes,
                        whose sum of exponentials may be stored
    l = s - L           var(l) = var(s) + var(L) + stored(l) + a^2 (s^2 + L^2)
    output              var = var(l) of the head's slot + var(l) within the tail + stored(output)
    loss                sd  = mean of sd(output) + stored: rows need not be independent
    p = exp l           sd(p) = p (exp(6 sd(l)) - 1) / 6 <= 1: linear where sd(l) is small, and right at six
                        deviations where it is not; plus stored(p)
    ds = g (p - y)      var = g^2 (var(p) + 2 u^2 (p - y)^2) + tiny^2, for an upstream gradient -g of the row

    dW = ds' h, dO = dt' q, dP = dq' h (over rows), db = ds' 1:
                        var = m [var(ds)' h^2 (+ ds^2' var(q)) + sum + C (a sum |terms|)^2] + stored
                        The sum over the C classes of L drops small terms alike in all rows: of its deviation
                        sqrt(C) a nothing averages out over rows.
    dq = dt O, dh = ds W, dh = dq P (over classes or features):
                        var = var_own(ds) W^2 + (g sd(L) p W)^2 + sum + stored
                        The error of L is common to all classes of a row, so its part adds up coherently; so does
                        the part of q: (g sum_v p_v sd_q(s_v) |O_v|)^2, and dq's coherent part through P.
    grad.input          the sum of head and tail, each stored, and stored

m is the largest number of equal rows of the hidden state: equal rows make equal errors. Where y = 1 the error of
p - y is that of p. So an element's deviation is small where its terms are small: it is as tight for a class that
is met once in a million as for the most frequent one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zipfmax.clusters import ClusterLayout
from zipfmax_reference.contestants.implementation import Array, Labels, Results

CHUNK_ELEMENTS = 1 << 22
"""Logits that exist at a time: a dozen arrays of 32 MiB."""

_FAR = 6.0
"""Deviations at which the error of an exponential is taken."""

Floats = npt.NDArray[Any]


@dataclass(frozen=True)
class Rounding:
    """Unit roundoffs of a dtype's arithmetic."""

    stored: float
    """Of results and of intermediate results."""
    summed: float
    """Of the dtype that sums are taken in."""
    tiny: float
    """Half the spacing of the smallest numbers, or the smallest normal number where smaller ones are flushed."""
    operand: float = 0.0
    """Of the operands of products, where they are rounded first."""
    largest: float = np.inf
    """Beyond it a stored number may become infinite."""

    def store(self, values: Floats, variance: Floats | float) -> Floats:
        """Variance of values once they are stored; infinite where they may overflow."""
        total: Floats = variance + (self.stored * values) ** 2 + self.tiny**2
        if self.largest == np.inf:
            return total
        return np.where(np.abs(values) + _FAR * np.sqrt(variance) < self.largest, total, np.inf)

    def sum(self, n_terms: int, absolute: Floats, squares: Floats | None) -> Floats:
        """Variance of a sum: of the terms' absolute values and, where operands are rounded, squares."""
        variance: Floats = n_terms * (self.summed * absolute) ** 2
        return variance if squares is None else variance + 2 * self.operand**2 * squares

    def product(self, left: Floats, right: Floats) -> Floats:
        """Variance of the matrix product left @ right, for exact operands."""
        squares = left**2 @ right**2 if self.operand else None
        return self.sum(left.shape[1], np.abs(left) @ np.abs(right), squares)


ROUNDING = {
    "float64": Rounding(2.0**-53, 2.0**-53, 2.0**-500),
    "float32": Rounding(2.0**-24, 2.0**-24, 2.0**-126),
    "tf32": Rounding(2.0**-24, 2.0**-24, 2.0**-126, operand=2.0**-10),
    "bfloat16": Rounding(2.0**-8, 2.0**-24, 2.0**-126),
    "float16": Rounding(2.0**-11, 2.0**-24, 2.0**-25, largest=65504.0),
}
"""By the dtype of a case; "tf32" is float32 whose products cut their operands to 10 bits. float64's smallest
numbers are left out, because their squares underflow."""


class _Softmax(NamedTuple):
    """A softmax over some rows, [n, C] unless said otherwise, and variances."""

    p: Floats
    log_p: Floats
    """Finite where p underflows."""
    own: Floats
    """Variance of log p without what is common to a row."""
    row: Floats
    """[n, 1] Variance of the log-sum-exp."""

    def variance(self) -> Floats:
        """Of the error of log p."""
        return self.own + self.row


def adaptive(
    layout: ClusterLayout,
    weights: Mapping[str, Array],
    hidden: Array,
    target: Labels,
    row_weight: Array,
    rounding: Rounding,
    *,
    gradients: bool,
) -> Results:
    """Standard deviations of the errors of `definition.adaptive`, under the names of its results.

    Args:
        layout: the partition.
        weights: by torch.nn's names; `head.bias` may be absent.
        hidden: [N, d].
        target: [N].
        row_weight: [N] gradient of what is differentiated with respect to each row's output.
        rounding: of the dtype.
        gradients: whether those of the gradients are wanted.

    Returns:
        output [N], loss [], grad.input [N, d], grad.NAME of each weight's shape.
    """
    r = rounding
    hidden = np.asarray(hidden, dtype=np.float64)
    w = {name: np.asarray(weight, dtype=np.float64) for name, weight in weights.items()}
    head, bias = w["head.weight"], w.get("head.bias")
    n_rows = len(hidden)
    parts = layout.parts(target)
    slot = np.where(parts == 0, target, layout.shortlist_size + parts - 1)
    equal_rows = _most_equal_rows(hidden)
    variance = np.zeros(n_rows)
    truth = np.zeros(n_rows)
    sizes = {"head": layout.head_size, **{f"tail.{tail.index}": tail.size for tail in layout}}
    grad = {
        name: _Sum(weight.shape, next(size for part, size in sizes.items() if name.startswith(part + ".")))
        for name, weight in w.items()
    }
    grad_hidden, input_variance = np.zeros_like(hidden), np.zeros_like(hidden)

    with np.errstate(all="ignore"):
        for rows in _chunks(np.arange(n_rows), layout.head_size):
            h, g = hidden[rows], row_weight[rows, None]
            logits, own = _linear(r, h, head, bias)
            soft = _softmax(r, logits, r.store(logits, own))
            at = np.arange(len(rows)), slot[rows]
            variance[rows] = soft.variance()[at]
            truth[rows] = soft.log_p[at]
            if gradients:
                ds, own, common = _grad_logits(r, soft, slot[rows], g)
                grad["head.weight"].add(r, ds, own + common, h)
                if bias is not None:
                    grad["head.bias"].add(r, ds, own + common, np.ones((len(rows), 1)))
                dh = ds @ head
                spread = own @ head**2 + (g**2 * soft.row) * (soft.p @ head) ** 2 + r.product(ds, head)
                grad_hidden[rows], input_variance[rows] = dh, r.store(dh, spread)

        for tail in layout:
            projection, out = (w[f"tail.{tail.index}.{k}.weight"] for k in (0, 1))
            for rows in _chunks(np.flatnonzero(parts == tail.index + 1), tail.size):
                h, g = hidden[rows], row_weight[rows, None]
                q, q_variance = _linear(r, h, projection, None)
                q_variance = r.store(q, q_variance)
                logits, own = _linear(r, q, out, None)
                through_q = q_variance @ (out**2).T
                soft = _softmax(r, logits, r.store(logits, own), out, q_variance)
                at = np.arange(len(rows)), target[rows] - tail.start
                variance[rows] += (soft.variance() + through_q)[at]
                truth[rows] += soft.log_p[at]
                if not gradients:
                    continue
                ds, own, common = _grad_logits(r, soft, at[1], g, through_q)
                grad[f"tail.{tail.index}.1.weight"].add(r, ds, own + common, q, q_variance)
                dq = ds @ out
                dq_own = r.store(dq, own @ out**2 + r.product(ds, out))
                of_q = np.abs(g) * ((soft.p * np.sqrt(through_q)) @ np.abs(out))
                dq_common = (g**2 * soft.row) * (soft.p @ out) ** 2 + of_q**2
                grad[f"tail.{tail.index}.0.weight"].add(r, dq, dq_own + dq_common, h)
                dh = dq @ projection
                spread = dq_own @ projection**2 + (np.sqrt(dq_common) @ np.abs(projection)) ** 2
                grad_hidden[rows] += dh
                input_variance[rows] += r.store(dh, spread + r.product(dq, projection))

        deviations: Results = {"output": np.sqrt(r.store(truth, variance))}
        deviations["loss"] = _mean_deviation(r, deviations["output"], truth)
        if gradients:
            deviations["grad.input"] = np.sqrt(r.store(grad_hidden, input_variance))
            deviations |= {f"grad.{name}": own.deviation(r, n_rows, equal_rows) for name, own in grad.items()}
    return deviations


def adaptive_log_prob(
    layout: ClusterLayout, weights: Mapping[str, Array], hidden: Array, rounding: Rounding
) -> Array:
    """Standard deviations of the errors of `definition.adaptive_log_prob`, [N, n_classes]."""
    r = rounding
    h = np.asarray(hidden, dtype=np.float64)
    w = {name: np.asarray(weight, dtype=np.float64) for name, weight in weights.items()}
    variance = np.empty((len(h), layout.n_classes))
    with np.errstate(all="ignore"):
        logits, own = _linear(r, h, w["head.weight"], w.get("head.bias"))
        head = _softmax(r, logits, r.store(logits, own))
        head_variance = head.variance()
        variance[:, : layout.shortlist_size] = head_variance[:, : layout.shortlist_size]
        for tail in layout:
            projection, out = (w[f"tail.{tail.index}.{k}.weight"] for k in (0, 1))
            q, q_variance = _linear(r, h, projection, None)
            q_variance = r.store(q, q_variance)
            logits, own = _linear(r, q, out, None)
            soft = _softmax(r, logits, r.store(logits, own), out, q_variance)
            within = soft.variance() + q_variance @ (out**2).T
            total = soft.log_p + head.log_p[:, tail.slot, None]
            variance[:, tail.start : tail.stop] = r.store(total, head_variance[:, tail.slot, None] + within)
    return np.sqrt(variance)


def full(
    weight: Array,
    hidden: Array,
    target: Labels,
    row_weight: Array,
    rounding: Rounding,
    *,
    gradients: bool,
) -> Results:
    """Standard deviations of the errors of `definition.full`: of one softmax over a weight [n_classes, d]."""
    layout = ClusterLayout(hidden.shape[1], len(weight) + 1, (len(weight),))
    head = {"head.weight": weight}
    found = _one_softmax(head, layout, hidden, target, row_weight, rounding, gradients)
    del found["output"]
    return found


def full_log_prob(weight: Array, hidden: Array, rounding: Rounding) -> Array:
    """Standard deviations of the errors of `definition.full_log_prob`, [N, n_classes]."""
    h, matrix = (np.asarray(values, dtype=np.float64) for values in (hidden, weight))
    with np.errstate(all="ignore"):
        logits, own = _linear(rounding, h, matrix, None)
        return np.sqrt(_softmax(rounding, logits, rounding.store(logits, own)).variance())


def _one_softmax(
    weights: Mapping[str, Array],
    layout: ClusterLayout,
    hidden: Array,
    target: Labels,
    row_weight: Array,
    rounding: Rounding,
    gradients: bool,
) -> Results:
    """The head's part of `adaptive` over all classes."""
    r = rounding
    h_all, matrix = (np.asarray(values, dtype=np.float64) for values in (hidden, weights["head.weight"]))
    n_rows = len(h_all)
    variance, truth = np.zeros(n_rows), np.zeros(n_rows)
    grad = _Sum(matrix.shape, len(matrix))
    input_deviation = np.zeros_like(h_all)
    with np.errstate(all="ignore"):
        for rows in _chunks(np.arange(n_rows), len(matrix)):
            h, g = h_all[rows], row_weight[rows, None]
            logits, own = _linear(r, h, matrix, None)
            soft = _softmax(r, logits, r.store(logits, own))
            at = np.arange(len(rows)), target[rows]
            variance[rows], truth[rows] = soft.variance()[at], soft.log_p[at]
            if gradients:
                ds, own, common = _grad_logits(r, soft, target[rows], g)
                grad.add(r, ds, own + common, h)
                dh = ds @ matrix
                spread = own @ matrix**2 + (g**2 * soft.row) * (soft.p @ matrix) ** 2
                input_deviation[rows] = np.sqrt(r.store(dh, spread + r.product(ds, matrix)))
        output = np.sqrt(r.store(truth, variance))
        deviations: Results = {"output": output, "loss": _mean_deviation(r, output, truth)}
        if gradients:
            deviations["grad.input"] = input_deviation
            deviations["grad.full.weight"] = grad.deviation(r, n_rows, _most_equal_rows(h_all))
    return deviations


class _Sum:
    """A weight's gradient over chunks of rows, left' right, with what its variance needs.

    `n_classes` is the size of the softmax that the gradient comes from.
    """

    def __init__(self, shape: tuple[int, ...], n_classes: int) -> None:
        self._shape, self._n_classes = shape, n_classes
        size = (shape[0], shape[1] if len(shape) > 1 else 1)
        self._value, self._variance, self._absolute = (np.zeros(size) for _ in range(3))
        self._squares: Floats | None = None

    def add(
        self,
        r: Rounding,
        left: Floats,
        left_variance: Floats,
        right: Floats,
        right_variance: Floats | None = None,
    ) -> None:
        """Add a chunk's rows: [n, C], [n, C], [n, k], [n, k]."""
        squares = right**2
        self._value += left.T @ right
        self._absolute += np.abs(left).T @ np.abs(right)
        self._variance += left_variance.T @ squares
        if right_variance is not None:
            self._variance += (left**2).T @ right_variance
        if r.operand:
            more = (left**2).T @ squares
            self._squares = more if self._squares is None else self._squares + more

    def deviation(self, r: Rounding, n_rows: int, equal_rows: int) -> Floats:
        """Standard deviation of the error of each element."""
        sums = r.sum(n_rows + self._n_classes, self._absolute, self._squares)
        spread = equal_rows * (self._variance + sums)
        return np.sqrt(r.store(self._value, spread)).reshape(self._shape)


def _linear(r: Rounding, x: Floats, weight: Floats, bias: Floats | None) -> tuple[Floats, Floats]:
    """x weight' + bias, and the variance of its summation."""
    values, absolute = x @ weight.T, np.abs(x) @ np.abs(weight).T
    if bias is not None:
        values, absolute = values + bias, absolute + np.abs(bias)
    squares = x**2 @ (weight**2).T if r.operand else None
    return values, r.sum(x.shape[1] + 1, absolute, squares)


def _softmax(
    r: Rounding,
    logits: Floats,
    variance: Floats,
    out: Floats | None = None,
    q_variance: Floats | None = None,
) -> _Softmax:
    """Softmax of logits with the given variances; those of q go through `out` to all classes of a row."""
    largest = logits.max(axis=1, keepdims=True)
    log_sum = largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    log_p = logits - log_sum
    p = np.exp(log_p)
    # A logit that overflows to -inf leaves its row as it is.
    row = np.where(p > 0, p**2 * variance, 0.0).sum(axis=1, keepdims=True) + logits.shape[1] * r.summed**2
    row += r.stored**2 + (r.summed * log_sum) ** 2
    if out is not None and q_variance is not None:
        row += ((p @ out) ** 2 * q_variance).sum(axis=1, keepdims=True)
    own = r.store(log_p, variance) + r.summed**2 * (logits**2 + log_sum**2)
    return _Softmax(p, log_p, own, row)


def _grad_logits(
    r: Rounding, soft: _Softmax, label: Labels, g: Floats, through_q: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    """ds [n, C], the variance of what is each element's own, and of what is common to a row or comes by q."""
    at = np.arange(len(label)), label
    own = np.minimum(soft.p * _relative(soft.own), 1.0) ** 2 + (r.stored * soft.p) ** 2
    shared = soft.row if through_q is None else soft.row + through_q
    common = np.where(shared == np.inf, np.inf, np.minimum(soft.p * _relative(shared), 1.0) ** 2)
    ds = soft.p.copy()
    ds[at] -= 1
    own += 2 * r.stored**2 * ds**2
    return -g * ds, g**2 * own + r.tiny**2, g**2 * common


def _relative(variance: Floats) -> Floats:
    """Relative deviation of exp(x) for a variance of x."""
    return np.expm1(np.minimum(_FAR * np.sqrt(variance), 600.0)) / _FAR


def _mean_deviation(r: Rounding, deviation: Floats, output: Floats) -> Floats:
    if len(output) == 0:
        return np.asarray(np.nan)
    mean = output.mean()
    variance = deviation.mean() ** 2 + r.sum(len(output), np.abs(output).mean(), None)
    return np.asarray(np.sqrt(r.store(mean, variance)))


def _most_equal_rows(hidden: Floats) -> int:
    """How often the most frequent row occurs."""
    if len(hidden) == 0:
        return 1
    return int(np.unique(hidden, axis=0, return_counts=True)[1].max())


def _chunks(rows: npt.NDArray[np.int64], width: int) -> Iterator[npt.NDArray[np.int64]]:
    step = max(1, CHUNK_ELEMENTS // max(width, 1))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
