"""Head and tails of a cell: what their matrix products amount to, and what each took where that was timed.

FLOPs and bytes are counted from the case, its measured occupancy and the partition of `ClusterLayout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from zipfmax.clusters import ClusterLayout

_ELEMENT_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class StepPart:
    """The head or a tail in one cell.

    Attributes:
        name: "head", "tail 1", ...
        rows: rows of the batch that it scores.
        width: its projection size, the head's is in_features.
        classes: columns that it scores, the head's with the clusters' slots.
        flops: of its products, 2 for a multiply and add; training takes three products for each of forward.
        bytes: that the products move if every operand is read, and every result written, once.
    """

    name: str
    rows: float
    width: int
    classes: int
    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes if self.bytes else float("nan")


@dataclass(frozen=True)
class TimedPart:
    """The head or a tail of the batch on which a sweep timed the parts.

    Attributes:
        part: its products, with the rows of that batch.
        seconds: what the head took with all that a step does once, or what a tail added to it.
        share: of the whole step.
        limit_s: of the part's bare products, if they were timed.
    """

    part: StepPart
    seconds: float
    share: float
    limit_s: float | None

    @property
    def efficiency(self) -> float:
        """Limit over measured; NaN without a limit, and where no time is left of the difference."""
        return self.limit_s / self.seconds if self.limit_s and self.seconds > 0 else float("nan")


def timed_parts(cell: pd.Series) -> list[TimedPart]:
    """The timed parts of a cell; none where it was not split."""
    times, rows, limits, whole_s = (
        cell[name] for name in ("parts_s", "parts_rows", "limit_parts_s", "parts_whole_s")
    )
    if not isinstance(times, Sequence) or not isinstance(rows, Sequence) or not whole_s > 0:
        return []
    parts = _parts(cell, [count / max(sum(rows), 1) for count in rows])
    if len(parts) != len(times):
        return []
    bare = limits if isinstance(limits, Sequence) and len(limits) == len(times) else [None] * len(times)
    return [
        TimedPart(part, seconds, seconds / whole_s, limit_s)
        for part, seconds, limit_s in zip(parts, times, bare, strict=True)
    ]


def parts_of(cell: pd.Series) -> list[StepPart]:
    """The parts of an adaptive cell; none where its cutoffs or occupancy are not recorded."""
    return _parts(cell, cell["occupancy"])


def _parts(cell: pd.Series, shares: object) -> list[StepPart]:
    cutoffs = cell["cutoffs"]
    if (
        not isinstance(cutoffs, Sequence)
        or not isinstance(shares, Sequence)
        or len(shares) != len(cutoffs) + 1
    ):
        return []
    width, batch = int(cell["in_features"]), float(cell["batch_size"])
    layout = ClusterLayout(width, int(cell["n_classes"]), tuple(cutoffs), float(cell["div_value"]))
    products = 3 if cell["task"] == "train" else 1
    element = products * _ELEMENT_BYTES.get(str(cell["dtype"]), 4)
    whole = cell["task"] in ("log_prob", "topk")
    found = [_part("head", batch, [(width, layout.head_size)], products, element)]
    for tail, share in zip(layout, shares[1:], strict=True):
        rows = batch if whole else batch * share
        shapes = [(width, tail.projection_size), (tail.projection_size, tail.size)]
        found.append(_part(f"tail {tail.index + 1}", rows, shapes, products, element))
    return found


def _part(name: str, rows: float, shapes: list[tuple[int, int]], products: int, element: int) -> StepPart:
    width, classes = shapes[-1]
    flops = sum(2.0 * products * rows * k * n for k, n in shapes)
    moved = sum(element * (rows * k + k * n + rows * n) for k, n in shapes) if rows else 0.0
    return StepPart(name, rows, width, classes, flops, moved)
