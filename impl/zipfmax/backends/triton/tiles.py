"""The tile table: block shapes by architecture, dtype and projection width, read from `tiles.json`.

No kernel is tuned at run time, so a step can be captured in a CUDA graph from its second call on. A GPU's
owner rewrites their part of the table with `python -m zipfmax_bench.kernels.tune`.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import torch
import triton

from zipfmax.backends.triton.runtime import architecture, round_up

Tile = dict[str, int]

# Architectures without a part of their own use that of their nearest relative.
_RELATIVES = {"sm_86": "sm_80", "sm_89": "sm_80", "sm_103": "sm_100", "sm_120": "sm_80", "gfx950": "gfx942"}
_FALLBACK = "sm_80"

# {architecture: {columns of a head block: warps}}: those that do not spill, where 4096 with 8 warps would.
_HEAD_BLOCKS = {"sm_80": {4096: 16, 2048: 8}, "sm_100": {2048: 8}}

# A program may have 160 KiB of shared memory or more there.
_ROOMY = ("sm_80", "sm_90", "sm_100", "sm_103")


@functools.cache
def table() -> dict[str, Any]:
    """{architecture: {"half" | "tf32" | "float32": {"forward" | "backward": {width: tile}}}}."""
    contents: dict[str, Any] = json.loads(files(__package__).joinpath("tiles.json").read_text())
    return contents


def dtype_class(dtype: torch.dtype) -> str:
    """The table's name for a dtype: bfloat16 and float16 share their tiles.

    float32 has two: one tf32 product leaves registers for wider tiles than exact products do.
    """
    if dtype != torch.float32:
        return "half"
    return "float32" if torch.get_float32_matmul_precision() == "highest" else "tf32"


_overrides: dict[str, Tile] = {}


@contextlib.contextmanager
def overridden(kernel: str, tile: Tile) -> Iterator[None]:
    """Use this tile for "forward" or "backward" in place of the table's: for tuning and for tests."""
    _overrides[kernel] = tile
    try:
        yield
    finally:
        del _overrides[kernel]


def _tile(kernel: str, dtype: torch.dtype, device: torch.device, width: int) -> Tile:
    found = _overrides.get(kernel) or tile_for(kernel, architecture(device), dtype_class(dtype), width)
    return dict(found)


def _listed(arch: str) -> str:
    """The architecture of the table that serves this one."""
    return arch if arch in table() else _RELATIVES.get(arch, _FALLBACK)


@functools.cache
def tile_for(kernel: str, arch: str, dtype: str, width: int) -> Tile:
    """The tile of "forward" or "backward"; a width beyond the widest listed is cut into blocks of it.

    An architecture without tiles for tf32 uses those for float32.
    """
    part = table()[_listed(arch)]
    tiles: dict[str, Tile] = part.get(dtype, part["float32"])[kernel]
    fitting = [int(w) for w in tiles if int(w) <= width]
    return dict(tiles[str(max(fitting))])


def forward_tile(dtype: torch.dtype, device: torch.device, width: int) -> Tile:
    """BM rows, BN classes, BK columns, PER_SM programs a multiprocessor, num_warps, num_stages.

    One tile serves the three modes: the gradient pass is the one that matters.
    """
    return _tile("forward", dtype, device, width)


def backward_tile(dtype: torch.dtype, device: torch.device, width: int) -> Tile:
    """BV classes, BM rows, BK columns, num_warps, num_stages."""
    return _tile("backward", dtype, device, width)


def combine_tile(forward: Tile) -> Tile:
    """BM, BN and BK of the forward pass; BR rows a program, few for more programs, UNROLL spans at a time."""
    return {
        "BM": forward["BM"],
        "BN": forward["BN"],
        "BK": forward["BK"],
        "BR": 4 if forward["BK"] >= 32 else 8,
        "UNROLL": 8,
        "num_warps": 4,
    }


def projection_tile(dtype: torch.dtype, device: torch.device, width: int) -> Tile:
    """BM rows, BK columns of the projection, BD columns of the input."""
    if architecture(device) == "interpreter":
        return {"BM": 32, "BK": min(width, 32), "BD": 32}
    tile = {"BM": 64, "BK": min(width, 64), "BD": 64, "num_warps": 4, "num_stages": 3}
    if dtype == torch.float32:
        # With three stages sm_100 spills tf32 products.
        tile |= {"BD": 32, "num_stages": 4 if _listed(architecture(device)) == "sm_100" else 3}
    return tile


def projection_gradient_tile(dtype: torch.dtype, device: torch.device, width: int) -> Tile:
    """BM rows at a time, a block of BK x BD of the gradient.

    Few programs loop over all rows of a tail and wait for memory: where shared memory allows it, narrow
    blocks make more of them, and deep pipelines keep more rows under way.
    """
    tile = projection_tile(dtype, device, width)
    if architecture(device) not in _ROOMY:
        return tile
    return tile | {"BM": 128 if dtype.itemsize == 2 else 64, "BD": 32, "num_stages": 5}


def head_tile(device: torch.device, n_columns: int) -> Tile:
    """BLOCK columns at a time: the widest that leaves at most an eighth of its lanes without a column."""
    listed = _listed(architecture(device))
    for block, warps in _HEAD_BLOCKS.get(listed, {4096: 8, 2048: 8}).items():
        if round_up(n_columns, block) * 7 <= n_columns * 8:
            return {"BLOCK": block, "num_warps": warps}
    block = min(1024, max(16, int(triton.next_power_of_2(n_columns))))
    return {"BLOCK": block, "num_warps": max(1, block // 256)}
