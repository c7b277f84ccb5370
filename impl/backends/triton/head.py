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
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.language import LN2, LOG2E
from zipfmax.backends.triton.runtime import cdiv, round_up
from zipfmax.backends.triton.tiles import head_tile

# Bytes of logits that exist at one time. A quarter of this is hardly slower on an H100; see the published
# measurements.
WORKSPACE_BYTES = 224 * 2**20

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


def padded_head(head: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Head and bias with rows of zeros up to a multiple of 64, or themselves where 8 divides their rows.

    The vendor's fast GEMMs want every dimension a multiple of 16 bytes: on an H100 the products of a head of
    20,002 rows run at 260 TFLOP/s in bfloat16, those of 20,032 at more than twice that, and copying the head
    costs a hundredth of a step. The logits of the padding are 0, no kernel looks at them, and as gradients
    they meet the padding's zeros only.
    """
    extra = -head.shape[0] % 64 if head.shape[0] % 8 else 0
    if extra == 0:
        return head, bias
    return F.pad(head, (0, 0, 0, extra)), None if bias is None else F.pad(bias, (0, extra))


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
    head, bias = padded_head(head, bias)
    workspace = _workspace(hidden, head, workspace_bytes)
    step = workspace.shape[0]
    if want is not None:
        gradients = HeadGradients(hidden, head, bias is not None, cdiv(n_rows, step) if n_rows else 0, want)
    tile = head_tile(head_size)
    for begin in range(0, n_rows, max(1, step)):
        rows = slice(begin, min(begin + step, n_rows))
        logits = workspace[: rows.stop - begin, : head.shape[0]]
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
    head, bias = padded_head(head, bias)
    best = torch.empty(n_rows, dtype=torch.int64, device=hidden.device)
    shortlist_logit = torch.empty(n_rows, dtype=torch.float32, device=hidden.device)
    slot_logit = torch.empty((n_rows, n_clusters), dtype=torch.float32, device=hidden.device)
    workspace = _workspace(hidden, head, workspace_bytes)
    step = workspace.shape[0]
    for begin in range(0, n_rows, max(1, step)):
        rows = slice(begin, min(begin + step, n_rows))
        logits = workspace[: rows.stop - begin, : head.shape[0]]
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
    head, bias = padded_head(head, bias)
    slots = torch.empty((n_rows, n_clusters), dtype=torch.float32, device=hidden.device)
    workspace = _workspace(hidden, head, workspace_bytes)
    step = workspace.shape[0]
    for begin in range(0, n_rows, max(1, step)):
        rows = slice(begin, min(begin + step, n_rows))
        logits = workspace[: rows.stop - begin, : head.shape[0]]
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
