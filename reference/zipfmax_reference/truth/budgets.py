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
    L = log sum exp s   var(L) = sum_v p_v^2 var(s_v) + (p O)^2 var(q) + C a^2 + B^2 + (a L)^2
                                 + (u max(1, L - max s))^2
                        over C classes, whose sum of exponentials or its logarithm may be stored. B is what a
                        running sum of the p_v loses systematically, terms below its spacing and equal ones
                        (`rounding.stagnation`)
    l = s - L           var(l) = var(s) + var(L) + stored(l) + a^2 (s^2 + L^2)
    output              var = var(l) of the head's slot + var(l) within the tail + stored(output)
    loss                sd  = mean of sd(output) + stored: rows need not be independent
    p = exp l           sd(p) = p (exp(6 sd(l)) - 1) / 6 <= 1: linear where sd(l) is small, and right at six
                        deviations where it is not; plus stored(p)
    ds = g (p - y)      var = g^2 (var(p) + 2 u^2 (p - y)^2) + tiny^2, for an upstream gradient -g of the row

    dW = ds' h, dO = dt' q, dP = dq' h (over rows), db = ds' 1:
                        var = m [var(ds)' h^2 (+ ds^2' var(q)) + sum] + (sum over rows of e h)^2
                              + (sum over rows of f h)^2 + stored
                        e^2 = (g B p)^2 + c^2 var(ds) + 3 under^2: what has one sign in all rows. B has; and where
                        a class's log p differ from row to row by less than the spacing 2 u |l| that they are rounded
                        to, all rows round alike, c = exp(-2 (pi sd_rows(l) / (2 u |l|))^2), as in `rounding`; then
                        the rows' differences are lost too, f = g c p (l - mean_rows(l)). For dP,
                        e^2 = (g B (p O))^2 + mean(c)^2 var(dq) + 3 (under O)^2, f O in place of f.
    dq = dt O, dh = ds W, dh = dq P (over classes or features):
                        var = var_own(ds) W^2 + (g sd(L) p W)^2 + 3 (g sum of lost p_v W_v)^2 + 3 (under W)^2 + sum
                              + stored
                        Lost are the terms below the spacing of one running sum over classes, of the size that
                        sum |ds W| has in the root mean square over columns. under is what storing p
                        and ds does to those of a few times float16's smallest number: it follows the value. Both are
                        known, and u^2 is three times the variance of an error within +-u.
                        The error of L is common to all classes of a row, so its part adds up coherently; so does
                        the part of q: (g sum_v p_v sd_q(s_v) |O_v|)^2, and dq's coherent part through P.
    grad.input          the sum of head and tail, each stored, and stored

m is the largest number of equal rows of the hidden state: equal rows make equal errors. Where y = 1 the error of
p - y is that of p. So an element's deviation is small where its terms are small: it is as tight for a class that
is met once in a million as for the most frequent one.

A deviation is infinite or NaN where something that is stored may overflow (float16, logits or log p beyond 65,504):
there a result need not be finite. What is finite all the same is held to the deviation without overflow
(`largest` infinite in the rounding), which is finite wherever the truth is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from zipfmax.clusters import ClusterLayout
from zipfmax_reference.contestants.implementation import Family
from zipfmax_reference.runs.arrays import Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import FULL_WEIGHT, full_weight
from zipfmax_reference.truth.rounding import CERTAIN, Floats, Rounding, Softmax, Sum, linear

CHUNK_ELEMENTS = 1 << 22
"""Logits that exist at a time: a dozen arrays of 32 MiB."""

_MOST_UNITS = 16.0
"""Weights' root mean squares that a sum of terms p W over classes may be, p summing to 1."""

SOME = 512
"""Rows and classes from which it is told whether rows are rounded alike."""


def of_case(
    case: Case,
    inputs: Inputs,
    family: Family,
    row_weight: Array,
    rounding: Rounding,
    *,
    of_weights: bool = True,
) -> tuple[Results, Results]:
    """Deviations of a task's tensors, of log_prob for "predict" and "topk"; and masks of what may overflow."""
    weights = {name: weight for name, weight in inputs.weights.items() if name != FULL_WEIGHT}
    matrix = full_weight(case, inputs) if family == "full" else None
    hidden, target, train = inputs.hidden, inputs.target, case.task == "train"

    def evaluated(r: Rounding) -> Results:
        if case.task not in ("forward", "train"):
            if matrix is not None:
                return {"log_prob": full_log_prob(matrix, hidden, r)}
            return {"log_prob": adaptive_log_prob(case.layout, weights, hidden, r)}
        if matrix is not None:
            return full(matrix, hidden, target, row_weight, r, gradients=train, of_weights=of_weights)
        return adaptive(
            case.layout, weights, hidden, target, row_weight, r, gradients=train, of_weights=of_weights
        )

    deviations = evaluated(rounding)
    if rounding.largest == np.inf or all(np.isfinite(d).all() for d in deviations.values()):
        return deviations, {}
    overflows = {name: ~np.isfinite(deviation) for name, deviation in deviations.items()}
    return evaluated(replace(rounding, largest=np.inf)), overflows


def adaptive(
    layout: ClusterLayout,
    weights: Mapping[str, Array],
    hidden: Array,
    target: Labels,
    row_weight: Array,
    rounding: Rounding,
    *,
    gradients: bool,
    of_weights: bool = True,
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
        of_weights: whether those of the weights' gradients are.

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
    softmax = _over_rows(r, head, bias, hidden, slot, row_weight, gradients, of_weights)
    variance, truth, grad_hidden, input_variance, *_ = softmax
    grad = dict(softmax.sums)
    if gradients and of_weights:
        grad |= {name: Sum(weight.shape) for name, weight in w.items() if name.startswith("tail.")}

    with np.errstate(all="ignore"):
        for tail in layout:
            projection, out = (w[f"tail.{tail.index}.{k}.weight"] for k in (0, 1))
            for rows in _chunks(np.flatnonzero(parts == tail.index + 1), tail.size):
                h, g = hidden[rows], row_weight[rows, None]
                q, q_variance = linear(r, h, projection, None)
                q_variance = r.stored(q, q_variance)
                logits, own = linear(r, q, out, None)
                through_q = q_variance @ (out**2).T
                soft = Softmax.of(r, logits, r.stored(logits, own), out, q_variance)
                at = np.arange(len(rows)), target[rows] - tail.start
                variance[rows] += (soft.variance() + through_q)[at]
                truth[rows] += soft.log_p[at]
                if not gradients:
                    continue
                ds, own, common, systematic = soft.grad_logits(r, at, g, through_q)
                if grad:
                    grad[f"tail.{tail.index}.1.weight"].add(r, ds, own + common, systematic, q, q_variance)
                dq = ds @ out
                dq_own = r.stored(dq, own @ out**2 + r.product(ds, out))
                of_q = np.abs(g) * ((soft.p * np.sqrt(through_q)) @ np.abs(out))
                mean = soft.p @ out
                lost = _lost(r, soft, ds, g, out)
                dq_common = (g**2 * soft.row) * mean**2 + of_q**2 + lost
                if grad:
                    repeated = (g * soft.stagnation * mean) ** 2 + lost
                    repeated += soft.coherence(r).mean() ** 2 * (dq_own + dq_common)
                    of_rows = np.sign(g) * np.sqrt(repeated), systematic[1] @ out
                    grad[f"tail.{tail.index}.0.weight"].add(r, dq, dq_own + dq_common, of_rows, h)
                dh = dq @ projection
                spread = dq_own @ projection**2 + (np.sqrt(dq_common) @ np.abs(projection)) ** 2
                grad_hidden[rows] += dh
                input_variance[rows] += r.stored(dh, spread + r.product(dq, projection))

        deviations: Results = {"output": np.sqrt(r.stored(truth, variance))}
        deviations["loss"] = _mean_deviation(r, deviations["output"], truth)
        if gradients:
            deviations["grad.input"] = np.sqrt(r.stored(grad_hidden, input_variance))
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
        logits, own = linear(r, h, w["head.weight"], w.get("head.bias"))
        head = Softmax.of(r, logits, r.stored(logits, own))
        head_variance = head.variance()
        variance[:, : layout.shortlist_size] = head_variance[:, : layout.shortlist_size]
        for tail in layout:
            projection, out = (w[f"tail.{tail.index}.{k}.weight"] for k in (0, 1))
            q, q_variance = linear(r, h, projection, None)
            q_variance = r.stored(q, q_variance)
            logits, own = linear(r, q, out, None)
            soft = Softmax.of(r, logits, r.stored(logits, own), out, q_variance)
            within = soft.variance() + q_variance @ (out**2).T
            total = soft.log_p + head.log_p[:, tail.slot, None]
            variance[:, tail.start : tail.stop] = r.stored(total, head_variance[:, tail.slot, None] + within)
    return np.sqrt(variance)


def different_rows(r: Rounding, weight: Array, bias: Array | None, hidden: Array) -> int:
    """Rows whose roundings are independent of each other's, at least one.

    Of n different rows whose roundings have the correlation c^2 (`Softmax.coherence` over weight [C, d]), as many
    count as average out to the same: n / (1 + (n - 1) c^2).
    """
    different = len(np.unique(hidden, axis=0))
    if different < 2:
        return 1
    h, matrix = (np.asarray(values[:SOME], dtype=np.float64) for values in (hidden, weight))
    with np.errstate(all="ignore"):
        logits, own = linear(r, h[np.isfinite(h).all(axis=1)], matrix, None if bias is None else bias[:SOME])
        coherence = Softmax.of(r, logits, own).coherence(r)
    return max(1, round(different / (1 + (different - 1) * float(np.nan_to_num(coherence).mean()) ** 2)))


def full(
    weight: Array,
    hidden: Array,
    target: Labels,
    row_weight: Array,
    rounding: Rounding,
    *,
    gradients: bool,
    of_weights: bool = True,
) -> Results:
    """Standard deviations of the errors of `definition.full`: of one softmax over a weight [n_classes, d]."""
    hidden, matrix = (np.asarray(values, dtype=np.float64) for values in (hidden, weight))
    softmax = _over_rows(rounding, matrix, None, hidden, target, row_weight, gradients, of_weights)
    with np.errstate(all="ignore"):
        output = np.sqrt(rounding.stored(softmax.truth, softmax.variance))
        deviations: Results = {"loss": _mean_deviation(rounding, output, softmax.truth)}
        if gradients:
            deviations["grad.input"] = np.sqrt(softmax.input_variance)
        if gradients and of_weights:
            deviations[f"grad.{FULL_WEIGHT}"] = softmax.sums["head.weight"].deviation(
                rounding, len(hidden), _most_equal_rows(hidden)
            )
    return deviations


def full_classes(
    weight: Array,
    classes: Labels,
    hidden: Array,
    target: Labels,
    output: Array,
    row_weight: Array,
    rounding: Rounding,
) -> tuple[Floats, Floats]:
    """The gradient of some rows of full softmax's weight, and its deviations: what a large case can afford.

    The variance of the log-sum-exp is taken from a few rows, the largest of theirs.

    Args:
        weight: [n_classes, d].
        classes: [S] whose rows are wanted.
        hidden: [N, d].
        target: [N].
        output: [N] log-probability of each target, from which the log-sum-exp follows.
        row_weight: [N] as in `adaptive`.
        rounding: of the dtype.

    Returns:
        [S, d] and [S, d].
    """
    r = rounding
    h_all, matrix = (np.asarray(values, dtype=np.float64) for values in (hidden, weight[classes]))
    log_sum = (h_all * np.asarray(weight[target], dtype=np.float64)).sum(axis=1) - output
    some = np.linspace(0, len(h_all) - 1, min(len(h_all), max(1, CHUNK_ELEMENTS // len(weight)), 8)).astype(
        int
    )
    logits, own = linear(r, h_all[some], np.asarray(weight, dtype=np.float64), None)
    row = Softmax.of(r, logits, r.stored(logits, own)).row.max()
    gradient = Sum(matrix.shape)
    with np.errstate(all="ignore"):
        for rows in _chunks(np.arange(len(h_all)), len(matrix)):
            logits, own = linear(r, h_all[rows], matrix, None)
            variance = np.full((len(rows), 1), row)
            soft = Softmax.of_some(r, logits, r.stored(logits, own), log_sum[rows, None], variance)
            at = np.nonzero(target[rows, None] == classes)
            ds, own, common, systematic = soft.grad_logits(r, (at[0], at[1]), row_weight[rows, None])
            gradient.add(r, ds, own + common, systematic, h_all[rows])
    return gradient.value, gradient.deviation(r, len(h_all), _most_equal_rows(h_all))


def full_log_prob(weight: Array, hidden: Array, rounding: Rounding) -> Array:
    """Standard deviations of the errors of `definition.full_log_prob`, [N, n_classes]."""
    h, matrix = (np.asarray(values, dtype=np.float64) for values in (hidden, weight))
    with np.errstate(all="ignore"):
        logits, own = linear(rounding, h, matrix, None)
        return np.sqrt(Softmax.of(rounding, logits, rounding.stored(logits, own)).variance())


class _Rows(NamedTuple):
    """One softmax over all rows."""

    variance: Floats
    """[N] Of the target's log p."""
    truth: Floats
    """[N]"""
    grad_hidden: Floats
    """[N, d]"""
    input_variance: Floats
    """[N, d]"""
    sums: dict[str, Sum]
    """Of the gradients by weight and bias, under the head's names; empty where they are not wanted."""


def _over_rows(
    r: Rounding,
    weight: Floats,
    bias: Floats | None,
    hidden: Floats,
    label: Labels,
    row_weight: Array,
    gradients: bool,
    of_weights: bool,
) -> _Rows:
    """What a softmax over weight [C, d] and bias [C] adds: the head's part, or all of full softmax."""
    sums = {}
    if gradients and of_weights:
        sums["head.weight"] = Sum(weight.shape)
        if bias is not None:
            sums["head.bias"] = Sum(bias.shape)
    zeros = np.zeros_like(hidden)
    found = _Rows(np.zeros(len(hidden)), np.zeros(len(hidden)), zeros, zeros.copy(), sums)
    with np.errstate(all="ignore"):
        for rows in _chunks(np.arange(len(hidden)), len(weight)):
            h, g = hidden[rows], row_weight[rows, None]
            logits, own = linear(r, h, weight, bias)
            soft = Softmax.of(r, logits, r.stored(logits, own))
            at = np.arange(len(rows)), label[rows]
            found.variance[rows], found.truth[rows] = soft.variance()[at], soft.log_p[at]
            if not gradients:
                continue
            ds, own, common, systematic = soft.grad_logits(r, at, g)
            for name, own_sum in sums.items():
                right = h if name == "head.weight" else np.ones((len(rows), 1))
                own_sum.add(r, ds, own + common, systematic, right)
            dh = ds @ weight
            spread = (
                own @ weight**2 + (g**2 * soft.row) * (soft.p @ weight) ** 2 + _lost(r, soft, ds, g, weight)
            )
            found.grad_hidden[rows] = dh
            found.input_variance[rows] = r.stored(dh, spread + r.product(ds, weight))
    return found


def _lost(r: Rounding, soft: Softmax, ds: Floats, g: Floats, weight: Floats) -> Floats:
    """Variance of what ds weight loses whole: in a running sum over classes, and where p or ds underflow.

    A product of few columns may keep one running sum an element (as sgemm does), and the target's term alone makes
    it as large as a weight. Its size is taken in units of the column's weights, and over columns in the root mean
    square.
    """
    lost = np.zeros_like(soft.p)
    unit = np.sqrt((weight**2).mean(axis=0))
    if unit.any() and soft.p.min() < _MOST_UNITS * r.summed:
        sizes = (np.abs(ds) @ np.abs(weight))[:, unit > 0] / (np.abs(g) * unit[unit > 0])
        units = np.minimum(np.sqrt((sizes**2).mean(axis=1, keepdims=True)), _MOST_UNITS)
        lost = np.where(soft.p <= r.summed * units, g * soft.p, 0.0)
    errors = [lost, r.underflow(ds), g * r.underflow(soft.p)]
    return CERTAIN * sum(((error @ weight) ** 2 for error in errors if error.any()), start=np.zeros((1, 1)))


def _mean_deviation(r: Rounding, deviation: Floats, output: Floats) -> Floats:
    if len(output) == 0:
        return np.asarray(np.nan)
    mean = output.mean()
    variance = deviation.mean() ** 2 + r.sum(len(output), np.abs(output).mean(), None)
    return np.asarray(np.sqrt(r.stored(mean, variance)))


def _most_equal_rows(hidden: Floats) -> int:
    """How often the most frequent row occurs."""
    if len(hidden) == 0:
        return 1
    return int(np.unique(hidden, axis=0, return_counts=True)[1].max())


def _chunks(rows: npt.NDArray[np.int64], width: int) -> Iterator[npt.NDArray[np.int64]]:
    step = max(1, CHUNK_ELEMENTS // max(width, 1))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
