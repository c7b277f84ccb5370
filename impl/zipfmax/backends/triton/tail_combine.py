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

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from zipfmax.backends.triton.language import LN2
from zipfmax.backends.triton.launch import Launch
from zipfmax.backends.triton.routing import SLOT_TILE
from zipfmax.backends.triton.runtime import cdiv, round_up
from zipfmax.backends.triton.tail import Tail, firsts
from zipfmax.backends.triton.tail_forward import Forward, spans_of
from zipfmax.backends.triton.tiles import combine_tile


@triton.jit
def _combine(
    p, row_tiles, peak_ptr, total_ptr, extra_ptr, h_ptr, w_ptr, bias_ptr, row_ptr, target_ptr, start_ptr,
    rows_ptr,
    weight_ptr, output_ptr, base_ptr, inverse_ptr, dh_ptr, n_classes, programs,
    HAS_BIAS: tl.constexpr, HAS_WEIGHT: tl.constexpr, GRADIENT: tl.constexpr, EXACT: tl.constexpr,
    CLUSTER: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Join the spans of BR rows: output[row] += s_target - lse; dH = weight * (O - W2_target).

    Padding gets dH = 0 and a softmax of 0; see `Combine` for EXACT. Program p takes the
    rows p % row_tiles and a block of columns of dH; the first block does the rest. BM, BN and `programs` are
    those of the forward pass.
    """
    n_rows = tl.load(rows_ptr + CLUSTER)
    first = p % row_tiles * BR
    if first < (n_rows + SLOTS - 1) // SLOTS * SLOTS:
        column = p // row_tiles * BK
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
        # Unrolled, so that the loads of several spans are under way at once: a small batch has a hundred
        # spans.
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
        if p // row_tiles == 0:
            s = tl.zeros([BR], tl.float32)
            for k0 in tl.static_range(0, WIDTH, BK):
                mask = valid[:, None] & (k0 + k < K)[None, :]
                w = tl.load(w_ptr + safe[:, None] * K + (k0 + k)[None, :], mask=mask, other=0.0).to(
                    tl.float32
                )
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
            w = tl.load(w_ptr + safe[:, None] * K + (column + k)[None, :], mask=mask, other=0.0).to(
                tl.float32
            )
            dh = weighted / total[:, None] - w
            if HAS_WEIGHT:
                dh *= tl.load(weight_ptr + row, mask=valid, other=0.0)[:, None]
            dh = tl.where(mask, dh, 0.0)
            out = dh_ptr + slot.to(tl.int64)[:, None] * WIDTH + (column + k)[None, :]
            tl.store(out, dh.to(dh_ptr.dtype.element_ty))


@triton.jit
def tail_combine_kernel(
    peak_ptrs,
    total_ptrs,
    extra_ptrs,
    h_ptrs,
    w_ptrs,
    bias_ptrs,
    row_ptr,
    target_ptr,
    start_ptr,
    rows_ptr,
    weight_ptr,
    output_ptr,
    base_ptr,
    inverse_ptr,
    dh_ptrs,
    firsts,
    row_tiles,
    n_classes,
    programs,
    N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    GRADIENT: tl.constexpr,
    EXACT: tl.constexpr,
    CLUSTER: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BR: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """`_combine` for N tails: tail t has the programs firsts[t] to firsts[t + 1]."""
    p = tl.program_id(0)
    for t in tl.static_range(N):
        if (p >= firsts[t]) & (p < firsts[t + 1]):
            _combine(
                p - firsts[t], row_tiles[t], peak_ptrs[t], total_ptrs[t], extra_ptrs[t], h_ptrs[t], w_ptrs[t],
                bias_ptrs[t], row_ptr, target_ptr, start_ptr, rows_ptr, weight_ptr, output_ptr,
                base_ptr, inverse_ptr, dh_ptrs[t], n_classes[t], programs[t],
                HAS_BIAS[t], HAS_WEIGHT, GRADIENT, EXACT, CLUSTER[t], K[t], WIDTH[t], SLOTS,
                BM[t], BN[t], BK[t], BR[t], UNROLL,
            )  # fmt: skip


class Combine:
    """Output, softmax and dH of all tails' slots, in one launch.

    A slot's softmax is exp(s - lse) = exp2(s log2(e) - base) * inverse, in half precision without the
    inverse: two numbers lose less than their one sum in float32, and half precision cannot tell. base is
    [capacity] float32 in base 2, in half precision inf in padding; inverse is 0 in padding, and is written
    for float32 only.

    Args:
        tails: of one batch; forward: what accumulated their spans.
        n_rows: rows of the batch.
        dtype: of H and the weights.
        gradient: dH is wanted, [capacity, width] a tail.
        has_weight: rows have a factor each.
    """

    def __init__(
        self,
        tails: Sequence[Tail],
        forward: Forward,
        n_rows: int,
        dtype: torch.dtype,
        gradient: bool,
        has_weight: bool,
    ) -> None:
        tiles = [combine_tile(forward.tiles[i]) for i in range(len(tails))]
        row_tiles = tuple(cdiv(round_up(n_rows, SLOT_TILE), tile["BR"]) for tile in tiles)
        first = firsts(
            n * (tail.width // tile["BK"] if gradient else 1)
            for n, tail, tile in zip(row_tiles, tails, tiles, strict=True)
        )
        constants = {
            "N": len(tails),
            "HAS_BIAS": tuple(tail.has_output_bias for tail in tails),
            "HAS_WEIGHT": has_weight,
            "GRADIENT": gradient,
            "EXACT": dtype == torch.float32,
            "CLUSTER": tuple(tail.cluster for tail in tails),
            "K": tuple(tail.k_size for tail in tails),
            "WIDTH": tuple(tail.width for tail in tails),
            "SLOTS": SLOT_TILE,
            **{name: tuple(tile[name] for tile in tiles) for name in ("BM", "BN", "BK", "BR")},
            "UNROLL": tiles[0]["UNROLL"],
            "num_warps": tiles[0]["num_warps"],
        }
        self.launch = Launch(tail_combine_kernel, (first[-1],), constants)
        self._scalars = (
            first,
            row_tiles,
            tuple(tail.n_classes for tail in tails),
            tuple(forward.programs[i] for i in range(len(tails))),
        )

    def __call__(self, stream: int | None, *arguments: Any) -> None:
        """Launch with the kernel's arguments up to dh_ptrs; those that end in s are tuples over the tails."""
        self.launch(stream, *arguments, *self._scalars)
