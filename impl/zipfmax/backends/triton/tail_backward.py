"""The gradient of a tail's output weight: vocabulary-stationary, without atomics.

With p = exp(s - lse) recomputed from H, W2 and the saved log-sum-exp, and row weight g:

    dW2_v = sum over rows of g (p_v - [target = v]) h        db2_v = sum over rows of g (p_v - [target = v])

A program owns a tile of classes, keeps its W2 and its sum on chip, loops over the tail's rows and stores
once: the order of every sum is fixed by the routing, so two runs agree bit for bit.

FLOPs a logit: 2 products of 2 K, one of which recomputes s. Exponentials a logit: 1. Bounds as in the forward
pass. Bytes: W2 once and dW2 once, 4 K a class in half precision, the larger term if the tail drew few rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from zipfmax.backends.triton.language import LOG2E, dot, dot_add
from zipfmax.backends.triton.launch import Launch
from zipfmax.backends.triton.routing import SLOT_TILE
from zipfmax.backends.triton.runtime import cdiv, dot_settings
from zipfmax.backends.triton.tail import Tail, firsts, sharing
from zipfmax.backends.triton.tail_forward import load_classes
from zipfmax.backends.triton.tiles import backward_tile


@triton.jit
def _weight_gradient(
    program, class_tiles, h_ptr, w_ptr, bias_ptr, base_ptr, inverse_ptr, row_ptr, target_ptr, start_ptr,
    rows_ptr,
    weight_ptr, dw_ptr, dbias_ptr, n_classes, scale,
    HAS_BIAS: tl.constexpr, HAS_WEIGHT: tl.constexpr, EXACT: tl.constexpr, CLUSTER: tl.constexpr,
    K: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """scale * dW2 of BV classes and BK of its columns, and scale * db2; zeros for a cluster without rows."""
    CHUNKS: tl.constexpr = WIDTH // BK
    n_rows = tl.load(rows_ptr + CLUSTER)
    start = tl.multiple_of(tl.load(start_ptr + CLUSTER), SLOTS)
    v = program % class_tiles * BV + tl.arange(0, BV)
    column = program // class_tiles * BK
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
    if HAS_BIAS:  # noqa: SIM102
        if program // class_tiles == 0:
            tl.store(dbias_ptr + v, (scale * bias_total).to(dbias_ptr.dtype.element_ty), mask=inside)


@triton.jit
def tail_weight_gradient_kernel(
    h_ptrs,
    w_ptrs,
    bias_ptrs,
    base_ptr,
    inverse_ptr,
    row_ptr,
    target_ptr,
    start_ptr,
    rows_ptr,
    weight_ptr,
    dw_ptrs,
    dbias_ptrs,
    firsts,
    class_tiles,
    n_classes,
    scale,
    N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    EXACT: tl.constexpr,
    CLUSTER: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    BV: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`_weight_gradient` for N tails: tail t has the programs firsts[t] to firsts[t + 1]."""
    p = tl.program_id(0)
    for t in tl.static_range(N):
        if (p >= firsts[t]) & (p < firsts[t + 1]):
            _weight_gradient(
                p - firsts[t], class_tiles[t], h_ptrs[t], w_ptrs[t], bias_ptrs[t], base_ptr, inverse_ptr,
                row_ptr, target_ptr, start_ptr, rows_ptr, weight_ptr, dw_ptrs[t], dbias_ptrs[t],
                n_classes[t], scale,
                HAS_BIAS[t], HAS_WEIGHT, EXACT, CLUSTER[t], K[t], WIDTH[t], SLOTS, BV[t], BM[t], BK[t],
                PRECISION, UPCAST,
            )  # fmt: skip


class WeightGradient:
    """scale * dW2 and scale * db2 of several tails, as many launches as `sharing` makes groups.

    Args:
        tails: of one batch.
        dtype, device: of H and the weights.
        has_weight: rows have a factor each.
        scale: factor of every gradient.
    """

    def __init__(
        self, tails: Sequence[Tail], dtype: torch.dtype, device: torch.device, has_weight: bool, scale: float
    ) -> None:
        self.launches: list[Launch] = []
        self._parts: list[tuple[tuple[int, ...], tuple[Any, ...]]] = []
        place = {tail: i for i, tail in enumerate(tails)}
        for group in sharing(tails, lambda tail: backward_tile(dtype, device, tail.width)):
            of_group, tiles = [tail for tail, _ in group], [tile for _, tile in group]
            class_tiles = tuple(cdiv(tail.n_classes, tile["BV"]) for tail, tile in group)
            first = firsts(
                n * (tail.width // tile["BK"]) for n, (tail, tile) in zip(class_tiles, group, strict=True)
            )
            constants = {
                "N": len(group),
                "HAS_BIAS": tuple(tail.has_output_bias for tail in of_group),
                "HAS_WEIGHT": has_weight,
                "EXACT": dtype == torch.float32,
                "CLUSTER": tuple(tail.cluster for tail in of_group),
                "K": tuple(tail.k_size for tail in of_group),
                "WIDTH": tuple(tail.width for tail in of_group),
                "SLOTS": SLOT_TILE,
                **{name: tuple(tile[name] for tile in tiles) for name in ("BV", "BM", "BK")},
                "num_warps": tiles[0]["num_warps"],
                "num_stages": tiles[0]["num_stages"],
                **dot_settings(dtype),
            }
            self.launches.append(Launch(tail_weight_gradient_kernel, (first[-1],), constants))
            scalars = (first, class_tiles, tuple(tail.n_classes for tail in of_group), scale)
            self._parts.append((tuple(place[tail] for tail in of_group), scalars))

    def __call__(
        self,
        stream: int | None,
        h: Sequence[Any],
        weights: Sequence[Any],
        biases: Sequence[Any],
        base: Any,
        inverse: Any,
        row: Any,
        target: Any,
        start: Any,
        rows: Any,
        row_weight: Any,
        gradients: Sequence[Any],
        bias_gradients: Sequence[Any],
    ) -> None:
        """Launch; sequences are over the tails."""
        for launch, (places, scalars) in zip(self.launches, self._parts, strict=True):
            launch(
                stream,
                tuple(h[i] for i in places),
                tuple(weights[i] for i in places),
                tuple(biases[i] for i in places),
                base,
                inverse,
                row,
                target,
                start,
                rows,
                row_weight,
                tuple(gradients[i] for i in places),
                tuple(bias_gradients[i] for i in places),
                *scalars,
            )
