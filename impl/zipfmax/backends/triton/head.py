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

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.head_logits import WORKSPACE_BYTES, Chunks
from zipfmax.backends.triton.language import LN2, LOG2E
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


class HeadGradients:
    """Buffers that the chunks add to: dh, dW and db of the head, where wanted.

    dh is written row by row. dW and db accumulate in float32 unless a single chunk writes them once.
    """

    def __init__(self, hidden: Tensor, head: Tensor, has_bias: bool, n_chunks: int, want: tuple[bool, bool]):
        want_hidden, want_weights = want
        total = torch.float32 if n_chunks > 1 else head.dtype
        self.hidden = (
            torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device) if want_hidden else None
        )
        self.weight = torch.empty(head.shape, dtype=total, device=head.device) if want_weights else None
        self.bias: Tensor | None = None
        if want_weights and has_bias:
            self.bias = torch.zeros(head.shape[0], dtype=torch.float32, device=head.device)
        if n_chunks == 0 and self.weight is not None:
            self.weight.zero_()

    def add(self, logits: Tensor, hidden: Tensor, head: Tensor, rows: slice, scale: float) -> None:
        """Take in the chunk `rows`, whose workspace now holds dz."""
        if self.hidden is not None:
            out = self.hidden[rows]
            torch.addmm(out, logits, head, beta=0, alpha=scale, out=out)
        if self.weight is not None:
            _accumulate_product(self.weight, logits, hidden, first=rows.start == 0, scale=scale)
        if self.bias is not None:
            self.bias.add_(logits.sum(0, dtype=torch.float32), alpha=scale)

    def of_weights(self, head_size: int, dtype: torch.dtype) -> list[Tensor]:
        """dW and, where there is a bias, db, without padding."""
        return [t[:head_size].to(dtype) for t in (self.weight, self.bias) if t is not None]


def _accumulate_product(total: Tensor, logits: Tensor, hidden: Tensor, first: bool, scale: float) -> None:
    """total = beta * total + scale * logits^T hidden, beta 0 at the first chunk."""
    beta = 0 if first else 1
    if total.dtype == logits.dtype:
        torch.addmm(total, logits.t(), hidden, beta=beta, alpha=scale, out=total)
    elif total.is_cuda:
        torch.addmm(total, logits.t(), hidden, out_dtype=torch.float32, beta=beta, alpha=scale, out=total)
    else:  # the interpreter's CPU has no mixed product
        torch.addmm(total, logits.t().float(), hidden.float(), beta=beta, alpha=scale, out=total)


def head_forward(
    hidden: Tensor,
    target: Tensor,
    head: Tensor,
    bias: Tensor | None,
    bounds: Sequence[int],
    ignore_index: int | None,
    output: Tensor,
    *,
    row_weight: Tensor | None = None,
    scale: float = 1.0,
    want: tuple[bool, bool] | None = None,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> HeadGradients | None:
    """The head's part of each row's log-probability, and with `want` its gradients.

    Args:
        hidden: [N, d]; rows that take no part must be finite.
        output: [N] float32, written.
        row_weight: [N] float32, factor of each row's gradient; None for 1.
        scale: factor of every gradient, applied in float32.
        want: gradients of (hidden, weights), or None for the forward pass only.
    """
    head_size = head.shape[0]
    gradients = None
    chunks = Chunks(hidden, head, bias, workspace_bytes)
    if want is not None:
        gradients = HeadGradients(hidden, chunks.head, bias is not None, len(chunks), want)
    tile = head_tile(hidden, head_size)
    for rows, logits in chunks:
        head_kernel[(logits.shape[0],)](
            logits,
            target[rows],
            output[rows] if row_weight is None else row_weight[rows],
            output[rows],
            head_size,
            chunks.row_stride,
            0 if ignore_index is None else ignore_index,
            HAS_IGNORE=ignore_index is not None,
            HAS_WEIGHT=row_weight is not None,
            GRADIENT=want is not None,
            BOUNDS=tuple(bounds),
            N_CLUSTERS=len(bounds) - 1,
            **tile,
        )
        if gradients is not None:
            gradients.add(logits, hidden[rows], chunks.head, rows, scale)
    return gradients
