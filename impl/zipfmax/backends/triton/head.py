"""The head: logits in a bounded workspace, and one kernel from logits to gradient.

For a row h with head weight W, bias b and target slot y (its label in the shortlist, or its cluster's slot):

    z = W h + b        output = z_y - log sum_j exp z_j        dz = weight * (softmax(z) - onehot(y))

The products are the vendor's GEMMs, on chunks of rows (`head_logits`). `head_kernel` runs between them and
leaves dz where z was, so the logits exist once and for one chunk only. Then dh = dz W and dW += dz^T h, in
float32 where there are several chunks.

FLOPs: 3 products of 2 N d head_size. Bytes: 6 N head_size in half precision if a chunk outgrows the L2 cache
(the product writes z, the kernel reads z and writes dz, two products read dz: the last two overlap the
arithmetic). At d = 1024 on an H100 (650 TFLOP/s, 3 TB/s) the products take 9.5 ps a logit and the kernel's
4 bytes 1.3 ps: bound by the tensor cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.head_logits import ALIGNMENT, chunk_rows, product
from zipfmax.backends.triton.language import LN2, LOG2E
from zipfmax.backends.triton.launch import Launch
from zipfmax.backends.triton.runtime import cdiv, round_up
from zipfmax.backends.triton.tiles import head_tile


@triton.jit
def head_kernel(
    logits_ptr,
    target_ptr,
    weight_ptr,
    output_ptr,
    n_columns,
    row_stride,
    ignore_index,
    HAS_IGNORE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    GRADIENT: tl.constexpr,
    BOUNDS: tl.constexpr,
    N_CLUSTERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row a program: output = z_y - logsumexp z; with GRADIENT, z becomes weight * (softmax(z) - onehot).

    Reads z twice, the second time from the L2 cache, with one exponential each time. Rows that take no part
    get output 0 and gradient 0, whatever their logits hold.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    target = tl.load(target_ptr + row)
    valid = (target >= 0) & (target < BOUNDS[N_CLUSTERS])
    if HAS_IGNORE:
        valid = valid & (target != ignore_index)
    slot = target
    for c in tl.static_range(N_CLUSTERS):
        slot = tl.where(target >= BOUNDS[c], BOUNDS[0] + c, slot)
    slot = tl.where(valid, slot, 0)
    column = tl.arange(0, BLOCK)

    target_logit = tl.load(logits_ptr + slot).to(tl.float32)
    whole = n_columns // BLOCK * BLOCK
    # The first block's maximum stands in for the row's: a pass fewer, and as precise while sums stay finite.
    z = tl.load(logits_ptr + column, mask=column < n_columns, other=-float("inf")).to(tl.float32)
    peak = tl.max(z, 0)
    peak = tl.where(tl.abs(peak) < float("inf"), peak, 0.0)
    total = _sum_exp(logits_ptr, column, whole, n_columns, peak, BLOCK)
    if not ((total > 7.9e-31) & (total < 1.2e30)):
        peaks = tl.full([BLOCK], -float("inf"), tl.float32)
        for first in range(0, n_columns, BLOCK):
            here = first + column
            z = tl.load(logits_ptr + here, mask=here < n_columns, other=-float("inf")).to(tl.float32)
            peaks = tl.maximum(peaks, z)
        peak = tl.max(peaks, 0)
        total = _sum_exp(logits_ptr, column, whole, n_columns, peak, BLOCK)

    tl.store(output_ptr + row, tl.where(valid, target_logit - peak - tl.log2(total) * LN2, 0.0))
    if GRADIENT:
        weight = 1.0
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + row)
        scale = weight / total
        if valid:
            for first in range(0, whole, BLOCK):
                z = tl.load(logits_ptr + first + column).to(tl.float32)
                gradient = tl.exp2(z * LOG2E - peak * LOG2E) * scale
                if (slot >= first) & (slot < first + BLOCK):
                    gradient = tl.where(first + column == slot, gradient - weight, gradient)
                tl.store(logits_ptr + first + column, gradient.to(logits_ptr.dtype.element_ty))
            if whole < n_columns:
                here = whole + column
                z = tl.load(logits_ptr + here, mask=here < n_columns, other=0.0).to(tl.float32)
                gradient = tl.exp2(z * LOG2E - peak * LOG2E) * scale
                gradient = tl.where(here == slot, gradient - weight, gradient)
                tl.store(logits_ptr + here, gradient.to(logits_ptr.dtype.element_ty), mask=here < n_columns)
        else:
            for first in range(0, n_columns, BLOCK):
                zero = tl.zeros([BLOCK], logits_ptr.dtype.element_ty)
                tl.store(logits_ptr + first + column, zero, mask=first + column < n_columns)


@triton.jit
def _sum_exp(logits_ptr, column, whole, n_columns, peak, BLOCK: tl.constexpr):
    """sum_j exp(z_j - peak) of a row: whole blocks without a mask, then what is left."""
    totals = tl.zeros([BLOCK], tl.float32)
    for first in range(0, whole, BLOCK):
        z = tl.load(logits_ptr + first + column).to(tl.float32)
        totals += tl.exp2(z * LOG2E - peak * LOG2E)
    if whole < n_columns:
        here = whole + column
        z = tl.load(logits_ptr + here, mask=here < n_columns, other=-float("inf")).to(tl.float32)
        totals += tl.exp2(z * LOG2E - peak * LOG2E)
    return tl.sum(totals, 0)


@triton.jit
def column_sums_kernel(
    z_ptr,
    out_ptr,
    n_rows,
    n_columns,
    row_stride,
    scale,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[j] = scale * sum of column j over the rows, added to what is there with ADD."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < n_columns
    r = tl.arange(0, ROWS)
    z_tile = z_ptr + r.to(tl.int64)[:, None] * row_stride + column[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, n_rows, ROWS):
        total += tl.load(z_tile, mask=(first + r < n_rows)[:, None] & inside[None, :], other=0.0).to(
            tl.float32
        )
        z_tile += ROWS * row_stride
    found = scale * tl.sum(total, 0)
    if ADD:
        found += tl.load(out_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + column, found.to(out_ptr.dtype.element_ty), mask=inside)


class Head:
    """The head's part of a step: for each chunk of rows a product, `head_kernel`, and up to two products.

    Several chunks add up dW and db in float32; a single one writes them once. Rows that take no part must be
    finite.

    Args:
        n_rows, d: of the hidden states.
        head_size: rows of the head; padded_size: rows with padding, as `padded_size_of` gives it.
        dtype, device: of everything.
        bounds, ignore_index: as in `nll_step`.
        has_bias: the head has one.
        has_weight: rows have a factor each, [N] float32.
        want: gradients of (hidden, weights), or None for the forward pass only.
        scale: factor of every gradient, applied in float32.
        workspace_bytes: bound on the logits that exist at one time; one row of them does at least.
    """

    def __init__(
        self,
        n_rows: int,
        d: int,
        head_size: int,
        padded_size: int,
        dtype: torch.dtype,
        device: torch.device,
        bounds: Sequence[int],
        ignore_index: int | None,
        *,
        has_bias: bool,
        has_weight: bool,
        want: tuple[bool, bool] | None,
        scale: float,
        workspace_bytes: int,
    ) -> None:
        self._chunk = min(n_rows, chunk_rows(n_rows, padded_size, dtype.itemsize, workspace_bytes))
        self._n_rows, self._shape, self._head_size = n_rows, (padded_size, d), head_size
        self._row_stride = round_up(padded_size, ALIGNMENT)
        self._dtype, self._device = dtype, device
        self._scale, self._bias = scale, has_bias and want is not None and want[1]
        constants = {
            "HAS_IGNORE": ignore_index is not None,
            "HAS_WEIGHT": has_weight,
            "GRADIENT": want is not None,
            "BOUNDS": tuple(bounds),
            "N_CLUSTERS": len(bounds) - 1,
            **head_tile(device, head_size),
        }
        sums = {"ROWS": 16, "COLUMNS": 128, "num_warps": 4}
        self._kernels: dict[int, Launch] = {}
        self._sums: dict[bool, Launch] = {}
        for begin, size in self._chunks():
            self._kernels.setdefault(size, Launch(head_kernel, (size,), constants))
            if self._bias and (begin > 0) not in self._sums:
                grid = (cdiv(head_size, sums["COLUMNS"]),)
                self._sums[begin > 0] = Launch(column_sums_kernel, grid, {"ADD": begin > 0, **sums})
        self._scalars = (head_size, self._row_stride, 0 if ignore_index is None else ignore_index)

    @property
    def launches(self) -> list[Launch]:
        """Of its own kernels; the products are the vendor's."""
        return [*self._kernels.values(), *self._sums.values()]

    @property
    def single(self) -> bool:
        """Whether the logits of all rows exist at one time, so that gradients are written once."""
        return self._chunk >= self._n_rows

    @property
    def temporary_bytes(self) -> int:
        """Of the logits and of sums in float32 that exist at one time."""
        logits = self._chunk * self._row_stride * self._dtype.itemsize
        return logits if self.single else logits + 4 * self._shape[0] * self._shape[1]

    def _chunks(self) -> Iterator[tuple[int, int]]:
        for begin in range(0, self._n_rows, self._chunk):
            yield begin, min(self._chunk, self._n_rows - begin)

    def __call__(
        self,
        stream: int | None,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        target: Any,
        output: Any,
        row_weight: Any,
        hidden_gradient: Tensor | None,
        weight_gradient: Tensor | None,
        bias_gradient: Any,
    ) -> None:
        """Write output and those gradients that are there.

        Args:
            stream: of launches by handle, with addresses of target, output, row_weight and bias_gradient;
                None for tensors.
            hidden: [N, d]; head: [padded_size, d]; bias: [padded_size] or None.
            hidden_gradient: [N, d]; weight_gradient: [padded_size, d]; bias_gradient: [head_size].
        """
        size, stride = self._chunk, self._row_stride
        workspace = torch.empty_strided(
            (size, self._shape[0]), (stride, 1), dtype=self._dtype, device=self._device
        )
        weight, bias_sum = weight_gradient, bias_gradient
        if not self.single and weight_gradient is not None:
            weight = torch.empty(self._shape, dtype=torch.float32, device=self._device)
        for begin, rows in self._chunks():
            whole = rows == self._n_rows
            x = hidden if whole else hidden[begin : begin + rows]
            z = workspace if rows == size else workspace[:rows]
            product(x, head, bias, z)
            here = output if whole else _from(output, begin, 4)
            self._kernels[rows](
                stream,
                z.data_ptr() if stream is not None else z,
                target if whole else _from(target, begin, 8),
                row_weight if whole else _from(row_weight, begin, 4),
                here,
                *self._scalars,
            )
            if hidden_gradient is not None:
                out = hidden_gradient if whole else hidden_gradient[begin : begin + rows]
                torch.addmm(out, z, head, beta=0, alpha=self._scale, out=out)
            if weight is not None:
                _accumulate_product(weight, z, x, first=begin == 0, scale=self._scale)
            if self._bias:
                self._sums[begin > 0](
                    stream,
                    z.data_ptr() if stream is not None else z,
                    bias_sum,
                    rows,
                    self._head_size,
                    stride,
                    self._scale,
                )
        if weight is not weight_gradient:
            assert weight is not None
            assert weight_gradient is not None
            weight_gradient.copy_(weight)


def _from(rows: Any, begin: int, itemsize: int) -> Any:
    """The rows from `begin` on, of a tensor or of an address."""
    return rows + begin * itemsize if isinstance(rows, int) else rows[begin:]


def _accumulate_product(total: Tensor, logits: Tensor, hidden: Tensor, first: bool, scale: float) -> None:
    """total = beta * total + scale * logits^T hidden, beta 0 at the first chunk."""
    beta = 0 if first else 1
    if total.dtype == logits.dtype:
        torch.addmm(total, logits.t(), hidden, beta=beta, alpha=scale, out=total)
    elif total.is_cuda:
        torch.addmm(total, logits.t(), hidden, out_dtype=torch.float32, beta=beta, alpha=scale, out=total)
    else:  # the interpreter's CPU has no mixed product
        torch.addmm(total, logits.t().float(), hidden.float(), beta=beta, alpha=scale, out=total)
