"""The numeric contract: when a computed tensor counts as equal to the truth.

error(ours) <= 2 * (error(reference) + eps(dtype) * size(truth)), once with the largest elementwise error and
the largest |truth|, once with both as root mean squares; and finite wherever the truth is, nowhere else.
Errors are absolute differences from the truth. NaN never passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "tf32": 2.0**-10, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Distance from 1 to the next number of each dtype; "tf32" is float32 whose products round to 10 bits."""

CLASSES = ("predict", "topk.classes")
"""Tensors of classes, best first. The probability of what was picked counts: a tie may fall either way."""

HOST_DTYPE = {"float64": "float64", "float32": "float32", "float16": "float16", "bfloat16": "float32"}
"""What results of each dtype come as on the host."""

Values = npt.NDArray[Any]
Status = Literal["pass", "fail", "skipped"]


class Size(NamedTuple):
    """Elementwise maximum and root mean square of some absolute values."""

    max: float
    rms: float


@dataclass(frozen=True)
class Verdict:
    """What the contract says of one tensor, in the norm whose error is the larger share of its budget."""

    status: Status
    error: float | None = None
    budget: float | None = None
    reference_error: float | None = None
    norm: str | None = None
    error_ulp: float | None = None
    """The largest elementwise error in units in the last place of the largest |truth|."""
    reason: str | None = None


def size(values: Values) -> Size:
    """Of |values|; zero where there are none. NaN and infinities spread."""
    if values.size == 0:
        return Size(0.0, 0.0)
    absolute = np.abs(values.astype(np.float64))
    largest = float(absolute.max())
    if largest == 0 or not np.isfinite(largest):
        return Size(largest, largest)
    return Size(largest, largest * float(np.sqrt(np.mean((absolute / largest) ** 2))))


def error(values: Values, truth: Values) -> Size:
    """Distance from the truth where it is finite; infinite where the values are not finite there."""
    sound = np.isfinite(truth)
    values = values[sound].astype(truth.dtype)
    if not np.isfinite(values).all():
        return Size(np.inf, np.inf)
    return size(values - truth[sound])


def gaps(predicted: Values, log_prob: Values) -> Values:
    """How far from the probability of the class of its rank each picked class is, in nats: [N] or [N, k].

    A single column is held against the best class, k columns against the k best in descending order. 0 for
    rows whose truth has NaN, infinity for classes that do not exist or that a row has picked before.
    """
    if predicted.size == 0:
        return np.zeros(predicted.shape)
    n_classes = log_prob.shape[1]
    labels = predicted.reshape(len(predicted), -1).astype(np.float64)
    exists = (labels >= 0) & (labels < n_classes) & (labels == np.floor(labels))
    chosen = np.where(exists, labels, 0).astype(np.int64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(best(log_prob, labels.shape[1]) - np.take_along_axis(log_prob, chosen, axis=1))
    repeated = np.tril(chosen[:, :, None] == chosen[:, None, :], -1).any(axis=2)
    unsound = np.isnan(log_prob).any(axis=1, keepdims=True)
    found = np.where(unsound, 0.0, np.where(exists & ~repeated, gap, np.inf))
    return found.reshape(predicted.shape)


def best(log_prob: Values, k: int) -> Values:
    """The k largest values of each row, descending: [N, V] -> [N, k]. NaN counts as the largest."""
    n_classes = log_prob.shape[1]
    largest = np.partition(log_prob, n_classes - k, axis=1)[:, n_classes - k :]
    return np.sort(largest, axis=1)[:, ::-1]


def form_fault(name: str, values: Values, truth: Values, dtype: str) -> str | None:
    """What is wrong with a tensor's shape or dtype, or None."""
    if values.shape != truth.shape:
        return f"shape {values.shape}, expected {truth.shape}"
    if name in CLASSES:
        return None if values.dtype.kind in "iu" else f"dtype {values.dtype}, expected int64"
    expected = HOST_DTYPE[dtype]
    return None if values.dtype == expected else f"dtype {values.dtype}, expected {expected}"


def judge(values: Values, truth: Values, reference_error: Size, dtype: str) -> Verdict:
    """Whether a floating tensor equals the truth, given the reference's own error.

    Args:
        values: what was computed, of the truth's shape.
        truth: in float64 or wider.
        reference_error: `error` of the reference's tensor.
        dtype: the case's.
    """
    spurious = int((np.isfinite(values) & ~np.isfinite(truth)).sum())
    if spurious:
        return Verdict("fail", reason=f"{spurious} finite values where the truth is not finite")
    return _within(error(values, truth), reference_error, size(truth[np.isfinite(truth)]), EPS[dtype])


def judge_gaps(gap: Values, log_prob: Values, reference_gap: Size, dtype: str) -> Verdict:
    """Whether predicted classes are the most probable ones, up to ties: `gaps` is the error."""
    scale = size(log_prob[np.isfinite(log_prob)]).max
    return _within(size(gap), reference_gap, Size(scale, scale), EPS[dtype])


def _within(ours: Size, reference: Size, truth: Size, eps: float) -> Verdict:
    if not np.isfinite(reference.max):
        return Verdict(
            "skipped", reason="the reference is not finite where the truth is, so it sets no budget"
        )
    worst: tuple[float, Verdict] | None = None
    for norm in ("max", "rms"):
        mine, theirs, scale = (getattr(of, norm) for of in (ours, reference, truth))
        budget = 2 * (theirs + eps * scale)
        holds = mine <= budget  # never true of NaN
        share = mine / budget if budget > 0 else (0.0 if mine == 0 else np.inf)
        verdict = Verdict(
            "pass" if holds else "fail",
            error=mine,
            budget=budget,
            reference_error=theirs,
            norm=norm,
            error_ulp=ours.max / (eps * truth.max) if truth.max > 0 else (0.0 if ours.max == 0 else np.inf),
            reason=None if np.isfinite(mine) else "not finite where the truth is",
        )
        if worst is None or not share <= worst[0]:
            worst = share, verdict
    assert worst is not None
    return worst[1]
