"""Kernels for a rank that holds a part of each softmax's classes: statistics first, gradients when all have met.

With l the log-sum-exp over a rank's own classes, L that over all, g a row's weight, and t its target's logit
where the rank holds it:

    head   l, t of each row from its logits           then z becomes g (exp(z - L) - onehot)
    tail   l, t and O = sum softmax(s)_v W2_v         then dH = g (exp(l - L) O - [own target] W2_target)

The head's take a row a program, twice and once over its logits. The tail's are small: 4 (K + 2) bytes a row
and span of `tail_forward`, 8 K a row afterwards. All are bound by memory or latency.
"""

from __future__ import annotations

import triton
import triton.language as tl

from zipfmax.backends.triton.language import LN2, LOG2E
from zipfmax.backends.triton.tail_forward import spans_of

OTHERS = -1
"""Slot of a target that another rank holds."""
IGNORED = -2
"""Slot of a row that does not count."""


@triton.jit
def head_statistics_kernel(
    logits_ptr, slot_ptr, sum_ptr, logit_ptr, n_columns, row_stride, BLOCK: tl.constexpr
):
    """log-sum-exp of one row's own logits, and the target's, 0 where another rank holds it."""
    row = tl.program_id(0).to(tl.int64)
    z_ptr = logits_ptr + row * row_stride
    column = tl.arange(0, BLOCK)
    peaks = tl.full([BLOCK], -float("inf"), tl.float32)
    for first in range(0, n_columns, BLOCK):
        here = first + column
        peaks = tl.maximum(
            peaks, tl.load(z_ptr + here, mask=here < n_columns, other=-float("inf")).to(tl.float32)
        )
    peak = tl.max(peaks, 0)
    peak = tl.where(tl.abs(peak) < float("inf"), peak, 0.0)
    totals = tl.zeros([BLOCK], tl.float32)
    for first in range(0, n_columns, BLOCK):
        here = first + column
        z = tl.load(z_ptr + here, mask=here < n_columns, other=-float("inf")).to(tl.float32)
        totals += tl.exp2(z * LOG2E - peak * LOG2E)
    tl.store(sum_ptr + row, peak + tl.log2(tl.sum(totals, 0)) * LN2)
    slot = tl.load(slot_ptr + row)
    logit = tl.load(z_ptr + tl.maximum(slot, 0)).to(tl.float32)
    tl.store(logit_ptr + row, tl.where(slot >= 0, logit, 0.0))


@triton.jit
def head_gradient_kernel(
    logits_ptr, slot_ptr, whole_ptr, weight_ptr, n_columns, row_stride, BLOCK: tl.constexpr
):
    """z becomes weight * (exp(z - L) - onehot) in one row; 0 where the row does not count, whatever it holds."""
    row = tl.program_id(0).to(tl.int64)
    z_ptr = logits_ptr + row * row_stride
    column = tl.arange(0, BLOCK)
    slot = tl.load(slot_ptr + row)
    whole = tl.load(whole_ptr + row)
    weight = tl.load(weight_ptr + row)
    for first in range(0, n_columns, BLOCK):
        here = first + column
        z = tl.load(z_ptr + here, mask=here < n_columns, other=0.0).to(tl.float32)
        p = tl.exp2(z * LOG2E - whole * LOG2E)
        p = tl.where(here == slot, p - 1.0, p) * weight
        p = tl.where(slot == -2, 0.0, p)
        tl.store(z_ptr + here, p.to(logits_ptr.dtype.element_ty), mask=here < n_columns)


@triton.jit
def tail_statistics_kernel(
    peak_ptr, total_ptr, extra_ptr, h_ptr, w_ptr, bias_ptr, row_ptr, target_ptr, start_ptr, rows_ptr,
    sum_ptr, logit_ptr, own_ptr, mean_ptr, first_class, n_classes, programs,
    HAS_BIAS: tl.constexpr, GRADIENT: tl.constexpr, CLUSTER: tl.constexpr, K: tl.constexpr,
    WIDTH: tl.constexpr, SLOTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    BR: tl.constexpr,
):  # fmt: skip
    """Join the spans of BR rows of one tail, as `tail_combine` does: by row l and t; by slot O and own target.

    The own target counts from the rank's first class; -1 where another rank holds it, and in padding.
    """
    n_rows = tl.load(rows_ptr + CLUSTER)
    first = tl.program_id(0) * BR
    if first < (n_rows + SLOTS - 1) // SLOTS * SLOTS:
        n_tiles = tl.cdiv(n_rows, BM)
        spans = spans_of(n_tiles, n_classes, programs, BN)
        tile = first // BM
        held = tile < n_tiles
        r = tl.arange(0, BR)
        k = tl.arange(0, BK)
        place = tile * BM + first % BM + r
        step = n_tiles * BM
        slot = tl.multiple_of(tl.load(start_ptr + CLUSTER), SLOTS) + first + r
        row = tl.load(row_ptr + slot)
        valid = row >= 0
        peak = tl.full([BR], -float("inf"), tl.float32)
        for span in range(spans):
            here = place + span * step
            peak = tl.maximum(peak, tl.load(peak_ptr + here, mask=held & valid, other=-float("inf")))
        base = tl.where(peak == -float("inf"), 0.0, peak)
        total = tl.zeros([BR], tl.float32)
        for span in range(spans):
            here = place + span * step
            grow = tl.exp2(tl.load(peak_ptr + here, mask=held & valid, other=-float("inf")) - base)
            total += grow * tl.load(total_ptr + here, mask=held & valid, other=0.0)
        own = tl.load(target_ptr + slot) - first_class
        has = valid & (own >= 0) & (own < n_classes)
        own = tl.where(has, own, -1)
        safe = tl.maximum(own, 0).to(tl.int64)
        s = tl.zeros([BR], tl.float32)
        for k0 in tl.static_range(0, WIDTH, BK):
            inside = (k0 + k < K)[None, :]
            w = tl.load(w_ptr + safe[:, None] * K + (k0 + k)[None, :], mask=has[:, None] & inside, other=0.0)
            h = tl.load(h_ptr + slot.to(tl.int64)[:, None] * WIDTH + (k0 + k)[None, :])
            s += tl.sum(h.to(tl.float32) * w.to(tl.float32), 1)
            if GRADIENT:
                weighted = tl.zeros([BR, BK], tl.float32)
                for span in range(spans):
                    here = place + span * step
                    grow = tl.exp2(tl.load(peak_ptr + here, mask=held & valid, other=-float("inf")) - base)
                    extra = tl.load(
                        extra_ptr + here.to(tl.int64)[:, None] * WIDTH + (k0 + k)[None, :],
                        mask=(held & valid)[:, None],
                        other=0.0,
                    )
                    weighted += grow[:, None] * extra
                mean = tl.where((valid & (total != 0.0))[:, None] & inside, weighted / total[:, None], 0.0)
                tl.store(mean_ptr + slot.to(tl.int64)[:, None] * WIDTH + (k0 + k)[None, :], mean)
        if HAS_BIAS:
            s += tl.load(bias_ptr + safe, mask=has, other=0.0).to(tl.float32)
        tl.store(sum_ptr + row, (base + tl.log2(total)) * LN2, mask=valid)
        tl.store(logit_ptr + row, tl.where(has, s, 0.0), mask=valid)
        tl.store(own_ptr + slot, own)


@triton.jit
def tail_gradient_kernel(
    mean_ptr, w_ptr, own_ptr, row_ptr, start_ptr, rows_ptr, sum_ptr, whole_ptr, weight_ptr, base_ptr,
    inverse_ptr, dh_ptr,
    CLUSTER: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, BK: tl.constexpr,
    BR: tl.constexpr,
):  # fmt: skip
    """dH of BR slots of one tail, and the softmax over all ranks' classes as `Combine` describes it to dW2."""
    n_rows = tl.load(rows_ptr + CLUSTER)
    first = tl.program_id(0) * BR
    if first < (n_rows + SLOTS - 1) // SLOTS * SLOTS:
        r = tl.arange(0, BR)
        k = tl.arange(0, BK)
        slot = tl.multiple_of(tl.load(start_ptr + CLUSTER), SLOTS) + first + r
        row = tl.load(row_ptr + slot)
        valid = row >= 0
        whole = tl.load(whole_ptr + row, mask=valid, other=0.0)
        share = tl.exp2((tl.load(sum_ptr + row, mask=valid, other=0.0) - whole) * LOG2E)
        weight = tl.load(weight_ptr + row, mask=valid, other=0.0)
        own = tl.load(own_ptr + slot)
        has = valid & (own >= 0)
        safe = tl.maximum(own, 0).to(tl.int64)
        for k0 in tl.static_range(0, WIDTH, BK):
            inside = (k0 + k < K)[None, :]
            at = slot.to(tl.int64)[:, None] * WIDTH + (k0 + k)[None, :]
            w = tl.load(w_ptr + safe[:, None] * K + (k0 + k)[None, :], mask=has[:, None] & inside, other=0.0)
            dh = weight[:, None] * (share[:, None] * tl.load(mean_ptr + at) - w.to(tl.float32))
            dh = tl.where(valid[:, None] & inside, dh, 0.0)
            tl.store(dh_ptr + at, dh.to(dh_ptr.dtype.element_ty))
        tl.store(base_ptr + slot, tl.where(valid, whole * LOG2E, float("inf")))
        tl.store(inverse_ptr + slot, tl.where(valid, 1.0, 0.0))
