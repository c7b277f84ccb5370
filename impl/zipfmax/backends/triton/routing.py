"""Routing: which rows go to which tail, decided on the device and never read by the host.

Rows are partitioned stably by cluster into slots. Cluster c owns the slots from start[c], a multiple of
SLOT_TILE, up to start[c] + rows[c]; the slots from there to the next multiple of SLOT_TILE are padding with
row -1. Shortlist, ignored and invalid rows get no slot.

Two launches. With B = ROUTING_BLOCK rows a program and one-hot e_c(row) = [row is in cluster c]:

    counts[b, c] = sum over rows of block b of e_c(row)                                      (count_kernel)
    slot(row) = start[c] + sum_{b' < b} counts[b', c] + sum_{row' < row in block b} e_c(row')  (place_kernel)

Every block adds up the small table itself, so there is no third launch, no atomic and no order that varies.
Bytes: the targets twice, 8 per row used; nothing else of note. Bound by launch latency on any GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.runtime import cdiv, round_up

SLOT_TILE = 128
ROUTING_BLOCK = 1024


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
    counted: Tensor
    """[] int32: rows whose target is not ignore_index."""
    in_range: Tensor
    """[] int32: 1 where every counted target lies in [0, n_classes)."""

    @property
    def capacity(self) -> int:
        """Slots in all: enough for any partition of the rows."""
        return self.row.shape[0]


@triton.jit
def _part(target, valid, BOUNDS: tl.constexpr, N_CLUSTERS: tl.constexpr):
    """Cluster of each row, -1 for the shortlist and for rows that take no part."""
    part = tl.full(target.shape, -1, tl.int32)
    for c in tl.static_range(N_CLUSTERS):
        part = tl.where(target >= BOUNDS[c], c, part)
    return tl.where(valid, part, -1)


@triton.jit
def count_kernel(
    target_ptr,
    counts_ptr,
    n_rows,
    ignore_index,
    HAS_IGNORE: tl.constexpr,
    BOUNDS: tl.constexpr,
    N_CLUSTERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """counts[b, c] for the tails c, then the block's counted rows, then its rows with an invalid target.

    BOUNDS is (cutoffs..., n_classes).
    """
    block = tl.program_id(0)
    row = block * BLOCK + tl.arange(0, BLOCK)
    inside = row < n_rows
    target = tl.load(target_ptr + row, mask=inside, other=0)
    counted = inside
    if HAS_IGNORE:
        counted = inside & (target != ignore_index)
    valid = counted & (target >= 0) & (target < BOUNDS[N_CLUSTERS])
    part = _part(target, valid, BOUNDS, N_CLUSTERS)
    out = counts_ptr + block * (N_CLUSTERS + 2)
    for c in tl.static_range(N_CLUSTERS):
        tl.store(out + c, tl.sum((part == c).to(tl.int32), 0))
    tl.store(out + N_CLUSTERS, tl.sum(counted.to(tl.int32), 0))
    tl.store(out + N_CLUSTERS + 1, tl.sum((counted & (valid == 0)).to(tl.int32), 0))


@triton.jit
def place_kernel(
    target_ptr,
    counts_ptr,
    row_ptr,
    local_ptr,
    start_ptr,
    rows_ptr,
    counted_ptr,
    in_range_ptr,
    n_rows,
    n_blocks,
    ignore_index,
    HAS_IGNORE: tl.constexpr,
    BOUNDS: tl.constexpr,
    N_CLUSTERS: tl.constexpr,
    BLOCK: tl.constexpr,
    TABLE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write each row into its slot; the first block also writes offsets, padding and the two totals.

    TABLE is a power of two of at least n_blocks.
    """
    block = tl.program_id(0)
    row = block * BLOCK + tl.arange(0, BLOCK)
    inside = row < n_rows
    target = tl.load(target_ptr + row, mask=inside, other=0)
    counted = inside
    if HAS_IGNORE:
        counted = inside & (target != ignore_index)
    valid = counted & (target >= 0) & (target < BOUNDS[N_CLUSTERS])
    part = _part(target, valid, BOUNDS, N_CLUSTERS)

    b = tl.arange(0, TABLE)
    start = 0
    for c in tl.static_range(N_CLUSTERS):
        counts = tl.load(counts_ptr + b * (N_CLUSTERS + 2) + c, mask=b < n_blocks, other=0)
        total = tl.sum(counts, 0)
        before = tl.sum(tl.where(b < block, counts, 0), 0)
        member = part == c
        slot = start + before + tl.cumsum(member.to(tl.int32), 0) - 1
        tl.store(row_ptr + slot, row, mask=member)
        tl.store(local_ptr + slot, (target - BOUNDS[c]).to(tl.int32), mask=member)
        end = start + (total + TILE - 1) // TILE * TILE
        if block == 0:
            padding = start + total + tl.arange(0, TILE)
            tl.store(row_ptr + padding, tl.full([TILE], -1, tl.int32), mask=padding < end)
            tl.store(local_ptr + padding, tl.full([TILE], -1, tl.int32), mask=padding < end)
            tl.store(start_ptr + c, start)
            tl.store(rows_ptr + c, total)
        start = end
    if block == 0:
        column = counts_ptr + b * (N_CLUSTERS + 2) + N_CLUSTERS
        tl.store(counted_ptr, tl.sum(tl.load(column, mask=b < n_blocks, other=0), 0))
        invalid = tl.sum(tl.load(column + 1, mask=b < n_blocks, other=0), 0)
        tl.store(in_range_ptr, (invalid == 0).to(tl.int32))


def route(target: Tensor, bounds: Sequence[int], ignore_index: int | None) -> Routes:
    """Partition the rows by the cluster of their target.

    Args:
        target: [N] int64 on the device.
        bounds: (cutoffs..., n_classes).
        ignore_index: rows with this target take no part.

    Raises:
        RuntimeError: a counted target outside [0, n_classes); asynchronously on a GPU.
    """
    n_rows, n_clusters = target.shape[0], len(bounds) - 1
    capacity = round_up(n_rows, SLOT_TILE) + n_clusters * SLOT_TILE
    n_blocks = max(1, cdiv(n_rows, ROUTING_BLOCK))

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=target.device)

    counts = empty(n_blocks, n_clusters + 2)
    routes = Routes(empty(capacity), empty(capacity), empty(n_clusters), empty(n_clusters), empty(), empty())
    common = {
        "ignore_index": 0 if ignore_index is None else ignore_index,
        "HAS_IGNORE": ignore_index is not None,
        "BOUNDS": tuple(bounds),
        "N_CLUSTERS": n_clusters,
        "BLOCK": ROUTING_BLOCK,
    }
    count_kernel[(n_blocks,)](target, counts, n_rows, **common)
    place_kernel[(n_blocks,)](
        target,
        counts,
        routes.row,
        routes.target,
        routes.start,
        routes.rows,
        routes.counted,
        routes.in_range,
        n_rows,
        n_blocks,
        TABLE=triton.next_power_of_2(n_blocks),
        TILE=SLOT_TILE,
        **common,
    )
    torch._assert_async(
        routes.in_range, f"Target values should be in [0, {bounds[-1] - 1}], but values outside were found."
    )
    return routes
