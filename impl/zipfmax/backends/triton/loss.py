"""What comes before and after the pass over the classes: the loss, and the factor of each row's gradient.

    loss = -sum of output  or  -sum of output / counted        row weight w_i = g_loss_i - g_output_i

Both are one program that strides over the rows, in a fixed order: 4 to 12 bytes a row,
3 us for 16,384 rows on
an H100, where each operation of torch's in their place would cost as much.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.launch import Launch

_BLOCK = 4096
_MODES = {"sum": 0, "mean": 1, "none": 2}


@triton.jit(do_not_specialize=["n_rows"])
def loss_kernel(
    output_ptr,
    result_ptr,
    loss_ptr,
    factor_ptr,
    totals_ptr,
    n_rows,
    CAST: tl.constexpr,
    MODE: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The loss, -output for MODE 2; with CAST, output rounded to result's dtype.

    factor = N / counted where rows are ignored and MODE is the mean: gradients of -sum of output / N times
    it are those of the loss.
    """
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n_rows, BLOCK):
        i = first + tl.arange(0, BLOCK)
        x = tl.load(output_ptr + i, mask=i < n_rows, other=0.0)
        total += x
        if CAST:
            tl.store(result_ptr + i, x.to(result_ptr.dtype.element_ty), mask=i < n_rows)
        if MODE == 2:
            tl.store(loss_ptr + i, (-x).to(loss_ptr.dtype.element_ty), mask=i < n_rows)
    loss = -tl.sum(total, 0)
    if MODE == 1:
        counted = n_rows.to(tl.float32)
        if HAS_IGNORE:
            rows = tl.load(totals_ptr)
            counted = rows.to(tl.float32)
            tl.store(factor_ptr, tl.div_rn(n_rows.to(tl.float32), tl.maximum(rows, 1).to(tl.float32)))
        loss = tl.div_rn(loss, counted)
    if MODE != 2:
        tl.store(loss_ptr, loss.to(loss_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["n_rows"])
def row_weight_kernel(
    grad_output_ptr,
    grad_loss_ptr,
    factor_ptr,
    target_ptr,
    weight_ptr,
    largest_ptr,
    n_rows,
    ignore_index,
    HAS_OUTPUT: tl.constexpr,
    HAS_LOSS: tl.constexpr,
    MODE: tl.constexpr,
    HAS_FACTOR: tl.constexpr,
    HAS_IGNORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """weight = (g_loss - g_output) / largest, where largest is the greatest of their absolute values.

    So 1/N of a mean does not vanish in float16 before it meets other numbers. largest is 1 where it would be
    zero or not finite.
    """
    loss = 0.0
    if HAS_LOSS and MODE != 2:
        loss = tl.load(grad_loss_ptr).to(tl.float32)
        if MODE == 1:
            loss /= n_rows.to(tl.float32)
        if HAS_FACTOR:
            loss *= tl.load(factor_ptr)
    largest = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n_rows, BLOCK):
        i = first + tl.arange(0, BLOCK)
        there = i < n_rows
        x = tl.zeros([BLOCK], tl.float32) + loss
        if HAS_LOSS and MODE == 2:
            x += tl.load(grad_loss_ptr + i, mask=there, other=0.0).to(tl.float32)
        if HAS_OUTPUT:
            x -= tl.load(grad_output_ptr + i, mask=there, other=0.0).to(tl.float32)
        if HAS_IGNORE:
            x = tl.where(tl.load(target_ptr + i, mask=there, other=0) != ignore_index, x, 0.0)
        tl.store(weight_ptr + i, x, mask=there)
        largest = tl.maximum(largest, tl.where(there, tl.abs(x), 0.0))
    peak = tl.max(largest, 0)
    peak = tl.where((peak > 0.0) & (peak < float("inf")), peak, 1.0)
    tl.store(largest_ptr, peak)
    tl.debug_barrier()
    for first in range(0, n_rows, BLOCK):
        i = first + tl.arange(0, BLOCK)
        x = tl.load(weight_ptr + i, mask=i < n_rows, other=0.0)
        tl.store(weight_ptr + i, tl.div_rn(x, peak), mask=i < n_rows)


class Loss:
    """The launch of `loss_kernel`.

    Args:
        n_rows: of the batch, at least 1.
        reduction: "mean", "sum" or "none".
        has_ignore: rows may be ignored.
        dtype: of the results.
    """

    def __init__(self, n_rows: int, reduction: str, has_ignore: bool, dtype: torch.dtype) -> None:
        constants = {
            "CAST": dtype != torch.float32,
            "MODE": _MODES[reduction],
            "HAS_IGNORE": has_ignore,
            "BLOCK": min(_BLOCK, int(triton.next_power_of_2(n_rows))),
            "num_warps": 8,
        }
        self.launch = Launch(loss_kernel, (1,), constants)
        self._n_rows = n_rows

    def __call__(self, stream: int | None, *arguments: Any) -> None:
        """Launch with output, result, loss, factor, totals."""
        self.launch(stream, *arguments, self._n_rows)


class RowWeights:
    """The launch of `row_weight_kernel`.

    Args:
        n_rows: of the batch, at least 1.
        reduction: of the loss whose gradient came in, if one did.
        ignore_index: rows with this target get 0.
        has_output, has_loss: which gradients came in; has_factor: `loss_kernel` wrote a factor.
    """

    def __init__(
        self,
        n_rows: int,
        reduction: str,
        ignore_index: int | None,
        has_output: bool,
        has_loss: bool,
        has_factor: bool,
    ) -> None:
        constants = {
            "HAS_OUTPUT": has_output,
            "HAS_LOSS": has_loss,
            "MODE": _MODES[reduction],
            "HAS_FACTOR": has_factor,
            "HAS_IGNORE": ignore_index is not None,
            "BLOCK": min(_BLOCK, int(triton.next_power_of_2(n_rows))),
            "num_warps": 8,
        }
        self.launch = Launch(row_weight_kernel, (1,), constants)
        self._scalars = (n_rows, 0 if ignore_index is None else ignore_index)

    def __call__(self, stream: int | None, *arguments: Any) -> None:
        """Launch with the gradients of output and loss, factor, target, weight and largest."""
        self.launch(stream, *arguments, *self._scalars)


@functools.lru_cache(maxsize=256)
def _row_weights_launch(device: torch.device, *settings: Any) -> RowWeights:
    del device  # a handle serves one device
    return RowWeights(*settings)


def row_weights(
    grad_output: Tensor | None,
    grad_loss: Tensor | None,
    factor: Tensor | None,
    target: Tensor,
    reduction: str,
    ignore_index: int | None,
) -> tuple[Tensor, Tensor]:
    """(weight [N], largest [1]), float32: the factor of each row's gradient of -output, over the largest.

    Args:
        grad_output: [N]; grad_loss: a scalar or, for "none", [N]; None where nothing came in.
        factor: as `loss_kernel` wrote it, or None.
        target: [N] int64, N at least 1.
    """
    settings = (
        target.shape[0],
        reduction,
        ignore_index,
        grad_output is not None,
        grad_loss is not None,
        factor is not None,
    )
    weight = torch.empty(target.shape[0], dtype=torch.float32, device=target.device)
    largest = torch.empty(1, dtype=torch.float32, device=target.device)
    found = [weight if t is None else t.contiguous() for t in (grad_output, grad_loss, factor)]
    launch = _row_weights_launch(target.device, *settings) if target.is_cuda else RowWeights(*settings)
    launch(None, *found, target, weight, largest)
    return weight, largest
