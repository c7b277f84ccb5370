"""A tail's projection: into it, and the two gradients that come back out of it.

For the rows of one tail, gathered by slot, with projection W1 [K, d], bias b1 and dH from the tail:

    H = X[row] W1^T + b1        dX[row] += dH W1        dW1 = dH^T X[row],  db1 = sum of dH

Each is 2 rows K d FLOPs; bytes: the rows' d columns once for each (column tile of K), 2 bytes an element.
With K = 256 and 1400 rows that is 0.7 GFLOP and 3-12 MB, a few microseconds: these kernels are bound by
latency, and matter only because a step has few others. A row is in one tail at most, so dX needs no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.language import dot_add
from zipfmax.backends.triton.routing import SLOT_TILE, Routes
from zipfmax.backends.triton.runtime import cdiv, dot_settings, pointer
from zipfmax.backends.triton.tiles import projection_gradient_tile, projection_tile


@triton.jit
def project_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    h_ptr,
    row_ptr,
    start_ptr,
    rows_ptr,
    d,
    k_size,
    x_stride,
    cluster,
    HAS_BIAS: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """H[slot, k] = sum_j X[row[slot], j] W1[k, j] + b1[k] for a tile of slots and columns; zero in padding.

    WIDTH is the row stride of H, SLOTS the alignment of clusters.
    """
    n_rows = tl.load(rows_ptr + cluster)
    first = tl.program_id(0) * BM
    if first >= (n_rows + SLOTS - 1) // SLOTS * SLOTS:
        return
    slot = tl.multiple_of(tl.load(start_ptr + cluster), SLOTS) + first + tl.arange(0, BM)
    row = tl.load(row_ptr + slot)
    valid = row >= 0
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    j = tl.arange(0, BD)
    x_tile = x_ptr + row.to(tl.int64)[:, None] * x_stride + j[None, :]
    w_tile = w_ptr + k[:, None] * d + j[None, :]
    total = tl.zeros([BM, BK], tl.float32)
    for j0 in range(0, d, BD):
        inside = j0 + j < d
        x = tl.load(x_tile + j0, mask=valid[:, None] & inside[None, :], other=0.0)
        w = tl.load(w_tile + j0, mask=(k < k_size)[:, None] & inside[None, :], other=0.0)
        total = dot_add(x, tl.trans(w), total, PRECISION, UPCAST)
    if HAS_BIAS:
        total += tl.load(bias_ptr + k, mask=k < k_size, other=0.0).to(tl.float32)[None, :]
    total = tl.where(valid[:, None], total, 0.0)
    out = h_ptr + slot.to(tl.int64)[:, None] * WIDTH + k[None, :]
    tl.store(out, total.to(h_ptr.dtype.element_ty), mask=(k < WIDTH)[None, :])


@triton.jit
def input_gradient_kernel(
    dh_ptr,
    w_ptr,
    dx_ptr,
    row_ptr,
    start_ptr,
    rows_ptr,
    d,
    k_size,
    cluster,
    scale,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dX[row[slot], j] += scale * sum_k dH[slot, k] W1[k, j] for a tile of slots and columns j."""
    n_rows = tl.load(rows_ptr + cluster)
    first = tl.program_id(0) * BM
    if first >= n_rows:
        return
    slot = tl.multiple_of(tl.load(start_ptr + cluster), SLOTS) + first + tl.arange(0, BM)
    row = tl.load(row_ptr + slot)
    j = tl.program_id(1) * BD + tl.arange(0, BD)
    k = tl.arange(0, BK)
    total = tl.zeros([BM, BD], tl.float32)
    for k0 in range(0, WIDTH, BK):
        dh = tl.load(dh_ptr + slot.to(tl.int64)[:, None] * WIDTH + (k0 + k)[None, :])
        inside = (k0 + k < k_size)[:, None] & (j < d)[None, :]
        w = tl.load(w_ptr + (k0 + k)[:, None] * d + j[None, :], mask=inside, other=0.0)
        total = dot_add(dh, w, total, PRECISION, UPCAST)
    out = dx_ptr + row.to(tl.int64)[:, None] * d + j[None, :]
    mask = (row >= 0)[:, None] & (j < d)[None, :]
    before = tl.load(out, mask=mask, other=0.0).to(tl.float32)
    tl.store(out, (before + scale * total).to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def projection_gradient_kernel(
    dh_ptr,
    x_ptr,
    dw_ptr,
    dbias_ptr,
    row_ptr,
    start_ptr,
    rows_ptr,
    d,
    k_size,
    x_stride,
    cluster,
    scale,
    HAS_BIAS: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dW1[k, j] = scale * sum over slots of dH[slot, k] X[row[slot], j] for a tile of k and j; db1 likewise.

    A cluster without rows gets zeros.
    """
    n_rows = tl.load(rows_ptr + cluster)
    start = tl.multiple_of(tl.load(start_ptr + cluster), SLOTS)
    k = tl.program_id(0) * BK + tl.arange(0, BK)
    j = tl.program_id(1) * BD + tl.arange(0, BD)
    total = tl.zeros([BK, BD], tl.float32)
    bias_total = tl.zeros([BK], tl.float32)
    for first in range(0, n_rows, BM):
        slot = start + first + tl.arange(0, BM)
        row = tl.load(row_ptr + slot)
        dh = tl.load(
            dh_ptr + slot.to(tl.int64)[:, None] * WIDTH + k[None, :], mask=(k < WIDTH)[None, :], other=0.0
        )
        x = tl.load(
            x_ptr + row.to(tl.int64)[:, None] * x_stride + j[None, :],
            mask=(row >= 0)[:, None] & (j < d)[None, :],
            other=0.0,
        )
        total = dot_add(tl.trans(dh), x, total, PRECISION, UPCAST)
        if HAS_BIAS:
            bias_total += tl.sum(dh.to(tl.float32), 0)
    mask = (k < k_size)[:, None] & (j < d)[None, :]
    out = dw_ptr + k[:, None] * d + j[None, :]
    tl.store(out, (scale * total).to(dw_ptr.dtype.element_ty), mask=mask)
    if HAS_BIAS and tl.program_id(1) == 0:
        tl.store(dbias_ptr + k, (scale * bias_total).to(dbias_ptr.dtype.element_ty), mask=k < k_size)


def project(
    hidden: Tensor, projection: Tensor, bias: Tensor | None, routes: Routes, cluster: int, width: int
) -> Tensor:
    """H of one tail, [capacity, width]: the slots of other clusters are not written.

    Args:
        hidden: [N, d], unit column stride.
        width: columns of H, at least the projection size; the rest is zero.
    """
    k_size, d = projection.shape
    h = torch.empty((routes.capacity, width), dtype=hidden.dtype, device=hidden.device)
    tile = projection_tile(hidden, width)
    project_kernel[(cdiv(hidden.shape[0], SLOT_TILE) * SLOT_TILE // tile["BM"], cdiv(width, tile["BK"]))](
        hidden,
        projection,
        pointer(bias, hidden),
        h,
        routes.row,
        routes.start,
        routes.rows,
        d,
        k_size,
        hidden.stride(0),
        cluster,
        HAS_BIAS=bias is not None,
        WIDTH=width,
        SLOTS=SLOT_TILE,
        **tile,
        **dot_settings(hidden.dtype),
    )
    return h


def add_input_gradient(
    dh: Tensor, projection: Tensor, routes: Routes, cluster: int, scale: float, out: Tensor
) -> None:
    """out[row] += scale * dH W1 for the rows of one tail.

    Args:
        dh: [capacity, width], zero in padding.
        out: [N, d], contiguous.
    """
    k_size, d = projection.shape
    width = dh.shape[1]
    tile = projection_tile(dh, width)
    input_gradient_kernel[(cdiv(out.shape[0], tile["BM"]), cdiv(d, tile["BD"]))](
        dh,
        projection,
        out,
        routes.row,
        routes.start,
        routes.rows,
        d,
        k_size,
        cluster,
        scale,
        WIDTH=width,
        SLOTS=SLOT_TILE,
        **tile,
        **dot_settings(dh.dtype),
    )


def projection_gradient(
    dh: Tensor,
    hidden: Tensor,
    projection: Tensor,
    bias: Tensor | None,
    routes: Routes,
    cluster: int,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """(dW1, db1) of one tail, times `scale`; db1 is None where there is no bias."""
    k_size, d = projection.shape
    width = dh.shape[1]
    weight_gradient = torch.empty_like(projection, memory_format=torch.contiguous_format)
    bias_gradient = None if bias is None else torch.empty_like(bias)
    tile = projection_gradient_tile(dh, width)
    projection_gradient_kernel[(cdiv(width, tile["BK"]), cdiv(d, tile["BD"]))](
        dh,
        hidden,
        weight_gradient,
        pointer(bias_gradient, dh),
        routes.row,
        routes.start,
        routes.rows,
        d,
        k_size,
        hidden.stride(0),
        cluster,
        scale,
        HAS_BIAS=bias is not None,
        WIDTH=width,
        SLOTS=SLOT_TILE,
        **tile,
        **dot_settings(dh.dtype),
    )
    return weight_gradient, bias_gradient
