"""A tail's rows against its whole vocabulary: flash attention with K = V = W2.

For the rows of one tail with projected state h and output weight W2 [V, K], bias b2:

    s_v = h . W2_v + b2_v     lse = log sum_v exp s_v     O = sum_v softmax(s)_v W2_v

Since d(lse - s_target)/dh = O - W2_target, one pass over the vocabulary gives loss and dH, and no logits
reach memory. `tail_forward_kernel` keeps a tile of rows on chip and streams a span of the vocabulary;
`tail_combine` joins the spans. How many spans a tile of rows is cut into is decided on the device, so
that a fixed grid fills the GPU whether the tail drew ten rows or all of them.

FLOPs a logit: 2 products of 2 K. Exponentials a logit: 1, on the special-function units (16 a cycle and
multiprocessor, 3.7e12/s on an H100): that is 0.27 ps a logit, against 4 K FLOPs or 1.6 ps at K = 256 and
0.1 ps at K = 16. So it is bound by the tensor cores from K of about 64, by exponentials below. Bytes: W2 once
per tile of rows, out of the L2 cache, and partial sums of 4 programs * BM * K, which stay there too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.language import LOG2E, dot, dot_add
from zipfmax.backends.triton.launch import Launch
from zipfmax.backends.triton.routing import SLOT_TILE, Routes
from zipfmax.backends.triton.runtime import cdiv, dot_settings, multiprocessors, pointer
from zipfmax.backends.triton.tail import Tail, Tile, firsts, sharing
from zipfmax.backends.triton.tiles import forward_tile

# What the pass accumulates beside the log-sum-exp.
LSE = 0
GRADIENT = 1
ARGMAX = 2


@triton.jit
def load_classes(
    w_tile, inside, k, first, K: tl.constexpr, BK: tl.constexpr, CHUNKS: tl.constexpr, MASKED: tl.constexpr
):
    """Columns first to first + BK of a tile of W2, zero beyond K and, with MASKED, in rows not `inside`."""
    if K == CHUNKS * BK:
        if MASKED:
            w = tl.load(w_tile + first, mask=inside[:, None], other=0.0)
        else:
            w = tl.load(w_tile + first)
    else:
        if MASKED:
            w = tl.load(w_tile + first, mask=inside[:, None] & (first + k < K)[None, :], other=0.0)
        else:
            w = tl.load(w_tile + first, mask=(first + k < K)[None, :], other=0.0)
    return w


@triton.jit
def _scores(
    h_tile,
    h,
    w_tile,
    w,
    bias_tile,
    inside,
    k,
    K: tl.constexpr,
    BK: tl.constexpr,
    CHUNKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """s = h W2^T + b2 for a tile of rows and one of classes; with MASKED, -inf in classes not `inside`.

    h and w are the first BK columns, already loaded; wider tails add up the rest chunk by chunk.
    """
    s = dot(h, tl.trans(w), PRECISION, UPCAST)
    for chunk in range(1, CHUNKS):
        w_chunk = load_classes(w_tile, inside, k, chunk * BK, K, BK, CHUNKS, MASKED)
        s = dot_add(tl.load(h_tile + chunk * BK), tl.trans(w_chunk), s, PRECISION, UPCAST)
    if HAS_BIAS:
        if MASKED:
            s += tl.load(bias_tile, mask=inside, other=0.0).to(tl.float32)[None, :]
        else:
            s += tl.load(bias_tile).to(tl.float32)[None, :]
    if MASKED:
        s = tl.where(inside[None, :], s, -float("inf"))
    return s


@triton.jit
def _fold(s, w, v, peak, total, extra, MODE: tl.constexpr, ANCHORED: tl.constexpr, PRECISION, UPCAST):
    """Take a tile of scores into (peak, total, extra), where total = sum exp2(s log2(e) - peak).

    extra is the like sum of w, or the class of the peak. ANCHORED: the peak stays what it was. Peaks are kept
    in base 2, already rounded, so that their rounding cancels wherever two of them meet.
    """
    if not ANCHORED:
        tile_peak = tl.max(s, 1) * LOG2E
        higher = tl.maximum(peak, tile_peak)
        # A row of -inf so far keeps a total of zero instead of exp(-inf + inf).
        base = tl.where(higher == -float("inf"), 0.0, higher)
        shrink = tl.exp2(peak - base)
        if MODE == 2:
            extra = tl.where(tile_peak > peak, v + tl.argmax(s, 1), extra)
        total *= shrink
        if MODE == 1:
            extra *= shrink[:, None]
        peak = higher
        p = tl.exp2(s * LOG2E - base[:, None])
    else:
        p = tl.exp2(s * LOG2E - peak[:, None])
    total += tl.sum(p, 1)
    if MODE == 1:
        extra = dot_add(p.to(w.dtype), w, extra, PRECISION, UPCAST)
    return peak, total, extra


@triton.jit
def _stream(
    h_tile,
    h,
    w_ptr,
    bias_ptr,
    slice_first,
    begin,
    end,
    peak,
    total,
    extra,
    K: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    CHUNKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MODE: tl.constexpr,
    ANCHORED: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Fold the classes begin..end: whole tiles without a mask, then what is left of the last."""
    n = tl.arange(0, BN)
    k = tl.arange(0, BK)
    whole = begin + (end - begin) // BN * BN
    w_tile = w_ptr + (begin + n).to(tl.int64)[:, None] * K + k[None, :]
    for v in range(begin, whole, BN):
        w = load_classes(w_tile, n, k, 0, K, BK, CHUNKS, False)
        s = _scores(
            h_tile, h, w_tile, w, bias_ptr + v + n, n, k, K, BK, CHUNKS, HAS_BIAS, False, PRECISION, UPCAST
        )
        if CHUNKS > 1 and MODE == 1:
            w = load_classes(w_tile, n, k, slice_first, K, BK, CHUNKS, False)
        peak, total, extra = _fold(s, w, v, peak, total, extra, MODE, ANCHORED, PRECISION, UPCAST)
        w_tile += BN * K
    if whole < end:
        inside = whole + n < end
        w = load_classes(w_tile, inside, k, 0, K, BK, CHUNKS, True)
        s = _scores(
            h_tile,
            h,
            w_tile,
            w,
            bias_ptr + whole + n,
            inside,
            k,
            K,
            BK,
            CHUNKS,
            HAS_BIAS,
            True,
            PRECISION,
            UPCAST,
        )
        if CHUNKS > 1 and MODE == 1:
            w = load_classes(w_tile, inside, k, slice_first, K, BK, CHUNKS, True)
        peak, total, extra = _fold(s, w, whole, peak, total, extra, MODE, ANCHORED, PRECISION, UPCAST)
    return peak, total, extra


@triton.jit
def spans_of(n_tiles, n_classes, programs, BN: tl.constexpr):
    """How many spans each tile of rows cuts the vocabulary into, so that `programs` programs have work."""
    return tl.minimum(tl.maximum(programs // tl.maximum(n_tiles, 1), 1), tl.cdiv(n_classes, BN))


@triton.jit
def _tail_forward(
    q, width, h_ptr, w_ptr, bias_ptr, start_ptr, rows_ptr, peak_ptr, total_ptr, extra_ptr, n_classes,
    programs,
    HAS_BIAS: tl.constexpr, MODE: tl.constexpr, ANCHOR: tl.constexpr, CLUSTER: tl.constexpr, K: tl.constexpr,
    WIDTH: tl.constexpr, SLOTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Peak, sum exp(s - peak) and, by MODE, sum exp(s - peak) W2 or the peak's class, of one span.

    Program p = q % width takes tile p % n_tiles and span p // n_tiles, and writes to place p; q // width is
    its block of columns. With ANCHOR the peak is that of the span's first tile of classes and stays: no
    running maximum, no rescaling, and the same relative precision, for float32 and bfloat16 hold
    exp(s - peak) up to exp(88). Should a sum leave 2**-100 to 2**100, the span is done again with a running
    maximum.
    """
    p = q % width
    n_rows = tl.load(rows_ptr + CLUSTER)
    n_tiles = tl.cdiv(n_rows, BM)
    spans = spans_of(n_tiles, n_classes, programs, BN)
    if p < n_tiles * spans:
        tile = p % n_tiles
        span = p // n_tiles
        n_blocks = tl.cdiv(n_classes, BN)
        begin = span * n_blocks // spans * BN
        end = tl.minimum((span + 1) * n_blocks // spans * BN, n_classes)
        slice_first = q // width * BK

        CHUNKS: tl.constexpr = WIDTH // BK
        r = tl.arange(0, BM)
        n = tl.arange(0, BN)
        k = tl.arange(0, BK)
        slot = tl.multiple_of(tl.load(start_ptr + CLUSTER), SLOTS) + tile * BM + r
        h_tile = h_ptr + slot.to(tl.int64)[:, None] * WIDTH + k[None, :]
        h = tl.load(h_tile)

        total = tl.zeros([BM], tl.float32)
        if MODE == 1:
            extra = tl.zeros([BM, BK], tl.float32)
        else:
            extra = tl.zeros([BM], tl.int32)
        if ANCHOR:
            inside = begin + n < end
            w_tile = w_ptr + (begin + n).to(tl.int64)[:, None] * K + k[None, :]
            w = load_classes(w_tile, inside, k, 0, K, BK, CHUNKS, True)
            s = _scores(
                h_tile,
                h,
                w_tile,
                w,
                bias_ptr + begin + n,
                inside,
                k,
                K,
                BK,
                CHUNKS,
                HAS_BIAS,
                True,
                PRECISION,
                UPCAST,
            )
            peak = tl.max(s, 1) * LOG2E
            peak = tl.where(tl.abs(peak) < float("inf"), peak, 0.0)
            peak, total, extra = _stream(
                h_tile, h, w_ptr, bias_ptr, slice_first, begin, end, peak, total, extra,
                K, BN, BK, CHUNKS, HAS_BIAS, MODE, True, PRECISION, UPCAST,
            )  # fmt: skip
            unsafe = tl.where((total > 7.9e-31) & (total < 1.2e30), 0, 1)
            if tl.max(unsafe, 0) > 0:
                peak = tl.full([BM], -float("inf"), tl.float32)
                total = tl.zeros_like(total)
                extra = tl.zeros_like(extra)
                peak, total, extra = _stream(
                    h_tile, h, w_ptr, bias_ptr, slice_first, begin, end, peak, total, extra,
                    K, BN, BK, CHUNKS, HAS_BIAS, MODE, False, PRECISION, UPCAST,
                )  # fmt: skip
        else:
            peak = tl.full([BM], -float("inf"), tl.float32)
            peak, total, extra = _stream(
                h_tile, h, w_ptr, bias_ptr, slice_first, begin, end, peak, total, extra,
                K, BN, BK, CHUNKS, HAS_BIAS, MODE, False, PRECISION, UPCAST,
            )  # fmt: skip

        place = p * BM + r
        if q // width == 0:
            tl.store(peak_ptr + place, peak)
            tl.store(total_ptr + place, total)
            if MODE == 2:
                tl.store(extra_ptr + place, extra)
        if MODE == 1:
            tl.store(extra_ptr + place.to(tl.int64)[:, None] * WIDTH + (slice_first + k)[None, :], extra)


@triton.jit
def tail_forward_kernel(
    h_ptrs,
    w_ptrs,
    bias_ptrs,
    start_ptr,
    rows_ptr,
    peak_ptrs,
    total_ptrs,
    extra_ptrs,
    firsts,
    widths,
    n_classes,
    programs,
    N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MODE: tl.constexpr,
    ANCHOR: tl.constexpr,
    CLUSTER: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`_tail_forward` for N tails: tail t has the programs firsts[t] to firsts[t + 1]."""
    q = tl.program_id(0)
    for t in tl.static_range(N):
        if (q >= firsts[t]) & (q < firsts[t + 1]):
            _tail_forward(
                q - firsts[t], widths[t], h_ptrs[t], w_ptrs[t], bias_ptrs[t], start_ptr, rows_ptr,
                peak_ptrs[t], total_ptrs[t], extra_ptrs[t], n_classes[t], programs[t],
                HAS_BIAS[t], MODE, ANCHOR, CLUSTER[t], K[t], WIDTH[t], SLOTS, BM[t], BN[t], BK[t],
                PRECISION, UPCAST,
            )  # fmt: skip


class Forward:
    """The pass over the vocabularies of several tails, as many launches as `sharing` makes groups.

    Args:
        tails: of one batch.
        n_rows: rows of the batch: the most that a cluster can hold.
        dtype, device: of H and the weights.
        mode: LSE, GRADIENT or ARGMAX.
    """

    def __init__(
        self, tails: Sequence[Tail], n_rows: int, dtype: torch.dtype, device: torch.device, mode: int
    ) -> None:
        self.tiles: dict[int, Tile] = {}
        """Tile of each tail, by its place in `tails`."""
        self.programs: dict[int, int] = {}
        """Programs that the pass aims to fill for it; its grid holds at least one a tile of rows."""
        self.partials: dict[int, list[tuple[torch.dtype, tuple[int, ...]]]] = {}
        """dtype and shape of its peak, total and extra."""
        self.launches: list[Launch] = []
        self._parts: list[tuple[tuple[int, ...], tuple[Any, ...]]] = []
        place = {tail: i for i, tail in enumerate(tails)}
        for group in sharing(tails, lambda tail: forward_tile(dtype, device, tail.width)):
            widths, slices = [], []
            for tail, tile in group:
                i = place[tail]
                self.programs[i] = tile["PER_SM"] * multiprocessors(device)
                self.tiles[i] = tile
                widths.append(max(self.programs[i], cdiv(n_rows, tile["BM"])))
                slices.append(tail.width // tile["BK"] if mode == GRADIENT else 1)
                rows = (widths[-1], tile["BM"])
                extra = (torch.float32, (*rows, tail.width)) if mode == GRADIENT else (torch.int32, rows)
                self.partials[i] = [(torch.float32, rows), (torch.float32, rows), extra]
            first = firsts(w * s for w, s in zip(widths, slices, strict=True))
            of_group, tiles = [tail for tail, _ in group], [tile for _, tile in group]
            places = tuple(place[tail] for tail in of_group)
            constants = {
                "N": len(group),
                "HAS_BIAS": tuple(tail.has_output_bias for tail in of_group),
                "MODE": mode,
                "ANCHOR": mode != ARGMAX and dtype != torch.float16,
                "CLUSTER": tuple(tail.cluster for tail in of_group),
                "K": tuple(tail.k_size for tail in of_group),
                "WIDTH": tuple(tail.width for tail in of_group),
                "SLOTS": SLOT_TILE,
                **{name: tuple(tile[name] for tile in tiles) for name in ("BM", "BN", "BK")},
                "num_warps": tiles[0]["num_warps"],
                "num_stages": tiles[0]["num_stages"],
                **dot_settings(dtype),
            }
            self.launches.append(Launch(tail_forward_kernel, (first[-1],), constants))
            scalars = (
                first,
                tuple(widths),
                tuple(tail.n_classes for tail in of_group),
                tuple(self.programs[i] for i in places),
            )
            self._parts.append((places, scalars))

    def __call__(
        self,
        stream: int | None,
        h: Sequence[Any],
        weights: Sequence[Any],
        biases: Sequence[Any],
        start: Any,
        rows: Any,
        peak: Sequence[Any],
        total: Sequence[Any],
        extra: Sequence[Any],
    ) -> None:
        """Launch; sequences are over the tails."""
        for launch, (places, scalars) in zip(self.launches, self._parts, strict=True):
            launch(
                stream,
                tuple(h[i] for i in places),
                tuple(weights[i] for i in places),
                tuple(biases[i] for i in places),
                start,
                rows,
                tuple(peak[i] for i in places),
                tuple(total[i] for i in places),
                tuple(extra[i] for i in places),
                *scalars,
            )


class Partials(NamedTuple):
    """What the spans of one tail accumulated, and how the grid was cut."""

    peak: Tensor
    total: Tensor
    extra: Tensor
    programs: int
    """Programs that the forward pass aims to fill; the grid holds at least one a tile of rows."""
    tile: dict[str, int]


def accumulate(
    h: Tensor, output_weight: Tensor, bias: Tensor | None, routes: Routes, n_rows: int, mode: int
) -> Partials:
    """Stream the vocabulary of the one tail that `routes` partitions into past its rows.

    Args:
        h: [capacity, width], zero in padding.
        output_weight: [n_classes, K]; bias: [n_classes] or None.
        n_rows: rows of the batch: the most that the cluster can hold.
        mode: LSE, GRADIENT or ARGMAX.
    """
    n_classes, k_size = output_weight.shape
    tail = Tail(0, k_size, h.shape[1], n_classes, False, bias is not None)
    forward = Forward([tail], n_rows, h.dtype, h.device, mode)
    peak, total, extra = (
        torch.empty(shape, dtype=dtype, device=h.device) for dtype, shape in forward.partials[0]
    )
    forward(
        None,
        (h,),
        (output_weight,),
        (pointer(bias, h),),
        routes.start,
        routes.rows,
        (peak,),
        (total,),
        (extra,),
    )
    return Partials(peak, total, extra, forward.programs[0], forward.tiles[0])
