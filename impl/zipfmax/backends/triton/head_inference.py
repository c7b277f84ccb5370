"""The head without a target: the best class of the shortlist, or all its log-probabilities.

With z = W h + b a row's logits, in chunks of rows (`head_logits`):

    best = argmax of z over the shortlist                          (argmax_kernel)
    log_prob = z - log sum_j exp z_j                               (log_softmax_kernel)

and the same for the clusters' slots, which the tails build on. Beyond the product: `argmax_kernel` reads each
logit once, 2 bytes in half precision; `log_softmax_kernel` reads it twice, the second time from the L2 cache,
with one exponential, and writes 2 bytes. At 3 TB/s on an H100 that is 0.7 and 1.3 ps a logit, a third of the
product's 3.2 ps at d = 1024: bound by memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.head_logits import WORKSPACE_BYTES, Chunks
from zipfmax.backends.triton.language import LN2, LOG2E


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
    chunks = Chunks(hidden, head, bias, workspace_bytes)
    for rows, logits in chunks:
        argmax_kernel[(logits.shape[0],)](
            logits,
            best[rows],
            shortlist_logit[rows],
            slot_logit[rows],
            head_size,
            chunks.row_stride,
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
    chunks = Chunks(hidden, head, bias, workspace_bytes)
    for rows, logits in chunks:
        log_softmax_kernel[(logits.shape[0],)](
            logits,
            out[rows],
            slots[rows],
            head_size,
            chunks.row_stride,
            out.stride(0),
            SHORTLIST=shortlist_size,
            N_CLUSTERS=n_clusters,
            BLOCK=min(4096, max(16, int(triton.next_power_of_2(head_size)))),
        )
    return slots
