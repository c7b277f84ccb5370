"""Adaptive softmax from its definition (Grave et al. 2016, section 4), in NumPy, with gradients by hand.

Head:    s = W h + b,          p(slot | h) = softmax(s)[slot]
Tail i:  t = O_i P_i h,        p(y | tail i, h) = softmax(t)[y - start_i]

log p(y | h) = log p(y | h)                           for y in the shortlist, whose slot is y itself,
             = log p(slot_i | h) + log p(y | tail i)  for y in tail i.

The loss is L = -mean over rows of log p(y | h). With ds = (softmax(s) - onehot(slot)) / N, and for the rows
of tail i dt = (softmax(t) - onehot(y - start_i)) / N and q = P_i h:

dW = ds' h    db = sum ds    dO_i = dt' q    dP_i = (dt O_i)' h    dh = ds W + sum over tails of dt O_i P_i

Evaluated in float64 this is the truth of the harness. It never touches torch. Rows are taken in chunks, so
that no more than one chunk's logits exist at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zipfmax.clusters import ClusterLayout
from zipfmax_reference.contestants.implementation import Array, Family, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import FULL_WEIGHT, draw_full_weight
from zipfmax_reference.truth.contract import EPS

CHUNK_ELEMENTS = 1 << 24
"""Logits that exist at a time; 128 MiB in float64."""


@dataclass(frozen=True)
class Arithmetic:
    """What to compute in: the dtype that sums are taken in, and the rounding of each intermediate result."""

    dtype: type[np.floating[Any]]
    rounded: Callable[[Any], Any]
    product: Callable[[Any, Any], Any] = np.matmul
    rounds_log_sum_exp: bool = False
    """Whether the log-sum-exp is rounded before it is subtracted from the logits, as many softmaxes do."""


def arithmetic(dtype: str) -> Arithmetic:
    """Arithmetic of a dtype; the 16-bit ones sum in float32 and round every intermediate to 16 bits.

    "extended" is the machine's long double: 64 bits of mantissa on x86, no more than float64 elsewhere.
    """
    return Arithmetic(*_ARITHMETIC[dtype])


def plain_arithmetic(dtype: str, rng: np.random.Generator) -> Arithmetic:
    """Arithmetic without luck: what equally careful implementations may differ by.

    Products are summed one after the other, the log-sum-exp is an intermediate result, and every such result
    is moved by up to one unit in the last place at random (Monte Carlo arithmetic, Parker 1997).
    """
    sums, rounded = _ARITHMETIC[dtype]

    def moved(values: Any) -> Any:
        shift = 1 + EPS[dtype] * rng.uniform(-1, 1, np.shape(values))
        return rounded((values * shift).astype(sums))

    return Arithmetic(sums, moved, _recursive_product, rounds_log_sum_exp=True)


def _rounded_to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Round to nearest even on the upper 16 bits; NaN and infinities stay what they are."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    rounded = upper.astype(np.uint32).view(np.float32)
    kept: npt.NDArray[np.float32] = np.where(np.isfinite(values), rounded, values).astype(np.float32)
    return kept


def _recursive_product(left: Any, right: Any) -> Any:
    product = np.zeros((left.shape[0], right.shape[1]), dtype=left.dtype)
    for k in range(left.shape[1]):
        product += left[:, k, None] * right[k]
    return product


_ARITHMETIC: dict[str, tuple[type[np.floating[Any]], Callable[[Any], Any]]] = {
    "extended": (np.longdouble, lambda values: values),
    "float64": (np.float64, lambda values: values),
    "float32": (np.float32, lambda values: values),
    "float16": (np.float32, lambda values: values.astype(np.float16).astype(np.float32)),
    "bfloat16": (np.float32, _rounded_to_bfloat16),
}
FLOAT64 = arithmetic("float64")


def adaptive(
    layout: ClusterLayout,
    weights: Mapping[str, Array],
    hidden: Array,
    target: Labels,
    *,
    gradients: bool = True,
    arithmetic: Arithmetic = FLOAT64,
) -> Results:
    """Log-probability of each target, the mean loss, and the gradients of the loss.

    Args:
        layout: the partition.
        weights: by torch.nn's names; `head.bias` may be absent.
        hidden: [N, d].
        target: [N], in [0, n_classes).
        gradients: whether to add `grad.input` and `grad.NAME` of every weight.
        arithmetic: what to compute in.

    Returns:
        output [N]; loss [], NaN for N = 0; grad.input [N, d]; grad.NAME of the weight's shape.
    """
    r, mm = arithmetic.rounded, arithmetic.product
    hidden = np.asarray(hidden, dtype=arithmetic.dtype)
    w = {name: np.asarray(weight, dtype=arithmetic.dtype) for name, weight in weights.items()}
    n_rows = len(hidden)
    parts = layout.parts(target)
    slot = np.where(parts == 0, target, layout.shortlist_size + parts - 1)
    output = np.zeros(n_rows, dtype=arithmetic.dtype)
    grad = {name: np.zeros_like(weight) for name, weight in w.items()}
    grad_hidden = np.zeros_like(hidden)

    with np.errstate(all="ignore"):
        for rows in _chunks(np.arange(n_rows), layout.head_size):
            h = hidden[rows]
            log_p = _log_softmax(r(_head_logits(w, h, mm)), arithmetic)
            output[rows] = log_p[np.arange(len(rows)), slot[rows]]
            if gradients:
                ds = _grad_logits(log_p, slot[rows], n_rows, r)
                grad["head.weight"] += mm(ds.T, h)
                if "head.bias" in w:
                    grad["head.bias"] += ds.sum(axis=0)
                grad_hidden[rows] = mm(ds, w["head.weight"])

        for tail in layout:
            projection, out = (f"tail.{tail.index}.{k}.weight" for k in (0, 1))
            for rows in _chunks(np.flatnonzero(parts == tail.index + 1), tail.size):
                h = hidden[rows]
                q = r(mm(h, w[projection].T))
                log_p = _log_softmax(r(mm(q, w[out].T)), arithmetic)
                label = target[rows] - tail.start
                output[rows] = r(output[rows] + log_p[np.arange(len(rows)), label])
                if gradients:
                    dt = _grad_logits(log_p, label, n_rows, r)
                    dq = r(mm(dt, w[out]))
                    grad[out] += mm(dt.T, q)
                    grad[projection] += mm(dq.T, h)
                    grad_hidden[rows] += mm(dq, w[projection])

        results: Results = {"output": output, "loss": _mean_loss(output, r)}
    if gradients:
        results["grad.input"] = r(grad_hidden)
        results |= {f"grad.{name}": r(gradient) for name, gradient in grad.items()}
    return results


def adaptive_log_prob(
    layout: ClusterLayout, weights: Mapping[str, Array], hidden: Array, arithmetic: Arithmetic = FLOAT64
) -> Array:
    """Log-probabilities of all classes, [N, d] -> [N, n_classes]."""
    r, mm = arithmetic.rounded, arithmetic.product
    h = np.asarray(hidden, dtype=arithmetic.dtype)
    w = {name: np.asarray(weight, dtype=arithmetic.dtype) for name, weight in weights.items()}
    log_p = np.empty((len(h), layout.n_classes), dtype=arithmetic.dtype)
    with np.errstate(all="ignore"):
        head = _log_softmax(r(_head_logits(w, h, mm)), arithmetic)
        log_p[:, : layout.shortlist_size] = head[:, : layout.shortlist_size]
        for tail in layout:
            q = r(mm(h, w[f"tail.{tail.index}.0.weight"].T))
            within = _log_softmax(r(mm(q, w[f"tail.{tail.index}.1.weight"].T)), arithmetic)
            log_p[:, tail.start : tail.stop] = r(head[:, tail.slot, None] + within)
    return log_p


def full(
    weight: Array,
    hidden: Array,
    target: Labels,
    *,
    gradients: bool = True,
    arithmetic: Arithmetic = FLOAT64,
) -> Results:
    """Full softmax over a weight [n_classes, d]: loss; with `gradients`, grad.input and grad.full.weight."""
    r, mm = arithmetic.rounded, arithmetic.product
    hidden, w = (np.asarray(values, dtype=arithmetic.dtype) for values in (hidden, weight))
    n_rows = len(hidden)
    output = np.zeros(n_rows, dtype=arithmetic.dtype)
    grad_weight, grad_hidden = np.zeros_like(w), np.zeros_like(hidden)
    with np.errstate(all="ignore"):
        for rows in _chunks(np.arange(n_rows), len(w)):
            log_p = _log_softmax(r(mm(hidden[rows], w.T)), arithmetic)
            output[rows] = log_p[np.arange(len(rows)), target[rows]]
            if gradients:
                ds = _grad_logits(log_p, target[rows], n_rows, r)
                grad_weight += mm(ds.T, hidden[rows])
                grad_hidden[rows] = mm(ds, w)
        results: Results = {"loss": _mean_loss(output, r)}
    if gradients:
        results |= {"grad.input": r(grad_hidden), f"grad.{FULL_WEIGHT}": r(grad_weight)}
    return results


def full_log_prob(weight: Array, hidden: Array, arithmetic: Arithmetic = FLOAT64) -> Array:
    """Log-probabilities of full softmax, [N, d] -> [N, n_classes]."""
    r, mm = arithmetic.rounded, arithmetic.product
    hidden, w = (np.asarray(values, dtype=arithmetic.dtype) for values in (hidden, weight))
    with np.errstate(all="ignore"):
        log_p: Array = _log_softmax(r(mm(hidden, w.T)), arithmetic)
    return log_p


def evaluate(
    case: Case, inputs: Inputs, family: Family = "adaptive", arithmetic: Arithmetic = FLOAT64
) -> Results:
    """What a case's task should give, under the names of `Runner.results`, in some arithmetic.

    "predict" gives `predict` [N], int64: the first most probable class; a row with NaN gives its first NaN.
    "topk" gives the case's k best, of equal ones the first first.
    """
    hidden = inputs.hidden
    weights = {name: weight for name, weight in inputs.weights.items() if name != FULL_WEIGHT}
    matrix = full_weight(case, inputs) if family == "full" else None
    if case.task in ("forward", "train"):
        train = case.task == "train"
        if matrix is not None:
            return full(matrix, hidden, inputs.target, gradients=train, arithmetic=arithmetic)
        return adaptive(case.layout, weights, hidden, inputs.target, gradients=train, arithmetic=arithmetic)

    def log_prob(rows: Array) -> Array:
        if matrix is not None:
            return full_log_prob(matrix, rows, arithmetic)
        return adaptive_log_prob(case.layout, weights, rows, arithmetic)

    if case.task == "log_prob":
        return {"log_prob": log_prob(hidden)}
    k = case.k if case.task == "topk" else 1
    values = np.zeros((len(hidden), k), dtype=arithmetic.dtype)
    classes = np.zeros((len(hidden), k), dtype=np.int64)
    for rows in _chunks(np.arange(len(hidden)), case.n_classes):
        log_p = log_prob(hidden[rows])
        first = log_p.argmax(axis=1)[:, None] if k == 1 else np.argsort(-log_p, axis=1, kind="stable")[:, :k]
        classes[rows] = first
        values[rows] = np.take_along_axis(log_p, classes[rows], axis=1)
    if case.task == "predict":
        return {"predict": classes[:, 0]}
    return {"topk.values": values, "topk.classes": classes}


def full_weight(case: Case, inputs: Inputs) -> Array:
    """The matrix of full softmax: the inputs' own where they hold one, else drawn from the case's seed."""
    return inputs.weights[FULL_WEIGHT] if FULL_WEIGHT in inputs.weights else draw_full_weight(case)


class Definition:
    """The definition behind the interface of the others, always in float64."""

    name = "definition"
    family: Family = "adaptive"

    def lacks(self, case: Case) -> str | None:
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


def _head_logits(w: Mapping[str, Array], h: Array, mm: Callable[[Any, Any], Any]) -> Any:
    logits = mm(h, w["head.weight"].T)
    return logits + w["head.bias"] if "head.bias" in w else logits


def _log_softmax(logits: Any, arithmetic: Arithmetic) -> Any:
    largest = logits.max(axis=1, keepdims=True)
    shifted = logits - largest
    log_sum = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    if arithmetic.rounds_log_sum_exp:
        return arithmetic.rounded(logits - arithmetic.rounded(largest + log_sum))
    return arithmetic.rounded(shifted - log_sum)


def _grad_logits(log_p: Array, label: Labels, n_rows: int, rounded: Callable[[Any], Any]) -> Any:
    """(softmax - onehot(label)) / n_rows."""
    grad = np.exp(log_p)
    grad[np.arange(len(grad)), label] -= 1
    return rounded(grad / grad.dtype.type(n_rows))


def _mean_loss(output: Array, rounded: Callable[[Any], Any]) -> Array:
    mean = output.sum() / output.dtype.type(len(output))
    return np.asarray(rounded(-np.asarray(mean)))
