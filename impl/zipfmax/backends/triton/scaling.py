"""Gradients times one factor that only the device knows: x = factor * x in float32, rounded once.

The factor is what comes into backward, and it is nearly always 1: a launch over up to 16 tensors at once that
reads it and returns then costs 2 us. Otherwise each gradient is read and written once, 2 bytes of each an
element in half precision for one FLOP, bound by memory: 60 us for 44 million bfloat16 weights on an H100.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.runtime import multiprocessors

_BLOCK = 4096

# Tensors of one launch: each takes registers for its addresses and size, and with 39 they spill.
_TENSORS = 16


@triton.jit
def scale_kernel(
    sources, outs, sizes, factor_ptr, IN_PLACE: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr
):
    """outs[i] = factor * sources[i]; in place, a factor of 1 does nothing. Programs stride over blocks."""
    factor = tl.load(factor_ptr)
    if (not IN_PLACE) or factor != 1.0:
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        begin = tl.program_id(0).to(tl.int64) * BLOCK
        for t in tl.static_range(N):
            i = begin + tl.arange(0, BLOCK)
            for _ in range(tl.cdiv(sizes[t] - begin, step)):
                x = tl.load(sources[t] + i, mask=i < sizes[t], other=0.0).to(tl.float32)
                tl.store(outs[t] + i, (x * factor).to(outs[t].dtype.element_ty), mask=i < sizes[t])
                i += step


def _launch(sources: Sequence[Tensor], outs: Sequence[Tensor], factor: Tensor, in_place: bool) -> None:
    pairs = [(s, o) for s, o in zip(sources, outs, strict=True) if s.numel()]
    for first in range(0, len(pairs), _TENSORS):
        part = pairs[first : first + _TENSORS]
        scale_kernel[(4 * multiprocessors(factor.device),)](
            tuple(s for s, _ in part),
            tuple(o for _, o in part),
            tuple(s.numel() for s, _ in part),
            factor,
            IN_PLACE=in_place,
            N=len(part),
            BLOCK=_BLOCK,
        )


def scaled(tensors: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    """factor * tensor for each contiguous tensor; factor is a float32 scalar on the device."""
    outs = [torch.empty_like(x) for x in tensors]
    _launch(tensors, outs, factor, in_place=False)
    return outs


def scale_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """The same in place."""
    _launch(tensors, tensors, factor, in_place=True)
