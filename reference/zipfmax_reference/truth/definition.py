"""Adaptive softmax from its definition (Grave et al. 2016, section 4), in NumPy, with gradients by hand.

Head:    s = W h + b,          p(slot | h) = softmax(s)[slot]
Tail i:  t = O_i P_i h,        p(y | tail i, h) = softmax(t)[y - start_i]

log p(y | h) = log p(y | h)                           for y in the shortlist, whose slot is y itself,
             = log p(slot_i | h) + log p(y | tail i)  for y in tail i.

The loss is L = -mean over rows of log p(y | h). What is differentiated is a function of the rows' outputs with
the gradient -g, for the loss g = 1 / N. With ds = g (softmax(s) - onehot(slot)), and for the rows of tail i
dt = g (softmax(t) - onehot(y - start_i)) and q = P_i h:

dW = ds' h    db = sum ds    dO_i = dt' q    dP_i = (dt O_i)' h    dh = ds W + sum over tails of dt O_i P_i

Evaluated in float64 this is the truth of the harness. It never touches torch. Rows are taken in chunks, so
that no more than one chunk's logits exist at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from zipfmax.clusters import ClusterLayout
from zipfmax_reference.contestants.implementation import Family
from zipfmax_reference.runs.arrays import Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import FULL_WEIGHT, full_weight

Dtype = type[np.floating[Any]]

CHUNK_ELEMENTS = 1 << 24
"""Logits that exist at a time; 128 MiB in float64."""


def adaptive(
    layout: ClusterLayout,
    weights: Mapping[str, Array],
    hidden: Array,
    target: Labels,
    *,
    gradients: bool = True,
    of_weights: bool = True,
    row_weight: Array | None = None,
    dtype: Dtype = np.float64,
) -> Results:
    """Log-probability of each target, the mean loss, and the gradients of the loss.

    Args:
        layout: the partition.
        weights: by torch.nn's names; `head.bias` may be absent.
        hidden: [N, d].
        target: [N], in [0, n_classes).
        gradients: whether to add `grad.input` and `grad.NAME` of every weight.
        of_weights: whether those of the weights are wanted, which take most of the memory.
        row_weight: [N] gradient of what is differentiated with respect to each row's output; by default that
            of the mean loss, -1/N.
        dtype: what to compute in: float64, or the machine's long double, which has 64 bits of mantissa on x86.

    Returns:
        output [N]; loss [], NaN for N = 0; grad.input [N, d]; grad.NAME of the weight's shape.
    """
    hidden = np.asarray(hidden, dtype=dtype)
    w = {name: np.asarray(weight, dtype=dtype) for name, weight in weights.items()}
    n_rows = len(hidden)
    g = _row_weights(row_weight, n_rows, dtype)
    parts = layout.parts(target)
    slot = np.where(parts == 0, target, layout.shortlist_size + parts - 1)
    output = np.zeros(n_rows, dtype=dtype)
    grad = {name: np.zeros_like(weight) for name, weight in w.items()} if gradients and of_weights else {}
    grad_hidden = np.zeros_like(hidden)

    with np.errstate(all="ignore"):
        for rows in _chunks(np.arange(n_rows), layout.head_size):
            h = hidden[rows]
            log_p = _log_softmax(_head_logits(w, h))
            output[rows] = log_p[np.arange(len(rows)), slot[rows]]
            if gradients:
                ds = _grad_logits(log_p, slot[rows], g[rows])
                if grad:
                    grad["head.weight"] += ds.T @ h
                if "head.bias" in grad:
                    grad["head.bias"] += ds.sum(axis=0)
                grad_hidden[rows] = ds @ w["head.weight"]

        for tail in layout:
            projection, out = (f"tail.{tail.index}.{k}.weight" for k in (0, 1))
            for rows in _chunks(np.flatnonzero(parts == tail.index + 1), tail.size):
                h = hidden[rows]
                q = h @ w[projection].T
                log_p = _log_softmax(q @ w[out].T)
                label = target[rows] - tail.start
                output[rows] += log_p[np.arange(len(rows)), label]
                if gradients:
                    dt = _grad_logits(log_p, label, g[rows])
                    dq = dt @ w[out]
                    if grad:
                        grad[out] += dt.T @ q
                        grad[projection] += dq.T @ h
                    grad_hidden[rows] += dq @ w[projection]

        results: Results = {"output": output, "loss": _mean_loss(output)}
    if gradients:
        results["grad.input"] = grad_hidden
        results |= {f"grad.{name}": gradient for name, gradient in grad.items()}
    return results


def adaptive_log_prob(
    layout: ClusterLayout, weights: Mapping[str, Array], hidden: Array, dtype: Dtype = np.float64
) -> Array:
    """Log-probabilities of all classes, [N, d] -> [N, n_classes]."""
    h = np.asarray(hidden, dtype=dtype)
    w = {name: np.asarray(weight, dtype=dtype) for name, weight in weights.items()}
    log_p = np.empty((len(h), layout.n_classes), dtype=dtype)
    with np.errstate(all="ignore"):
        head = _log_softmax(_head_logits(w, h))
        log_p[:, : layout.shortlist_size] = head[:, : layout.shortlist_size]
        for tail in layout:
            q = h @ w[f"tail.{tail.index}.0.weight"].T
            within = _log_softmax(q @ w[f"tail.{tail.index}.1.weight"].T)
            log_p[:, tail.start : tail.stop] = head[:, tail.slot, None] + within
    return log_p


def full(
    weight: Array,
    hidden: Array,
    target: Labels,
    *,
    gradients: bool = True,
    of_weights: bool = True,
    row_weight: Array | None = None,
    dtype: Dtype = np.float64,
) -> Results:
    """Full softmax over a weight [n_classes, d]: loss; with `gradients`, grad.input and, `of_weights`,
    grad.full.weight.
    """
    hidden, w = (np.asarray(values, dtype=dtype) for values in (hidden, weight))
    n_rows = len(hidden)
    g = _row_weights(row_weight, n_rows, dtype)
    output = np.zeros(n_rows, dtype=dtype)
    grad_weight = np.zeros_like(w) if gradients and of_weights else None
    grad_hidden = np.zeros_like(hidden)
    with np.errstate(all="ignore"):
        for rows in _chunks(np.arange(n_rows), len(w)):
            log_p = _log_softmax(hidden[rows] @ w.T)
            output[rows] = log_p[np.arange(len(rows)), target[rows]]
            if gradients:
                ds = _grad_logits(log_p, target[rows], g[rows])
                if grad_weight is not None:
                    grad_weight += ds.T @ hidden[rows]
                grad_hidden[rows] = ds @ w
        results: Results = {"loss": _mean_loss(output)}
    if gradients:
        results["grad.input"] = grad_hidden
    if grad_weight is not None:
        results[f"grad.{FULL_WEIGHT}"] = grad_weight
    return results


def full_log_prob(weight: Array, hidden: Array, dtype: Dtype = np.float64) -> Array:
    """Log-probabilities of full softmax, [N, d] -> [N, n_classes]."""
    hidden, w = (np.asarray(values, dtype=dtype) for values in (hidden, weight))
    with np.errstate(all="ignore"):
        log_p: Array = _log_softmax(hidden @ w.T)
    return log_p


def evaluate(
    case: Case,
    inputs: Inputs,
    family: Family = "adaptive",
    *,
    row_weight: Array | None = None,
    of_weights: bool = True,
    dtype: Dtype = np.float64,
) -> Results:
    """What a case's task should give, under the names of `Runner.results`; the options are those of `adaptive`.

    "predict" gives `predict` [N], int64: the first most probable class; a row with NaN gives its first NaN.
    "topk" gives the case's k best, of equal ones the first first.
    """
    hidden = inputs.hidden
    weights = {name: weight for name, weight in inputs.weights.items() if name != FULL_WEIGHT}
    matrix = full_weight(case, inputs) if family == "full" else None
    if case.task in ("forward", "train"):
        train = case.task == "train"
        options: dict[str, Any] = {"row_weight": row_weight, "of_weights": of_weights, "dtype": dtype}
        if matrix is not None:
            return full(matrix, hidden, inputs.target, gradients=train, **options)
        return adaptive(case.layout, weights, hidden, inputs.target, gradients=train, **options)

    def log_prob(rows: Array) -> Array:
        if matrix is not None:
            return full_log_prob(matrix, rows, dtype)
        return adaptive_log_prob(case.layout, weights, rows, dtype)

    if case.task == "log_prob":
        return {"log_prob": log_prob(hidden)}
    k = case.k if case.task == "topk" else 1
    values = np.zeros((len(hidden), k), dtype=dtype)
    classes = np.zeros((len(hidden), k), dtype=np.int64)
    for rows in _chunks(np.arange(len(hidden)), case.n_classes):
        log_p = log_prob(hidden[rows])
        first = log_p.argmax(axis=1)[:, None] if k == 1 else np.argsort(-log_p, axis=1, kind="stable")[:, :k]
        classes[rows] = first
        values[rows] = np.take_along_axis(log_p, classes[rows], axis=1)
    if case.task == "predict":
        return {"predict": classes[:, 0]}
    return {"topk.values": values, "topk.classes": classes}


class Definition:
    """The definition behind the interface of the others, always in float64."""

    name = "definition"
    family: Family = "adaptive"

    def unsupported_reason(self, case: Case) -> str | None:
        """It can do every case on the CPU."""
        return None if case.device == "cpu" else "NumPy computes on the CPU only"

    def build(self, case: Case, inputs: Inputs) -> DefinitionRunner:
        """Hold the case's weights."""
        return DefinitionRunner(case, inputs)


class DefinitionRunner:
    """Runs `evaluate` on a batch."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self._case, self._inputs = case, inputs
        self._results: Results = {}

    def load(self, hidden: Array, target: Labels) -> None:
        """Take a batch."""
        self._inputs = Inputs(hidden, target, self._inputs.weights)

    def run(self) -> None:
        """Compute the case's task."""
        self._results = evaluate(self._case, self._inputs)

    def results(self) -> Results:
        """What the last run computed."""
        return self._results

    def mismatches(self) -> dict[str, str]:
        """NumPy has one device, and float64 is what it promises."""
        return {}


def _chunks(rows: npt.NDArray[np.int64], width: int) -> Iterator[npt.NDArray[np.int64]]:
    step = max(1, CHUNK_ELEMENTS // max(width, 1))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _head_logits(w: Mapping[str, Array], h: Array) -> Any:
    logits = h @ w["head.weight"].T
    return logits + w["head.bias"] if "head.bias" in w else logits


def _log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _row_weights(row_weight: Array | None, n_rows: int, dtype: Dtype) -> Array:
    if row_weight is None:
        return np.full(n_rows, dtype(-1) / dtype(max(n_rows, 1)))
    return np.asarray(row_weight, dtype=dtype)


def _grad_logits(log_p: Array, label: Labels, row_weight: Array) -> Any:
    """(softmax - onehot(label)) times minus the row's weight."""
    grad = np.exp(log_p)
    grad[np.arange(len(grad)), label] -= 1
    return grad * -row_weight[:, None]


def _mean_loss(output: Array) -> Array:
    return np.asarray(-(output.sum() / output.dtype.type(len(output))))
