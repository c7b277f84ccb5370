"""The most probable class, without a log-probability of any class in memory.

The head decides most rows: no class of a tail can beat its cluster's slot, so a row whose head prefers a
shortlist word is done. The others are routed like targets, by a device-side flag, and every tail streams its
vocabulary past them for its best class and its log-sum-exp:

    score(tail i) = z_slot_i + max_v s_v - log sum_v exp s_v        against        max z of the shortlist

FLOPs: 2 N d head_size, and 2 K V_i and V_i exponentials for each undecided row and tail. Bytes: the head's
logits are written and read once, 4 N head_size in half precision; the tails' reach no memory. On an H100, for
16384 rows of 1024 and a head of 20,002, the head takes 1.0 ms and is bound by the tensor cores; were all rows
undecided, 247,735 classes would take 1.1 ms of exponentials.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.head_inference import head_argmax
from zipfmax.backends.triton.language import LN2
from zipfmax.backends.triton.projection import project
from zipfmax.backends.triton.routing import SLOT_TILE, Routes, route
from zipfmax.backends.triton.runtime import cdiv, padded_width
from zipfmax.backends.triton.tail_forward import ARGMAX, Partials, accumulate, spans_of
from zipfmax.weights import Weights


@triton.jit
def tail_best_kernel(
    peak_ptr,
    total_ptr,
    class_ptr,
    row_ptr,
    start_ptr,
    rows_ptr,
    slot_logit_ptr,
    score_ptr,
    best_ptr,
    n_classes,
    programs,
    first_class,
    slot_stride,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
):
    """Join the spans of BR undecided rows: where this tail's score beats score[row], take it and its class.

    Undecided rows are cluster 0 of the routing.
    """
    n_rows = tl.load(rows_ptr)
    first = tl.program_id(0) * BR
    if first >= n_rows:
        return
    n_tiles = tl.cdiv(n_rows, BM)
    spans = spans_of(n_tiles, n_classes, programs, BN)
    r = tl.arange(0, BR)
    row = tl.load(row_ptr + tl.load(start_ptr) + first + r)
    valid = row >= 0
    place = first // BM * BM + first % BM + r
    step = n_tiles * BM
    peak = tl.full([BR], -float("inf"), tl.float32)
    best = tl.zeros([BR], tl.int32)
    for span in range(spans):
        here = place + span * step
        candidate = tl.load(peak_ptr + here, mask=valid, other=0.0)
        # Spans come in the order of their classes: strictly greater keeps the first of equals.
        best = tl.where(candidate > peak, tl.load(class_ptr + here, mask=valid, other=0), best)
        peak = tl.maximum(peak, candidate)
    base = tl.where(peak == -float("inf"), 0.0, peak)
    total = tl.zeros([BR], tl.float32)
    for span in range(spans):
        here = place + span * step
        grow = tl.exp2(tl.load(peak_ptr + here, mask=valid, other=0.0) - base)
        total += grow * tl.load(total_ptr + here, mask=valid, other=1.0)
    score = tl.load(slot_logit_ptr + row.to(tl.int64) * slot_stride, mask=valid, other=0.0)
    score += (peak - base - tl.log2(total)) * LN2
    better = valid & (score > tl.load(score_ptr + row, mask=valid, other=0.0))
    tl.store(score_ptr + row, score, mask=better)
    tl.store(best_ptr + row, (first_class + best).to(tl.int64), mask=better)


def predict_step(hidden: Tensor, weights: Weights, shortlist_size: int) -> Tensor:
    """Most probable class of each row, [N] int64; the weights contiguous, hidden with unit column stride."""
    n_rows = hidden.shape[0]
    best, score, slot_logit = head_argmax(hidden, weights.head, weights.head_bias, shortlist_size)
    if n_rows == 0:
        return best
    # Undecided rows are "targets" 1 of a partition with the one cutoff 1.
    undecided = (slot_logit.amax(1) > score).to(torch.int64)
    routes = route(undecided, (1, 2), None)
    first_class = shortlist_size
    for i, tail in enumerate(weights.tails):
        width = padded_width(tail.projection.shape[0])
        h = project(hidden, tail.projection, tail.projection_bias, routes, width)
        partials = accumulate(h, tail.output, tail.output_bias, routes, n_rows, ARGMAX)
        _take_best(partials, routes, slot_logit[:, i], score, best, tail.output.shape[0], first_class)
        first_class += tail.output.shape[0]
    return best


def _take_best(
    partials: Partials,
    routes: Routes,
    slot_logit: Tensor,
    score: Tensor,
    best: Tensor,
    n_classes: int,
    first_class: int,
) -> None:
    rows = 16
    tail_best_kernel[(cdiv(cdiv(best.shape[0], SLOT_TILE) * SLOT_TILE, rows),)](
        partials.peak,
        partials.total,
        partials.extra,
        routes.row,
        routes.start,
        routes.rows,
        slot_logit,
        score,
        best,
        n_classes,
        partials.programs,
        first_class,
        slot_logit.stride(0),
        BM=partials.tile["BM"],
        BN=partials.tile["BN"],
        BR=rows,
    )
