"""The gradient of a weight, summed over blocks of rows in the tensor that autograd hands out."""

from __future__ import annotations

import torch
from torch import Tensor

from zipfmax.backends.tiled_products import add_product
from zipfmax.backends.tiled_workspace import empty

MAX_ROUNDED_SUMS = 16
"""Blocks summed in a reduced dtype before the sum is moved to float32."""


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of maxima, sums and logarithms: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class TiledWeightGradient:
    """A sum of products of blocks, written straight into the tensor that autograd will hand out.

    In a reduced dtype each added block rounds the sum once; after `MAX_ROUNDED_SUMS` blocks it is moved to
    a float32 total, so that a long batch loses no more than a short one.
    """

    def __init__(self, like: Tensor) -> None:
        self._sum = empty(tuple(like.shape), like.dtype, like.device)
        self._total: Tensor | None = None
        self._reduced = like.dtype != statistics_dtype(like.dtype)
        self._blocks = 0

    def start_block(self) -> None:
        """Announce the next block: `add` and `add_product` may then be called once for each slice."""
        if self._reduced and self._blocks == MAX_ROUNDED_SUMS:
            self._flush()
        self._blocks += 1

    def add_product(self, left: Tensor, right: Tensor, alpha: float, start: int = 0) -> None:
        """Add alpha * left @ right to the rows from `start`."""
        out = self._sum if left.shape[0] == self._sum.shape[0] else self._sum[start : start + left.shape[0]]
        add_product(out, left, right, alpha=alpha, beta=int(self._blocks > 1))

    def add(self, term: Tensor, start: int = 0) -> None:
        """Add a vector to the elements from `start`."""
        out = self._sum[start : start + term.shape[0]]
        if self._blocks > 1:
            out.add_(term)
        else:
            out.copy_(term)

    def result(self) -> Tensor:
        """The gradient; zeros where no block was added."""
        if self._total is not None:
            self._flush()
            self._sum.copy_(self._total)
        elif self._blocks == 0:
            self._sum.zero_()
        return self._sum

    def _flush(self) -> None:
        if self._total is None:
            self._total = self._sum.to(statistics_dtype(self._sum.dtype))
        else:
            self._total.add_(self._sum)
        self._blocks = 0


def result_of(gradient: TiledWeightGradient | None) -> Tensor | None:
    """The gradient that was summed, or None where none was wanted."""
    return None if gradient is None else gradient.result()
