"""The head: logits in a bounded workspace, and one kernel from logits to gradient.

For a row h with head weight W, bias b and target slot y (its label in the shortlist, or its cluster's slot):

    z = W h + b        output = z_y - log sum_j exp z_j        dz = weight * (softmax(z) - onehot(y))

The products are the vendor's GEMMs, on chunks of rows whose logits fit the workspace. `head_kernel` runs
between them and leaves dz where z was, so the logits exist once and for one chunk only. Then dh = dz W and
dW += dz^T h, in float32 where there are several chunks.

FLOPs: 3 products of 2 N d head_size. Bytes: 6 N head_size in half precision if a chunk outgrows the L2 cache
(the product writes z, the kernel reads z and writes dz, two products read dz: the last two overlap the
arithmetic). At d = 1024 on an H100 (650 TFLOP/s, 3 TB/s) the products take 189 ps a logit and the kernel's
4 bytes 1.3 ps: bound by the tensor cores. To fuse the exponential into the first product, replace the body of
`_chunk_logits`: it is the one place that makes z.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.language import LN2, LOG2E
from zipfmax.backends.triton.runtime import cdiv, round_up
from zipfmax.backends.triton.tiles import head_tile

# Bytes of logits that exist at one time. A quarter of this is hardly slower on an H100; see the published
# measurements.
WORKSPACE_BYTES = 192 * 2**20

# Leading dimension of the workspace, in elements: 128-byte rows, which the vendor's GEMMs want.
_ALIGNMENT = 64


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
    SINGLE: tl.constexpr,
):
    """One row a program: output = z_y - logsumexp z; with GRADIENT, z becomes weight * (softmax(z) - onehot).

    Reads z once if the row fits a block (SINGLE), else twice, the second time from the L2 cache. Rows that
    take no part get output 0 and gradient 0, whatever their logits hold.
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
    if SINGLE:
        z = tl.load(logits_ptr + column, mask=column < n_columns, other=-float("inf")).to(tl.float32)
        # A row of -inf alone has no softmax; every other maximum is finite or poisons its own row only.
        peak = tl.max(z, 0)
        e = tl.exp2((z - peak) * LOG2E)
        total = tl.sum(e, 0)
    else:
        peaks = tl.full([BLOCK], -float("inf"), tl.float32)
        totals = tl.zeros([BLOCK], tl.float32)
        for first in range(0, n_columns, BLOCK):
            inside = first + column < n_columns
            z = tl.load(logits_ptr + first + column, mask=inside, other=-float("inf")).to(tl.float32)
            higher = tl.maximum(peaks, z)
            # Lanes that have seen only -inf keep a total of zero instead of exp(-inf + inf).
            base = tl.where(higher == -float("inf"), 0.0, higher)
            totals = totals * tl.exp2((peaks - base) * LOG2E) + tl.exp2((z - base) * LOG2E)
            peaks = higher
        peak = tl.max(peaks, 0)
        base = tl.where(peaks == -float("inf"), peak, peaks)
        total = tl.sum(totals * tl.exp2((base - peak) * LOG2E), 0)

    log_total = tl.log2(total) * LN2
    tl.store(output_ptr + row, tl.where(valid, target_logit - peak - log_total, 0.0))
    if GRADIENT:
        weight = 1.0
        if HAS_WEIGHT:
            weight = tl.load(weight_ptr + row)
        scale = tl.where(valid, weight / total, 0.0)
        if SINGLE:
            gradient = tl.where(column == slot, e * scale - weight, e * scale)
            gradient = tl.where(valid, gradient, 0.0)
            tl.store(logits_ptr + column, gradient.to(logits_ptr.dtype.element_ty), mask=column < n_columns)
        else:
            for first in range(0, n_columns, BLOCK):
                here = first + column
                z = tl.load(logits_ptr + here, mask=here < n_columns, other=0.0).to(tl.float32)
                gradient = tl.exp2((z - peak) * LOG2E) * scale
                gradient = tl.where(here == slot, gradient - weight, gradient)
                gradient = tl.where(valid, gradient, 0.0)
                tl.store(logits_ptr + here, gradient.to(logits_ptr.dtype.element_ty), mask=here < n_columns)


@triton.jit
def argmax_kernel(
    logits_ptr,
    best_ptr,
    shortlist_logit_ptr,
    slot_logit_ptr,
    n_columns,
    row_stride,
    SHORTLIST: tl.constexpr,
    N_CLUSTERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row a program: the best class of the shortlist, its logit, and the logits of the clusters' slots.

    A logit of NaN wins, as in torch.argmax.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    lanes = tl.arange(0, BLOCK)
    peaks = tl.full([BLOCK], -float("inf"), tl.float32)
    where = lanes
    for first in range(0, SHORTLIST, BLOCK):
        column = first + lanes
        z = tl.load(logits_ptr + column, mask=column < SHORTLIST, other=-float("inf")).to(tl.float32)
        z = tl.where(z != z, float("inf"), z)
        better = z > peaks
        peaks = tl.where(better, z, peaks)
        where = tl.where(better, column, where)
    peak = tl.max(peaks, 0)
    # The first of equals, as in torch.argmax.
    best = tl.min(tl.where(peaks == peak, where, 2**30), 0)
    tl.store(best_ptr + row, tl.minimum(best, SHORTLIST - 1))
    tl.store(shortlist_logit_ptr + row, peak)
    for c in tl.static_range(N_CLUSTERS):
        z = tl.load(logits_ptr + SHORTLIST + c).to(tl.float32)
        tl.store(slot_logit_ptr + row * N_CLUSTERS + c, z)


@triton.jit
def log_softmax_kernel(
    logits_ptr,
    out_ptr,
    slot_ptr,
    n_columns,
    row_stride,
    out_stride,
    SHORTLIST: tl.constexpr,
    N_CLUSTERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row a program: z - logsumexp(z), the shortlist's to `out`, the slots' to `slot` in float32."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    lanes = tl.arange(0, BLOCK)
    peaks = tl.full([BLOCK], -float("inf"), tl.float32)
    totals = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n_columns, BLOCK):
        column = first + lanes
        z = tl.load(logits_ptr + column, mask=column < n_columns, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(peaks, z)
        base = tl.where(higher == -float("inf"), 0.0, higher)
        totals = totals * tl.exp2((peaks - base) * LOG2E) + tl.exp2((z - base) * LOG2E)
        peaks = higher
    peak = tl.max(peaks, 0)
    base = tl.where(peaks == -float("inf"), peak, peaks)
    lse = peak + tl.log2(tl.sum(totals * tl.exp2((base - peak) * LOG2E), 0)) * LN2
    for first in range(0, SHORTLIST, BLOCK):
        column = first + lanes
        z = tl.load(logits_ptr + column, mask=column < SHORTLIST, other=0.0).to(tl.float32)
        out = (z - lse).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row * out_stride + column, out, mask=column < SHORTLIST)
    for c in tl.static_range(N_CLUSTERS):
        z = tl.load(logits_ptr + SHORTLIST + c).to(tl.float32)
        tl.store(slot_ptr + row * N_CLUSTERS + c, z - lse)


class HeadGradients:
    """Buffers that the chunks add to: dh, dW and db of the head, where wanted.

    dh is written row by row. dW and db accumulate in float32 unless a single chunk writes them once.
    """

    def __init__(
        self, hidden: Tensor, head: Tensor, bias: Tensor | None, n_chunks: int, want: tuple[bool, bool]
    ):
        want_hidden, want_weights = want
        several = n_chunks > 1
        total = torch.float32 if several else head.dtype
        self.hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if want_hidden else None
        self.weight = torch.empty(head.shape, dtype=total, device=head.device) if want_weights else None
        self.bias: Tensor | None = None
        if want_weights and bias is not None:
            self.bias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device)
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


def _accumulate_product(total: Tensor, logits: Tensor, hidden: Tensor, first: bool, scale: float) -> None:
    """total = beta * total + scale * logits^T hidden, beta 0 at the first chunk."""
    beta = 0 if first else 1
    if total.dtype == logits.dtype:
        torch.addmm(total, logits.t(), hidden, beta=beta, alpha=scale, out=total)
    elif total.is_cuda:
        torch.addmm(total, logits.t(), hidden, out_dtype=torch.float32, beta=beta, alpha=scale, out=total)
    else:  # the interpreter's CPU has no mixed product
        torch.addmm(total, logits.t().float(), hidden.float(), beta=beta, alpha=scale, out=total)


def chunk_rows(n_rows: int, head_size: int, itemsize: int, workspace_bytes: int) -> int:
    """Rows of one chunk: as even as can be within the workspace, and at least one."""
    most = max(1, workspace_bytes // (round_up(head_size, _ALIGNMENT) * itemsize))
    even = cdiv(n_rows, max(1, cdiv(n_rows, most)))
    return min(most, round_up(even, 128))


def _workspace(hidden: Tensor, head: Tensor, workspace_bytes: int) -> Tensor:
    rows = chunk_rows(hidden.shape[0], head.shape[0], head.element_size(), workspace_bytes)
    rows = min(rows, hidden.shape[0])
    return torch.empty((rows, round_up(head.shape[0], _ALIGNMENT)), dtype=hidden.dtype, device=hidden.device)


def _chunk_logits(hidden: Tensor, head: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """z = hidden head^T + bias into `out`, a view of the workspace. The seam for a fused epilogue."""
    if bias is None:
        torch.mm(hidden, head.t(), out=out)
    else:
        torch.addmm(bias, hidden, head.t(), out=out)


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
        want: gradients of (hidden, weights), or None for the forward pass alone.
    """
    n_rows, head_size = hidden.shape[0], head.shape[0]
    gradients = None
    workspace = _workspace(hidden, head, workspace_bytes)
    step = workspace.shape[0]
    if want is not None:
        gradients = HeadGradients(hidden, head, bias, cdiv(n_rows, step) if n_rows else 0, want)
    tile = head_tile(head_size)
    for begin in range(0, n_rows, max(1, step)):
        rows = slice(begin, min(begin + step, n_rows))
        logits = workspace[: rows.stop - begin, :head_size]
        _chunk_logits(hidden[rows], head, bias, logits)
        head_kernel[(rows.stop - begin,)](
            logits,
            target[rows],
            output[rows] if row_weight is None else row_weight[rows],
            output[rows],
            head_size,
            workspace.shape[1],
            0 if ignore_index is None else ignore_index,
            HAS_IGNORE=ignore_index is not None,
            HAS_WEIGHT=row_weight is not None,
            GRADIENT=want is not None,
            BOUNDS=tuple(bounds),
            N_CLUSTERS=len(bounds) - 1,
            **tile,
        )
        if gradients is not None:
            gradients.add(logits, hidden[rows], head, rows, scale)
    return gradients


def head_argmax(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    shortlist_size: int,
    *,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> tuple[Tensor, Tensor, Tensor]:
    """Best shortlist class of each row [N], its logit [N], and the slots' logits [N, n_clusters]."""
    n_rows, head_size = hidden.shape[0], head.shape[0]
    n_clusters = head_size - shortlist_size
    best = torch.empty(n_rows, dtype=torch.int64, device=hidden.device)
    shortlist_logit = torch.empty(n_rows, dtype=torch.float32, device=hidden.device)
    slot_logit = torch.empty((n_rows, n_clusters), dtype=torch.float32, device=hidden.device)
    workspace = _workspace(hidden, head, workspace_bytes)
    step = workspace.shape[0]
    for begin in range(0, n_rows, max(1, step)):
        rows = slice(begin, min(begin + step, n_rows))
        logits = workspace[: rows.stop - begin, :head_size]
        _chunk_logits(hidden[rows], head, bias, logits)
        argmax_kernel[(rows.stop - begin,)](
            logits,
            best[rows],
            shortlist_logit[rows],
            slot_logit[rows],
            head_size,
            workspace.shape[1],
            SHORTLIST=shortlist_size,
            N_CLUSTERS=n_clusters,
            BLOCK=min(4096, max(16, int(triton.next_power_of_2(shortlist_size)))),
        )
    return best, shortlist_logit, slot_logit


def head_log_softmax(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    shortlist_size: int,
    out: Tensor,
    *,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> Tensor:
    """Write the shortlist's log-probabilities to out[:, :shortlist_size].

    Returns:
        Log-probabilities of the clusters' slots, [N, n_clusters] float32.
    """
    n_rows, head_size = hidden.shape[0], head.shape[0]
    n_clusters = head_size - shortlist_size
    slots = torch.empty((n_rows, n_clusters), dtype=torch.float32, device=hidden.device)
    workspace = _workspace(hidden, head, workspace_bytes)
    step = workspace.shape[0]
    for begin in range(0, n_rows, max(1, step)):
        rows = slice(begin, min(begin + step, n_rows))
        logits = workspace[: rows.stop - begin, :head_size]
        _chunk_logits(hidden[rows], head, bias, logits)
        log_softmax_kernel[(rows.stop - begin,)](
            logits,
            out[rows],
            slots[rows],
            head_size,
            workspace.shape[1],
            out.stride(0),
            SHORTLIST=shortlist_size,
            N_CLUSTERS=n_clusters,
            BLOCK=min(4096, max(16, int(triton.next_power_of_2(head_size)))),
        )
    return slots
