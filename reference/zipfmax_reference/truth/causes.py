"""What would explain a wrong tensor: the definition with one of the usual mistakes made in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np

from zipfmax_reference.runs.arrays import CLASSES, Inputs
from zipfmax_reference.runs.case import Case
from zipfmax_reference.truth.contract import Values
from zipfmax_reference.truth.judgement import Truth

AFFORDABLE = 1 << 28
"""Multiplications N x d x V beyond which no explanation is tried."""


class Causes:
    """The usual mistakes on one case, each evaluated once."""

    def __init__(self, case: Case, inputs: Inputs, truth: Truth) -> None:
        self._case, self._inputs, self._truth = case, inputs, truth

    def of(self, tensor: str, values: Values) -> str | None:
        """The mistake with which the definition gives these values, within their budget; None if none does."""
        if tensor in CLASSES:
            return None
        right = self._truth.values[tensor]
        for mistake, wrong in self._mistakes:
            there = wrong.values.get(tensor)
            differs = there is not None and there.shape == values.shape and not np.array_equal(there, right)
            if differs and wrong.judge(tensor, values).status == "pass":
                return mistake
        return None

    @cached_property
    def _mistakes(self) -> list[tuple[str, Truth]]:
        case = self._case
        if case.batch_size * case.in_features * case.n_classes > AFFORDABLE:
            return []
        return list(_mistakes(case, self._inputs))


def _mistakes(case: Case, inputs: Inputs) -> Iterator[tuple[str, Truth]]:
    layout, weights = case.layout, inputs.weights
    n_rows = len(inputs.target)
    yield (
        "the gradient's sign is wrong",
        Truth.of(case, inputs, row_weight=np.full(n_rows, 1 / max(n_rows, 1))),
    )
    yield "the gradient is that of the sum", Truth.of(case, inputs, row_weight=np.full(n_rows, -1.0))
    if layout.n_clusters > 1:
        order = np.r_[: layout.shortlist_size, layout.head_size - 1 : layout.shortlist_size - 1 : -1]
        moved = {name: w[order] if name.startswith("head.") else w for name, w in weights.items()}
        yield "cluster slots are in reverse order", Truth.of(case, replace(inputs, weights=moved))
    if "head.bias" in weights:
        kept = {name: w for name, w in weights.items() if name != "head.bias"}
        yield "the head's bias is missing", Truth.of(case, replace(inputs, weights=kept))
    for tail in layout:
        for name in (f"tail.{tail.index}.0.weight", f"tail.{tail.index}.1.weight"):
            if weights[name].shape[0] == weights[name].shape[1] > 1:
                turned = {**weights, name: weights[name].T.copy()}
                yield f"{name} is transposed", Truth.of(case, replace(inputs, weights=turned))
