"""What every kernel shares: the dot product with its precision spelled out, and constants.

Triton's default for a float32 `tl.dot` is tf32, its interpreter reads bfloat16 operands as integers, and the
interpreter's float32 sums depend on the operands' order, unlike the tensor cores'; so no kernel here calls
`tl.dot` itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """a @ b in float32. PRECISION is that of float32 operands.

    UPCAST is set under the interpreter: a float64 sum rounds to the same float32 in either order of the
    operands. The forward pass computes h W2^T, the backward pass W2 h^T, and logits of 1000 that differ by
    one unit in the last place make probabilities that differ by 6e-5.
    """
    if UPCAST:
        return tl.dot(a.to(tl.float64), b.to(tl.float64)).to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def dot_add(a, b, total, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """total + a @ b, accumulated in place by the tensor cores."""
    if UPCAST:
        return total + tl.dot(a.to(tl.float64), b.to(tl.float64)).to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)
