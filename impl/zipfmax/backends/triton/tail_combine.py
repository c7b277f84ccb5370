"""A tail's spans joined: from partial sums to log-probability, gradient and what the backward pass needs.

With span i's peak m_i, total l_i = sum exp(s_v - m_i) and, for the gradient, A_i = sum exp(s_v - m_i) W2_v,
each over its own classes, and the row's weight g:

    m = max m_i        l = sum exp(m_i - m) l_i        lse = m + log l        O = sum exp(m_i - m) A_i / l

    output += s_target - lse        dH = g (O - W2_target)

s_target is a dot product of its own. FLOPs: 2 K a row and span. Bytes: 4 (K + 2) a row and span, out of the
L2 cache, and 2 K a row of h, W2_target and dH each in half precision. 1400 rows with K = 256 and 4 spans make
8 MB, 3 us at an H100's 3 TB/s: bound by latency.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.language import LN2
from zipfmax.backends.triton.routing import SLOT_TILE, Routes
from zipfmax.backends.triton.runtime import cdiv, pointer
from zipfmax.backends.triton.tail_forward import Partials, spans_of
from zipfmax.backends.triton.tiles import combine_tile


@triton.jit
def tail_combine_kernel(
    peak_ptr,
    total_ptr,
    extra_ptr,
    h_ptr,
    w_ptr,
    bias_ptr,
    row_ptr,
    target_ptr,
    start_ptr,
    rows_ptr,
    weight_ptr,
    output_ptr,
    base_ptr,
    inverse_ptr,
    dh_ptr,
    n_classes,
    programs,
    cluster,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    GRADIENT: tl.constexpr,
    EXACT: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Join the spans of BR rows: output[row] += s_target - lse; dH = weight * (O - W2_target).

    Padding gets dH = 0 and a softmax of 0; see `Softmax` for EXACT. One program a block of columns of dH; the
    first one does the rest. BM, BN and `programs` are those of the forward pass.
    """
    n_rows = tl.load(rows_ptr + cluster)
    first = tl.program_id(0) * BR
    if first >= (n_rows + SLOTS - 1) // SLOTS * SLOTS:
        return
    column = tl.program_id(1) * BK
    n_tiles = tl.cdiv(n_rows, BM)
    spans = spans_of(n_tiles, n_classes, programs, BN)
    tile = first // BM
    held = tile < n_tiles
    r = tl.arange(0, BR)
    k = tl.arange(0, BK)
    place = tile * BM + first % BM + r
    step = n_tiles * BM

    slot = tl.multiple_of(tl.load(start_ptr + cluster), SLOTS) + first + r
    row = tl.load(row_ptr + slot)
    valid = row >= 0
    peak = tl.full([BR], -float("inf"), tl.float32)
    # Unrolled, so that the loads of several spans are under way at once: a small batch has a hundred spans.
    for first_span in range(0, spans, UNROLL):
        for u in tl.static_range(UNROLL):
            here = place + (first_span + u) * step
            there = held & valid & (first_span + u < spans)
            peak = tl.maximum(peak, tl.load(peak_ptr + here, mask=there, other=-float("inf")))
    base = tl.where(peak == -float("inf"), 0.0, peak)
    total = tl.zeros([BR], tl.float32)
    weighted = tl.zeros([BR, BK], tl.float32)
    for first_span in range(0, spans, UNROLL):
        for u in tl.static_range(UNROLL):
            here = place + (first_span + u) * step
            there = held & valid & (first_span + u < spans)
            grow = tl.exp2(tl.load(peak_ptr + here, mask=there, other=-float("inf")) - base)
            total += grow * tl.load(total_ptr + here, mask=there, other=0.0)
            if GRADIENT:
                extra = tl.load(
                    extra_ptr + here.to(tl.int64)[:, None] * WIDTH + (column + k)[None, :],
                    mask=there[:, None],
                    other=0.0,
                )
                weighted += grow[:, None] * extra
    total = tl.where(valid, total, 1.0)

    target = tl.load(target_ptr + slot)
    safe = tl.maximum(target, 0).to(tl.int64)
    if tl.program_id(1) == 0:
        s = tl.zeros([BR], tl.float32)
        for k0 in tl.static_range(0, WIDTH, BK):
            mask = valid[:, None] & (k0 + k < K)[None, :]
            w = tl.load(w_ptr + safe[:, None] * K + (k0 + k)[None, :], mask=mask, other=0.0).to(tl.float32)
            h = tl.load(h_ptr + slot.to(tl.int64)[:, None] * WIDTH + (k0 + k)[None, :]).to(tl.float32)
            s += tl.sum(h * w, 1)
        if HAS_BIAS:
            s += tl.load(bias_ptr + safe, mask=valid, other=0.0).to(tl.float32)
        before = tl.load(output_ptr + row, mask=valid, other=0.0)
        tl.store(output_ptr + row, before + s - (base + tl.log2(total)) * LN2, mask=valid)
        if EXACT:
            tl.store(base_ptr + slot, tl.where(valid, base, 0.0))
            tl.store(inverse_ptr + slot, tl.where(valid, 1.0 / total, 0.0))
        else:
            tl.store(base_ptr + slot, tl.where(valid, base + tl.log2(total), float("inf")))
    if GRADIENT:
        mask = valid[:, None] & (column + k < K)[None, :]
        w = tl.load(w_ptr + safe[:, None] * K + (column + k)[None, :], mask=mask, other=0.0).to(tl.float32)
        dh = weighted / total[:, None] - w
        if HAS_WEIGHT:
            dh *= tl.load(weight_ptr + row, mask=valid, other=0.0)[:, None]
        dh = tl.where(mask, dh, 0.0)
        out = dh_ptr + slot.to(tl.int64)[:, None] * WIDTH + (column + k)[None, :]
        tl.store(out, dh.to(dh_ptr.dtype.element_ty))


class Softmax(NamedTuple):
    """exp(s - lse) = exp2(s log2(e) - base) * inverse for each slot; in half precision without the inverse.

    Two numbers lose less than their one sum in float32. Half precision cannot tell, and saves a product.
    """

    base: Tensor
    """[capacity] float32, base 2; inf in padding in half precision."""
    inverse: Tensor
    """[capacity] float32, 0 in padding; not written in half precision."""


def combine(
    partials: Partials,
    h: Tensor,
    output_weight: Tensor,
    bias: Tensor | None,
    routes: Routes,
    cluster: int,
    n_rows: int,
    output: Tensor,
    row_weight: Tensor | None,
    gradient: bool,
) -> tuple[Softmax, Tensor]:
    """Join the spans and add the tail's part to `output`, [N] float32.

    Returns:
        Each slot's softmax; dH, [capacity, width], empty without `gradient`.
    """
    n_classes, k_size = output_weight.shape
    width = h.shape[1]
    base = torch.empty(routes.capacity, dtype=torch.float32, device=h.device)
    inverse = torch.empty_like(base)
    dh = torch.empty_like(h) if gradient else h.new_empty(0)
    tile = combine_tile(partials.tile)
    tail_combine_kernel[
        (cdiv(cdiv(n_rows, SLOT_TILE) * SLOT_TILE, tile["BR"]), width // tile["BK"] if gradient else 1)
    ](
        partials.peak,
        partials.total,
        partials.extra,
        h,
        output_weight,
        pointer(bias, h),
        routes.row,
        routes.target,
        routes.start,
        routes.rows,
        pointer(row_weight, output),
        output,
        base,
        inverse,
        dh,
        n_classes,
        partials.programs,
        cluster,
        HAS_BIAS=bias is not None,
        HAS_WEIGHT=row_weight is not None,
        GRADIENT=gradient,
        EXACT=h.dtype == torch.float32,
        K=k_size,
        WIDTH=width,
        SLOTS=SLOT_TILE,
        **tile,
    )
    return Softmax(base, inverse), dh
