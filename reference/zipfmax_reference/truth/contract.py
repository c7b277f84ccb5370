"""What a tensor of results has to look like, and how far picked classes are from the right ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from zipfmax_reference.runs.arrays import CLASSES

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "tf32": 2.0**-10, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Distance from 1 to the next number of each dtype; "tf32" is float32 whose products round to 10 bits."""

HOST_DTYPE = {"float64": "float64", "float32": "float32", "float16": "float16", "bfloat16": "float32"}
"""What results of each dtype come as on the host."""

Values = npt.NDArray[Any]


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


def best_classes(log_prob: Values, k: int) -> Values:
    """The classes of the k largest values of each row, descending: [N, V] -> [N, k]."""
    if k == 1:
        one: Values = np.where(np.isnan(log_prob), -np.inf, log_prob).argmax(axis=1)[:, None]
        return one
    return np.argsort(-log_prob, axis=1, kind="stable")[:, :k]


def form_fault(name: str, values: Values, truth: Values, dtype: str) -> str | None:
    """What is wrong with a tensor's shape or dtype, or None."""
    if values.shape != truth.shape:
        return f"shape {values.shape}, expected {truth.shape}"
    if name in CLASSES:
        return None if values.dtype.kind in "iu" else f"dtype {values.dtype}, expected int64"
    expected = HOST_DTYPE[dtype]
    return None if values.dtype == expected else f"dtype {values.dtype}, expected {expected}"
