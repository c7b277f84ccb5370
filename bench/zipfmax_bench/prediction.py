"""What a cell will cost, before it is run: for the budget, and for the estimate of what is left."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from zipfmax_reference.contestants.implementation import Family
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.labels import distribution, vocabulary_size


def product_flops(family: Family, case: Case) -> float:
    """Floating-point operations of the matrix products of one run, 2 for a multiply and add.

    Adaptive softmax scores the head for every row and a tail for the rows that the label distribution sends
    there; `log_prob` scores everything, `topk` at most that, and so does full softmax. Training takes three
    products in place of one.
    """
    rows = case.batch_size
    if family == "full":
        forward = 2.0 * rows * case.in_features * case.n_classes
    else:
        layout = case.layout
        listed = vocabulary_size(case.labels)
        if listed is not None and listed < case.n_classes:
            return 0.0  # there are no such labels, and nothing is run
        shares = layout.occupancy(distribution(case.labels, case.n_classes))
        forward = 2.0 * rows * case.in_features * layout.head_size
        for tail, share in zip(layout, shares[1:], strict=True):
            members = rows * (1.0 if case.task in ("log_prob", "topk") else share)
            forward += 2.0 * members * tail.projection_size * (case.in_features + tail.size)
    return 3.0 * forward if case.task == "train" else forward


class RunTimePredictor:
    """Predicts seconds of a run from runs already seen: the nearest one in size, scaled by its FLOPs.

    Meant for cases in ascending cost. What was broken off counts as having taken as long as it was given, so
    that nothing dearer is tried after it.
    """

    def __init__(self, families: Mapping[str, Family]) -> None:
        self._families = families
        self._seen: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)

    def learn(self, name: str, case: Case, seconds: float) -> None:
        """Take in what a run of this case took, or at least took."""
        self._seen[name, case.dtype].append((product_flops(self._families[name], case), seconds))

    def predict(self, name: str, case: Case) -> float | None:
        """Seconds of one run, or None before anything comparable has been seen."""
        seen = self._seen.get((name, case.dtype))
        if not seen:
            return None
        flops = product_flops(self._families[name], case)
        near_flops, near_s = min(seen, key=lambda pair: abs(math.log(pair[0] / flops)))
        return near_s * flops / near_flops
