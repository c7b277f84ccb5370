"""How the logits of a job are cut into tiles that a workspace holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from zipfmax.backends.tiled_gradient import statistics_dtype

MIN_BLOCK_ROWS = 32
"""Below this a block's products are limited by reading the weights: tile the classes instead."""
MAX_BLOCK_ROWS = 1024
"""Rows of a block at most. More make no product faster, and what is held of each of their inputs grows."""


@dataclass(frozen=True)
class Tiles:
    """How a job of `n_rows` x `n_classes` logits is cut."""

    rows: int
    """Rows of a block."""
    classes: int
    """Classes of a tile; n_classes when a block is done in one go."""

    @classmethod
    def plan(
        cls,
        n_rows: int,
        n_classes: int,
        workspace_bytes: int,
        dtype: torch.dtype,
        *,
        narrow: bool = False,
        pitch: int = 0,
    ) -> Tiles:
        """The largest blocks that the workspace holds, of about equal size, up to `MAX_BLOCK_ROWS`.

        Args:
            n_rows, n_classes: of the job.
            workspace_bytes: of the workspace.
            dtype: of the products.
            narrow: whether logits of whole rows stay in that dtype, with none in the statistics' dtype beside.
            pitch: logits from one whole row to the next; by default n_classes.
        """
        n_rows, capacity = max(1, n_rows), max(1, workspace_bytes // bytes_per_logit(dtype))
        whole_rows = (workspace_bytes // dtype.itemsize if narrow else capacity) // (pitch or n_classes)
        if whole_rows >= min(n_rows, MIN_BLOCK_ROWS):
            return cls(_even(n_rows, min(MAX_BLOCK_ROWS, whole_rows)), n_classes)
        rows = _even(n_rows, min(MAX_BLOCK_ROWS, max(1, math.isqrt(capacity))))
        classes = _even(n_classes, max(1, capacity // rows))
        if classes == n_classes:  # whole rows after all, which may be padded
            rows = min(rows, max(1, capacity // (pitch or n_classes)))
        return cls(rows, classes)


def _even(total: int, largest: int) -> int:
    """Size of a part when `total` is cut into as few parts of at most `largest` as can be, evenly."""
    return math.ceil(total / math.ceil(total / largest))


def spans(total: int, size: int) -> Iterator[slice]:
    """Consecutive parts of `size`; the last may be shorter."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def bytes_per_logit(dtype: torch.dtype) -> int:
    """Of a tile that holds logits in the statistics' dtype, and beside it in the products' where that is another."""
    statistics = statistics_dtype(dtype)
    return statistics.itemsize + (dtype.itemsize if dtype != statistics else 0)
