"""Routing: which rows go to which tail, decided on the device and never read by the host.

Rows are partitioned stably by cluster into slots. Cluster c owns the slots from start[c], a multiple of
SLOT_TILE, up to start[c] + rows[c]; the slots from there to the next multiple of SLOT_TILE are padding with
row -1. Shortlist, ignored and invalid rows get no slot. With B = ROUTING_BLOCK rows a program and one-hot
e_c(row) = [row is in cluster c]:

    slot(row) = start[c] + sum of e_c over the rows of earlier blocks + sum of e_c over earlier rows of the
    block

One launch: every program counts the rows of all blocks itself. Beyond DIRECT rows, where that would be
quadratic work, a launch before it leaves counts[b, c] (`count_kernel`) for the programs to add up. No atomic
and no order that varies. The same launch makes copies that other steps need, by programs of their own: the
head with rows of zeros up to a multiple of what the vendor's products want, and hidden states with zeros in
rows that do not count, which may hold anything, and 0 * NaN would carry it into a weight's gradient.

Bytes: the targets once a program, out of the L2 cache, and the copies. Bound by latency without copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.launch import Launch
from zipfmax.backends.triton.runtime import cdiv, round_up

SLOT_TILE = 128
ROUTING_BLOCK = 1024

# Rows that one launch routes. Two 15-bit counts share an integer there.
DIRECT = 31 * ROUTING_BLOCK

COPY_ROWS = 8


class Routes(NamedTuple):
    """Where each row went; all on the device."""

    row: Tensor
    """[capacity] int32: the row in a slot, -1 in padding; slots of no cluster are not written."""
    target: Tensor
    """[capacity] int32: the row's label within its cluster, -1 in padding."""
    start: Tensor
    """[n_clusters] int32: first slot of each cluster."""
    rows: Tensor
    """[n_clusters] int32: rows of each cluster."""
    totals: Tensor
    """[2] int32: rows whose target is not ignore_index; 1 where each of them lies in [0, n_classes)."""


def capacity(n_rows: int, n_clusters: int) -> int:
    """Slots in all: enough for any partition of the rows."""
    return round_up(n_rows, SLOT_TILE) + n_clusters * SLOT_TILE


@triton.jit
def _one_hot(
    target, inside, ignore_index,
    HAS_IGNORE: tl.constexpr, BOUNDS: tl.constexpr, N_CLUSTERS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """(cluster of each row or -1; [rows, COLUMNS] int32: one-hot of it, then counted, then invalid)."""
    counted = inside
    if HAS_IGNORE:
        counted = inside & (target != ignore_index)
    valid = counted & (target >= 0) & (target < BOUNDS[N_CLUSTERS])
    part = tl.full(target.shape, -1, tl.int32)
    for c in tl.static_range(N_CLUSTERS):
        part = tl.where(target >= BOUNDS[c], c, part)
    part = tl.where(valid, part, -1)
    column = tl.arange(0, COLUMNS)[None, :]
    hot = (part[:, None] == column) & (column < N_CLUSTERS)
    hot = hot | (counted[:, None] & (column == N_CLUSTERS))
    hot = hot | ((counted & (valid == 0))[:, None] & (column == N_CLUSTERS + 1))
    return part, hot.to(tl.int32)


@triton.jit
def count_kernel(
    target_ptr,
    counts_ptr,
    n_rows,
    ignore_index,
    HAS_IGNORE: tl.constexpr,
    BOUNDS: tl.constexpr,
    N_CLUSTERS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """counts[b, c] for the tails c, then the block's counted rows, then its rows with an invalid target."""
    block = tl.program_id(0)
    row = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(target_ptr + row, mask=row < n_rows, other=0)
    _, hot = _one_hot(target, row < n_rows, ignore_index, HAS_IGNORE, BOUNDS, N_CLUSTERS, COLUMNS)
    tl.store(counts_ptr + block * COLUMNS + tl.arange(0, COLUMNS), tl.sum(hot, 0))


@triton.jit
def _copy_rows(
    source_ptr, out_ptr, first, n_rows, d, source_stride, keep_ptr, ignore_index,
    MASKED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[first : first + ROWS] = source, zeros in rows from n_rows on; MASKED: in rows to ignore as well."""
    row = first.to(tl.int64) + tl.arange(0, ROWS)
    there = row < n_rows
    kept = there
    if MASKED:
        kept = there & (tl.load(keep_ptr + row, mask=there, other=0) != ignore_index)
    j = tl.arange(0, COLUMNS)
    for j0 in range(0, d, COLUMNS):
        inside = (j0 + j < d)[None, :]
        x = tl.load(
            source_ptr + row[:, None] * source_stride + (j0 + j), mask=kept[:, None] & inside, other=0.0
        )
        store = inside
        if MASKED:
            store = inside & there[:, None]
        tl.store(out_ptr + row[:, None] * d + (j0 + j), x, mask=store)


@triton.jit
def prepare_kernel(
    target_ptr,
    counts_ptr,
    row_ptr,
    local_ptr,
    start_ptr,
    rows_ptr,
    totals_ptr,
    head_ptr,
    head_bias_ptr,
    padded_ptr,
    padded_bias_ptr,
    x_ptr,
    kept_ptr,
    n_rows,
    n_blocks,
    n_head_programs,
    ignore_index,
    head_size,
    d,
    x_stride,
    HAS_IGNORE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PAD_HEAD: tl.constexpr,
    COPY_HIDDEN: tl.constexpr,
    COUNTED: tl.constexpr,
    BOUNDS: tl.constexpr,
    N_CLUSTERS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MESSAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    COPY: tl.constexpr,
):
    """Write each row into its slot; the first block also writes offsets, padding and totals, and asserts.

    Programs from n_blocks on pad the head, those from n_blocks + n_head_programs on copy hidden states.
    COUNTED: counts_ptr holds what `count_kernel` left. COLUMNS is a power of two of at least N_CLUSTERS + 2.
    """
    block = tl.program_id(0)
    if block < n_blocks:
        lane = tl.arange(0, COLUMNS)
        if COUNTED:
            b = tl.arange(0, CHUNK)
            total = tl.zeros([COLUMNS], tl.int32)
            before = tl.zeros([COLUMNS], tl.int32)
            for first in range(0, n_blocks, CHUNK):
                there = first + b < n_blocks
                table = tl.load(
                    counts_ptr + (first + b)[:, None] * COLUMNS + lane[None, :], mask=there[:, None], other=0
                )
                total += tl.sum(table, 0)
                before += tl.sum(tl.where((first + b < block)[:, None], table, 0), 0)
        else:
            # Rows of earlier blocks in the low half, rows of all blocks in the high one.
            both = tl.zeros([CHUNK, COLUMNS], tl.int32)
            i = tl.arange(0, CHUNK)
            for first in range(0, n_rows, CHUNK):
                there = first + i < n_rows
                target = tl.load(target_ptr + first + i, mask=there, other=0)
                _, hot = _one_hot(target, there, ignore_index, HAS_IGNORE, BOUNDS, N_CLUSTERS, COLUMNS)
                both += hot * tl.where(first + i < block * BLOCK, 65537, 65536)[:, None]
            sums = tl.sum(both, 0)
            total = sums >> 16
            before = sums & 65535
        size = tl.where(lane < N_CLUSTERS, (total + TILE - 1) // TILE * TILE, 0)
        start = tl.cumsum(size, 0) - size

        row = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = row < n_rows
        target = tl.load(target_ptr + row, mask=inside, other=0)
        part, _ = _one_hot(target, inside, ignore_index, HAS_IGNORE, BOUNDS, N_CLUSTERS, COLUMNS)
        for c in tl.static_range(N_CLUSTERS):
            member = part == c
            first = tl.sum(tl.where(lane == c, start, 0), 0)
            slot = first + tl.sum(tl.where(lane == c, before, 0), 0) + tl.cumsum(member.to(tl.int32), 0) - 1
            tl.store(row_ptr + slot, row.to(tl.int32), mask=member)
            tl.store(local_ptr + slot, (target - BOUNDS[c]).to(tl.int32), mask=member)
            if block == 0:
                rows = tl.sum(tl.where(lane == c, total, 0), 0)
                padding = first + rows + tl.arange(0, TILE)
                end = first + tl.sum(tl.where(lane == c, size, 0), 0)
                tl.store(row_ptr + padding, tl.full([TILE], -1, tl.int32), mask=padding < end)
                tl.store(local_ptr + padding, tl.full([TILE], -1, tl.int32), mask=padding < end)
        if block == 0:
            tl.store(start_ptr + lane, start, mask=lane < N_CLUSTERS)
            tl.store(rows_ptr + lane, total, mask=lane < N_CLUSTERS)
            invalid = tl.sum(tl.where(lane == N_CLUSTERS + 1, total, 0), 0)
            tl.store(totals_ptr, tl.sum(tl.where(lane == N_CLUSTERS, total, 0), 0))
            tl.store(totals_ptr + 1, (invalid == 0).to(tl.int32))
            tl.device_assert(invalid == 0, MESSAGE)
    elif block < n_blocks + n_head_programs:
        if PAD_HEAD:
            first = (block - n_blocks) * COPY
            _copy_rows(head_ptr, padded_ptr, first, head_size, d, d, target_ptr, 0, False, COPY, 512)
            if HAS_BIAS:
                i = first + tl.arange(0, COPY)
                bias = tl.load(head_bias_ptr + i, mask=i < head_size, other=0.0)
                tl.store(padded_bias_ptr + i, bias)
    else:
        if COPY_HIDDEN:
            first = (block - n_blocks - n_head_programs) * COPY
            _copy_rows(x_ptr, kept_ptr, first, n_rows, d, x_stride, target_ptr, ignore_index, True, COPY, 512)


class Prepare:
    """The launch, or beyond DIRECT rows the two launches, that route a batch and make copies.

    Args:
        n_rows: of the batch, at least 1.
        bounds: (cutoffs..., n_classes).
        ignore_index: rows with this target take no part.
        head_size, padded_size: rows of the head and of its padded copy, which is made where they differ.
        has_bias: the head has one, to be padded likewise.
        d, stride: columns of the hidden states and elements between their rows.
        copy_hidden: copy them with zeros in rows to ignore.
        asserts: check targets in the kernel; otherwise the caller checks totals[1].
    """

    def __init__(
        self,
        n_rows: int,
        bounds: Sequence[int],
        ignore_index: int | None,
        *,
        head_size: int = 0,
        padded_size: int = 0,
        has_bias: bool = False,
        d: int = 1,
        stride: int = 1,
        copy_hidden: bool = False,
        asserts: bool = False,
    ) -> None:
        n_clusters = len(bounds) - 1
        n_blocks = cdiv(n_rows, ROUTING_BLOCK)
        columns = int(triton.next_power_of_2(n_clusters + 2))
        pads = padded_size > head_size
        n_head = padded_size // COPY_ROWS if pads else 0
        n_hidden = cdiv(n_rows, COPY_ROWS) if copy_hidden else 0
        ignored = 0 if ignore_index is None else ignore_index
        common: dict[str, Any] = {
            "HAS_IGNORE": ignore_index is not None,
            "BOUNDS": tuple(bounds),
            "N_CLUSTERS": n_clusters,
            "COLUMNS": columns,
            "BLOCK": ROUTING_BLOCK,
        }
        self.counts_shape = (n_blocks, columns) if n_rows > DIRECT else (0,)
        self._count = None
        if n_rows > DIRECT:
            self._count = Launch(count_kernel, (n_blocks,), common)
            self._count_scalars = (n_rows, ignored)
        constants = {
            **common,
            "HAS_BIAS": has_bias,
            "PAD_HEAD": pads,
            "COPY_HIDDEN": copy_hidden,
            "COUNTED": n_rows > DIRECT,
            "MESSAGE": out_of_range(bounds) if asserts else "",
            "CHUNK": min(2048, int(triton.next_power_of_2(n_rows))),
            "TILE": SLOT_TILE,
            "COPY": COPY_ROWS,
            "num_warps": 8,
        }
        if asserts:
            constants |= {"debug": True, "sanitize_overflow": False}
        self._launch = Launch(prepare_kernel, (n_blocks + n_head + n_hidden,), constants)
        self._scalars = (n_rows, n_blocks, n_head, ignored, head_size, d, stride)

    @property
    def launches(self) -> list[Launch]:
        """In order."""
        return [self._launch] if self._count is None else [self._count, self._launch]

    def __call__(self, stream: int | None, target: Any, counts: Any, *rest: Any) -> None:
        """Launch with target, counts, row, local target, start, rows, totals, and sources and copies."""
        if self._count is not None:
            self._count(stream, target, counts, *self._count_scalars)
        self._launch(stream, target, counts, *rest, *self._scalars)


def out_of_range(bounds: Sequence[int]) -> str:
    """What is said of a target outside the classes, in torch.nn's words."""
    return f"Target values should be in [0, {bounds[-1] - 1}], but values outside were found."


def check_totals(totals: Tensor, bounds: Sequence[int]) -> None:
    """Raise, asynchronously on a GPU, unless each counted target is in range."""
    torch._assert_async(totals[1], out_of_range(bounds))


def route(target: Tensor, bounds: Sequence[int], ignore_index: int | None) -> Routes:
    """Partition the rows by the cluster of their target.

    Args:
        target: [N] int64 on the device, N at least 1.
        bounds: (cutoffs..., n_classes).
        ignore_index: rows with this target take no part.

    Raises:
        RuntimeError: a counted target outside [0, n_classes); asynchronously on a GPU.
    """
    n_clusters = len(bounds) - 1
    prepare = Prepare(target.shape[0], bounds, ignore_index)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=target.device)

    slots = capacity(target.shape[0], n_clusters)
    routes = Routes(empty(slots), empty(slots), empty(n_clusters), empty(n_clusters), empty(2))
    prepare(None, target, empty(*prepare.counts_shape), *routes, *(target,) * 6)
    check_totals(routes.totals, bounds)
    return routes
