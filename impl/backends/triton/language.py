"""What every kernel shares: the dot product with its precision spelled out, and constants.

Triton's default for a float32 `tl.dot` is tf32, and its interpreter reads bfloat16 operands as integers; so
no kernel here calls `tl.dot` itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """a @ b in float32. PRECISION is that of float32 operands; UPCAST is set under the interpreter."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def dot_add(a, b, total, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """total + a @ b, accumulated in place by the tensor cores."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)
