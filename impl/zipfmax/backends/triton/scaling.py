"""Gradients times one factor that only the device knows: factor * x in float32, rounded once.

In place or into new tensors. The factor is what comes into backward, and it is nearly always 1: a launch in place
that reads it and returns then costs 2 us. Otherwise each gradient is read and written once, 2 bytes of each an
element in half precision for one FLOP, bound by memory: 60 us for 44 million bfloat16 weights on an H100.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from zipfmax.backends.triton.launch import Launch, raw_stream
from zipfmax.backends.triton.runtime import multiprocessors

_BLOCK = 4096


@triton.jit
def _scale(x_ptr, y_ptr, size, factor, BLOCK: tl.constexpr):
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    i = begin + tl.arange(0, BLOCK)
    for _ in range(tl.cdiv(size - begin, step)):
        x = tl.load(x_ptr + i, mask=i < size, other=0.0).to(tl.float32)
        tl.store(y_ptr + i, (x * factor).to(y_ptr.dtype.element_ty), mask=i < size)
        i += step


@triton.jit(do_not_specialize_on_alignment=["factor_ptr", "other_ptr"])
def scale_kernel(
    first_ptr,
    second_ptr,
    first_out_ptr,
    second_out_ptr,
    factor_ptr,
    other_ptr,
    first_size,
    second_size,
    HAS_OTHER: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    HAS_SECOND: tl.constexpr,
    IN_PLACE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Two tensors times factor, with HAS_OTHER times other as well; in place a product of 1 does nothing."""
    factor = tl.load(factor_ptr).to(tl.float32)
    if HAS_OTHER:
        factor *= tl.load(other_ptr)
    if not IN_PLACE or factor != 1.0:
        if HAS_FIRST:
            _scale(first_ptr, first_out_ptr, first_size, factor, BLOCK)
        if HAS_SECOND:
            _scale(second_ptr, second_out_ptr, second_size, factor, BLOCK)


@functools.lru_cache(maxsize=512)
def _launch(
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    sizes: tuple[int, int],
    has_other: bool,
    in_place: bool,
) -> Launch:
    del dtypes  # a handle serves one signature
    constants = {
        "HAS_OTHER": has_other,
        "HAS_FIRST": sizes[0] > 0,
        "HAS_SECOND": sizes[1] > 0,
        "IN_PLACE": in_place,
        "BLOCK": _BLOCK,
    }
    return Launch(scale_kernel, (4 * multiprocessors(device),), constants)


def scale_(first: Tensor | None, second: Tensor | None, factor: Tensor, other: Tensor | None = None) -> None:
    """Multiply both by factor and other, in place.

    Args:
        first, second: contiguous, of one dtype, at multiples of 16 bytes; None or empty for none.
        factor: one floating-point number on the device; other: one float32, or None for 1.
    """
    _run(first, second, (first, second), factor, other)


def scaled(
    first: Tensor | None, second: Tensor | None, factor: Tensor, other: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Both times factor and other, in new tensors; see `scale_`."""
    out = tuple(None if tensor is None else torch.empty_like(tensor) for tensor in (first, second))
    _run(first, second, out, factor, other)
    return out[0], out[1]


def _run(
    first: Tensor | None,
    second: Tensor | None,
    out: tuple[Tensor | None, ...],
    factor: Tensor,
    other: Tensor | None,
) -> None:
    pairs = [
        (tensor, to)
        for tensor, to in zip((first, second), out, strict=True)
        if tensor is not None and to is not None and tensor.numel()
    ]
    if not pairs:
        return
    (x, x_out), (y, y_out) = pairs[0], pairs[-1]
    device = factor.device
    sizes = (x.numel(), y.numel() if len(pairs) == 2 else 0)
    make = _launch if device.type == "cuda" else _launch.__wrapped__
    launch = make(device, (x.dtype, factor.dtype), sizes, other is not None, x is x_out)
    stream = raw_stream(device) if launch.ready else None
    arguments = (x, y, x_out, y_out, factor, factor if other is None else other)
    if stream is None:
        launch(None, *arguments, *sizes)
    else:
        launch(stream, *[tensor.data_ptr() for tensor in arguments], *sizes)
