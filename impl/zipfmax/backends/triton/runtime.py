"""What a launch needs to know: shapes and settings of the host, never data of the device."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
import triton
from torch import Tensor

from zipfmax.backends.triton.availability import interpreting

if interpreting():
    # NumPy warns of every NaN and infinity that it meets, a GPU of none.
    warnings.filterwarnings(
        "ignore",
        "(invalid value|overflow|divide by zero) encountered|All-NaN slice",
        RuntimeWarning,
    )


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """The least multiple of b that is at least a."""
    return cdiv(a, b) * b


def padded_width(projection_size: int, widest: int = 256) -> int:
    """Columns of a buffer that holds projected rows.

    A power of two of at least 16, as the tensor cores want it; beyond `widest`, a multiple of `widest`. The
    padding is zero-filled, so it can be read without a mask.
    """
    if projection_size > widest:
        return round_up(projection_size, widest)
    return max(16, int(triton.next_power_of_2(projection_size)))


def dot_settings(dtype: torch.dtype) -> dict[str, Any]:
    """Constants of every kernel with a dot product.

    float32 operands follow `torch.get_float32_matmul_precision()`: "high" and "medium" are tf32, as torch's
    own products are. "highest" adds up three tf32 products on the tensor cores: with a1 = a rounded to tf32
    and a2 = a - a1, it is a1 b1 + a1 b2 + a2 b1. What that leaves out, a2 b2 and the last bits of a2 and b2,
    is at most 2**-21 of |a b|, in the root mean square about 2**-24, which is one rounding of float32: a sum
    of K = 16 or more IEEE products loses more to its own roundings. AMD's matrix cores take float32 whole.
    Half precision has one way.
    """
    exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    whole = "ieee" if torch.version.hip is not None else "tf32x3"
    return {
        "PRECISION": whole if exact else "tf32",
        "UPCAST": interpreting(),
    }


@functools.cache
def architecture(device: torch.device) -> str:
    """ "sm_90" and the like, "gfx942" on ROCm, or "interpreter" on the CPU."""
    if device.type != "cuda":
        return "interpreter"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors (compute units) of the device; a small number under the interpreter."""
    if device.type != "cuda":
        return 3
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def pointer(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """The tensor, or for one that is absent any other: a kernel whose flag is off never reads it."""
    return stand_in if tensor is None else tensor
