"""The gradient of a tail's output weight: vocabulary-stationary, without atomics.

With p = exp(s - lse) recomputed from H, W2 and the saved log-sum-exp, and row weight g:

    dW2_v = sum over rows of g (p_v - [target = v]) h        db2_v = sum over rows of g (p_v - [target = v])

A program owns a tile of classes, keeps its W2 and its sum on chip, loops over the tail's rows and stores
once: the order of every sum is fixed by the routing, so two runs agree bit for bit.

FLOPs a logit: 2 products of 2 K, one of which recomputes s. Exponentials a logit: 1. Bounds as in the forward
pass. Bytes: W2 once and dW2 once, 4 K a class in half precision, the larger term if the tail drew few rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.language import LOG2E, dot, dot_add
from zipfmax.backends.triton.routing import SLOT_TILE, Routes
from zipfmax.backends.triton.runtime import cdiv, dot_settings, pointer
from zipfmax.backends.triton.tail_combine import Softmax
from zipfmax.backends.triton.tail_forward import load_classes
from zipfmax.backends.triton.tiles import backward_tile


@triton.jit
def tail_weight_gradient_kernel(
    h_ptr,
    w_ptr,
    bias_ptr,
    base_ptr,
    inverse_ptr,
    row_ptr,
    target_ptr,
    start_ptr,
    rows_ptr,
    weight_ptr,
    dw_ptr,
    dbias_ptr,
    n_classes,
    cluster,
    scale,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    EXACT: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    BV: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """scale * dW2 of BV classes and BK of its columns, and scale * db2; zeros for a cluster without rows."""
    CHUNKS: tl.constexpr = WIDTH // BK
    n_rows = tl.load(rows_ptr + cluster)
    start = tl.multiple_of(tl.load(start_ptr + cluster), SLOTS)
    v = tl.program_id(0) * BV + tl.arange(0, BV)
    column = tl.program_id(1) * BK
    inside = v < n_classes
    r = tl.arange(0, BM)
    k = tl.arange(0, BK)
    w_tile = w_ptr + v.to(tl.int64)[:, None] * K + k[None, :]
    w = load_classes(w_tile, inside, k, 0, K, BK, CHUNKS, True)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + v, mask=inside, other=0.0).to(tl.float32) * LOG2E
    total = tl.zeros([BV, BK], tl.float32)
    bias_total = tl.zeros([BV], tl.float32)
    h_tile = h_ptr + (start + r).to(tl.int64)[:, None] * WIDTH + k[None, :]
    for first in range(0, n_rows, BM):
        slot = start + first + r
        h = tl.load(h_tile)
        s = dot(w, tl.trans(h), PRECISION, UPCAST)
        for chunk in range(1, CHUNKS):
            w_chunk = load_classes(w_tile, inside, k, chunk * BK, K, BK, CHUNKS, True)
            s = dot_add(w_chunk, tl.trans(tl.load(h_tile + chunk * BK)), s, PRECISION, UPCAST)
        p = s * LOG2E - tl.load(base_ptr + slot)[None, :]
        if HAS_BIAS:
            p += bias[:, None]
        p = tl.exp2(p)
        if EXACT:
            p *= tl.load(inverse_ptr + slot)[None, :]
        target = tl.load(target_ptr + slot)
        p = tl.where(target[None, :] == v[:, None], p - 1.0, p)
        if HAS_WEIGHT:
            row = tl.load(row_ptr + slot)
            p *= tl.load(weight_ptr + row, mask=row >= 0, other=0.0)[None, :]
        if CHUNKS > 1:
            h = tl.load(h_tile + column)
        total = dot_add(p.to(h.dtype), h, total, PRECISION, UPCAST)
        h_tile += BM * WIDTH
        if HAS_BIAS:
            bias_total += tl.sum(p, 1)
    out = dw_ptr + v.to(tl.int64)[:, None] * K + (column + k)[None, :]
    mask = inside[:, None] & (column + k < K)[None, :]
    tl.store(out, (scale * total).to(dw_ptr.dtype.element_ty), mask=mask)
    if HAS_BIAS and tl.program_id(1) == 0:
        tl.store(dbias_ptr + v, (scale * bias_total).to(dbias_ptr.dtype.element_ty), mask=inside)


def weight_gradient(
    h: Tensor,
    softmax: Softmax,
    output_weight: Tensor,
    bias: Tensor | None,
    routes: Routes,
    cluster: int,
    row_weight: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """(dW2, db2) of one tail, times `scale`; db2 is None where there is no bias.

    Args:
        h: [capacity, width], zero in padding.
        softmax: of each slot.
        row_weight: [N] float32, or None for 1.
    """
    n_classes, k_size = output_weight.shape
    width = h.shape[1]
    gradient = torch.empty_like(output_weight, memory_format=torch.contiguous_format)
    bias_gradient = None if bias is None else torch.empty_like(bias)
    tile = backward_tile(h, width)
    tail_weight_gradient_kernel[(cdiv(n_classes, tile["BV"]), width // tile["BK"])](
        h,
        output_weight,
        pointer(bias, h),
        softmax.base,
        softmax.inverse,
        routes.row,
        routes.target,
        routes.start,
        routes.rows,
        pointer(row_weight, softmax.base),
        gradient,
        pointer(bias_gradient, h),
        n_classes,
        cluster,
        scale,
        HAS_BIAS=bias is not None,
        HAS_WEIGHT=row_weight is not None,
        EXACT=h.dtype == torch.float32,
        K=k_size,
        WIDTH=width,
        SLOTS=SLOT_TILE,
        **tile,
        **dot_settings(h.dtype),
    )
    return gradient, bias_gradient
