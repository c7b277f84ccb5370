"""The tails' projections: into them, and the two gradients that come back out.

For the rows of one tail, gathered by slot, with projection W1 [K, d], bias b1 and dH from the tail:

    H = X[row] W1^T + b1        dX[row] += dH W1        dW1 = dH^T X[row],  db1 = sum of dH

Each is 2 rows K d FLOPs; bytes: the rows' d columns once for each (column tile of K), 2 bytes an element.
With K = 256 and 1400 rows that is 0.7 GFLOP and 3-12 MB, a few microseconds: these kernels are bound by
latency. So all tails share a launch, and both gradients do: each tail's programs are a range of the grid, and
the kernel holds one branch a tail, with that tail's own constants. A row is in one tail at most, so dX needs
no atomics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.language import dot_add
from zipfmax.backends.triton.launch import Launch
from zipfmax.backends.triton.routing import SLOT_TILE, Routes
from zipfmax.backends.triton.runtime import cdiv, dot_settings, pointer
from zipfmax.backends.triton.tail import Tail, firsts
from zipfmax.backends.triton.tiles import projection_gradient_tile, projection_tile


@triton.jit
def _project(
    p, x_ptr, w_ptr, bias_ptr, h_ptr, row_ptr, start_ptr, rows_ptr, row_tiles, d, x_stride,
    HAS_BIAS: tl.constexpr, CLUSTER: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """H[slot, k] = sum_j X[row[slot], j] W1[k, j] + b1[k] for a tile of slots and columns; 0 in padding."""
    n_rows = tl.load(rows_ptr + CLUSTER)
    first = p % row_tiles * BM
    if first < (n_rows + SLOTS - 1) // SLOTS * SLOTS:
        slot = tl.multiple_of(tl.load(start_ptr + CLUSTER), SLOTS) + first + tl.arange(0, BM)
        row = tl.load(row_ptr + slot)
        valid = row >= 0
        k = p // row_tiles * BK + tl.arange(0, BK)
        j = tl.arange(0, BD)
        x_tile = x_ptr + row.to(tl.int64)[:, None] * x_stride + j[None, :]
        w_tile = w_ptr + k[:, None] * d + j[None, :]
        total = tl.zeros([BM, BK], tl.float32)
        for j0 in range(0, d, BD):
            inside = j0 + j < d
            x = tl.load(x_tile + j0, mask=valid[:, None] & inside[None, :], other=0.0)
            w = tl.load(w_tile + j0, mask=(k < K)[:, None] & inside[None, :], other=0.0)
            total = dot_add(x, tl.trans(w), total, PRECISION, UPCAST)
        if HAS_BIAS:
            total += tl.load(bias_ptr + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
        total = tl.where(valid[:, None], total, 0.0)
        out = h_ptr + slot.to(tl.int64)[:, None] * WIDTH + k[None, :]
        tl.store(out, total.to(h_ptr.dtype.element_ty), mask=(k < WIDTH)[None, :])


@triton.jit
def project_kernel(
    x_ptr,
    w_ptrs,
    bias_ptrs,
    h_ptrs,
    row_ptr,
    start_ptr,
    rows_ptr,
    firsts,
    row_tiles,
    d,
    x_stride,
    N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CLUSTER: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    BD: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`_project` for N tails: tail t has the programs firsts[t] to firsts[t + 1]."""
    p = tl.program_id(0)
    for t in tl.static_range(N):
        if (p >= firsts[t]) & (p < firsts[t + 1]):
            _project(
                p - firsts[t], x_ptr, w_ptrs[t], bias_ptrs[t], h_ptrs[t], row_ptr, start_ptr, rows_ptr,
                row_tiles, d, x_stride,
                HAS_BIAS[t], CLUSTER[t], K[t], WIDTH[t], SLOTS, BM, BK[t], BD, PRECISION, UPCAST,
            )  # fmt: skip


@triton.jit
def _input_gradient(
    p, dh_ptr, w_ptr, dx_ptr, row_ptr, start_ptr, rows_ptr, row_tiles, d, scale,
    CLUSTER: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dX[row[slot], j] += scale * sum_k dH[slot, k] W1[k, j] for a tile of slots and columns j."""
    n_rows = tl.load(rows_ptr + CLUSTER)
    first = p % row_tiles * BM
    if first < n_rows:
        slot = tl.multiple_of(tl.load(start_ptr + CLUSTER), SLOTS) + first + tl.arange(0, BM)
        row = tl.load(row_ptr + slot)
        j = p // row_tiles * BD + tl.arange(0, BD)
        k = tl.arange(0, BK)
        total = tl.zeros([BM, BD], tl.float32)
        for k0 in range(0, WIDTH, BK):
            dh = tl.load(dh_ptr + slot.to(tl.int64)[:, None] * WIDTH + (k0 + k)[None, :])
            inside = (k0 + k < K)[:, None] & (j < d)[None, :]
            w = tl.load(w_ptr + (k0 + k)[:, None] * d + j[None, :], mask=inside, other=0.0)
            total = dot_add(dh, w, total, PRECISION, UPCAST)
        out = dx_ptr + row.to(tl.int64)[:, None] * d + j[None, :]
        mask = (row >= 0)[:, None] & (j < d)[None, :]
        before = tl.load(out, mask=mask, other=0.0).to(tl.float32)
        tl.store(out, (before + scale * total).to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _weight_gradient(
    p, dh_ptr, x_ptr, dw_ptr, dbias_ptr, row_ptr, start_ptr, rows_ptr, d, x_stride, scale,
    HAS_BIAS: tl.constexpr, CLUSTER: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dW1[k, j] = scale * sum over slots of dH[slot, k] X[row[slot], j] for a tile of k and j; db1 likewise.

    A cluster without rows gets zeros.
    """
    k_tiles: tl.constexpr = (WIDTH + BK - 1) // BK
    n_rows = tl.load(rows_ptr + CLUSTER)
    start = tl.multiple_of(tl.load(start_ptr + CLUSTER), SLOTS)
    k = p % k_tiles * BK + tl.arange(0, BK)
    j = p // k_tiles * BD + tl.arange(0, BD)
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
    mask = (k < K)[:, None] & (j < d)[None, :]
    out = dw_ptr + k[:, None] * d + j[None, :]
    tl.store(out, (scale * total).to(dw_ptr.dtype.element_ty), mask=mask)
    if HAS_BIAS:  # noqa: SIM102
        if p // k_tiles == 0:
            tl.store(dbias_ptr + k, (scale * bias_total).to(dbias_ptr.dtype.element_ty), mask=k < K)


@triton.jit
def projection_gradients_kernel(
    dh_ptrs,
    x_ptr,
    w_ptrs,
    dx_ptr,
    dw_ptrs,
    dbias_ptrs,
    row_ptr,
    start_ptr,
    rows_ptr,
    weight_firsts,
    input_firsts,
    row_tiles,
    d,
    x_stride,
    scale,
    N: tl.constexpr,
    WANT_INPUT: tl.constexpr,
    WANT_WEIGHTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CLUSTER: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    WEIGHT_BM: tl.constexpr,
    WEIGHT_BK: tl.constexpr,
    WEIGHT_BD: tl.constexpr,
    INPUT_BM: tl.constexpr,
    INPUT_BK: tl.constexpr,
    INPUT_BD: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dW1 and db1 of N tails, then their parts of dX: tail t has the programs firsts[t] to firsts[t + 1]."""
    p = tl.program_id(0)
    for t in tl.static_range(N):
        if WANT_WEIGHTS:  # noqa: SIM102
            if (p >= weight_firsts[t]) & (p < weight_firsts[t + 1]):
                _weight_gradient(
                    p - weight_firsts[t], dh_ptrs[t], x_ptr, dw_ptrs[t], dbias_ptrs[t],
                    row_ptr, start_ptr, rows_ptr, d, x_stride, scale,
                    HAS_BIAS[t], CLUSTER[t], K[t], WIDTH[t], SLOTS,
                    WEIGHT_BM, WEIGHT_BK[t], WEIGHT_BD, PRECISION, UPCAST,
                )  # fmt: skip
        if WANT_INPUT:  # noqa: SIM102
            if (p >= input_firsts[t]) & (p < input_firsts[t + 1]):
                _input_gradient(
                    p - input_firsts[t], dh_ptrs[t], w_ptrs[t], dx_ptr,
                    row_ptr, start_ptr, rows_ptr, row_tiles, d, scale,
                    CLUSTER[t], K[t], WIDTH[t], SLOTS,
                    INPUT_BM, INPUT_BK[t], INPUT_BD, PRECISION, UPCAST,
                )  # fmt: skip


def _constants(tails: Sequence[Tail]) -> dict[str, Any]:
    return {
        "N": len(tails),
        "HAS_BIAS": tuple(tail.has_projection_bias for tail in tails),
        "CLUSTER": tuple(tail.cluster for tail in tails),
        "K": tuple(tail.k_size for tail in tails),
        "WIDTH": tuple(tail.width for tail in tails),
        "SLOTS": SLOT_TILE,
    }


def _options(tile: dict[str, int]) -> dict[str, int]:
    return {name: value for name, value in tile.items() if name.startswith("num_")}


class Project:
    """H of all tails, each [capacity, width], in one launch: a tail's slots are written and no others.

    Args:
        tails: of one batch.
        n_rows, d, stride: of the hidden states, whose columns are adjacent.
        dtype, device: of everything.
    """

    def __init__(
        self,
        tails: Sequence[Tail],
        n_rows: int,
        d: int,
        stride: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        found = [projection_tile(dtype, device, tail.width) for tail in tails]
        row_tiles = cdiv(n_rows, SLOT_TILE) * SLOT_TILE // found[0]["BM"]
        first = firsts(
            row_tiles * cdiv(tail.width, tile["BK"]) for tail, tile in zip(tails, found, strict=True)
        )
        constants = {
            **_constants(tails),
            "BM": found[0]["BM"],
            "BK": tuple(tile["BK"] for tile in found),
            "BD": found[0]["BD"],
            **_options(found[0]),
            **dot_settings(dtype),
        }
        self.launch = Launch(project_kernel, (first[-1],), constants)
        self._scalars = (first, row_tiles, d, stride)

    def __call__(self, stream: int | None, *arguments: Any) -> None:
        """Launch with x; weights, biases and H as tuples over the tails; row, start, rows."""
        self.launch(stream, *arguments, *self._scalars)


class ProjectionGradients:
    """dW1, db1 and the addition to dX of all tails in one launch; arguments as in `Project`.

    Args:
        want: gradients of (the input, the weights); at least one.
        scale: factor of every gradient.
    """

    def __init__(
        self,
        tails: Sequence[Tail],
        n_rows: int,
        d: int,
        stride: int,
        dtype: torch.dtype,
        device: torch.device,
        want: tuple[bool, bool],
        scale: float,
    ) -> None:
        into = [projection_tile(dtype, device, tail.width) for tail in tails]
        weight = [projection_gradient_tile(dtype, device, tail.width) for tail in tails]
        row_tiles, column_tiles = cdiv(n_rows, into[0]["BM"]), cdiv(d, into[0]["BD"])
        weight_firsts = firsts(
            cdiv(tail.width, tile["BK"]) * cdiv(d, tile["BD"]) if want[1] else 0
            for tail, tile in zip(tails, weight, strict=True)
        )
        input_firsts = firsts((row_tiles * column_tiles if want[0] else 0 for _ in tails), weight_firsts[-1])
        constants = {
            **_constants(tails),
            "WANT_INPUT": want[0],
            "WANT_WEIGHTS": want[1],
            "WEIGHT_BM": weight[0]["BM"],
            "WEIGHT_BK": tuple(tile["BK"] for tile in weight),
            "WEIGHT_BD": weight[0]["BD"],
            "INPUT_BM": into[0]["BM"],
            "INPUT_BK": tuple(tile["BK"] for tile in into),
            "INPUT_BD": into[0]["BD"],
            **_options(weight[0] if want[1] else into[0]),
            **dot_settings(dtype),
        }
        self.launch = Launch(projection_gradients_kernel, (input_firsts[-1],), constants)
        self._scalars = (weight_firsts, input_firsts, row_tiles, d, stride, scale)

    def __call__(self, stream: int | None, *arguments: Any) -> None:
        """Launch with dH, x, weights, dX, dW and db (tuples over tails but x and dX), row, start, rows."""
        self.launch(stream, *arguments, *self._scalars)


def project(hidden: Tensor, projection: Tensor, bias: Tensor | None, routes: Routes, width: int) -> Tensor:
    """H of the one tail that `routes` partitions into, [capacity, width].

    Args:
        hidden: [N, d], unit column stride.
        width: columns of H, at least the projection size; the rest is zero.
    """
    k_size, d = projection.shape
    n_rows = hidden.shape[0]
    tail = Tail(0, k_size, width, 0, bias is not None, False)
    h = torch.empty((routes.row.shape[0], width), dtype=hidden.dtype, device=hidden.device)
    Project([tail], n_rows, d, hidden.stride(0), hidden.dtype, hidden.device)(
        None,
        hidden,
        (projection,),
        (pointer(bias, hidden),),
        (h,),
        routes.row,
        routes.start,
        routes.rows,
    )
    return h
