"""Matrix products by the faster of the two libraries that torch's CPU builds carry.

In float32 `torch.mm` calls MKL, which keeps AVX-512 to Intel's processors: on an AMD EPYC of the Zen 5
generation it does 115 GFLOP/s a core, and oneDNN 200 to 260. Eager torch reaches oneDNN in float32 by the
linear operator that its compiler uses, which returns a new tensor; so it is given a tile at a time.
Everything else, and every other processor, has `torch.mm`.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SIDE = 16
"""Rows of a product's result below which oneDNN has no advantage. Fewer columns cost it as much as these."""
MIN_COLUMNS = 2
"""A single column is a vector, which MKL is good at; with two to fifteen it is 3 to 8 times slower."""
MIN_MULTIPLICATIONS = 2**21
"""Multiplications below which oneDNN has no advantage."""

_NARROW = 192  # columns of a weight's gradient below which its transpose is the faster product
# Rows to sum from which a transpose pays, by the columns that a product has at most.
_MIN_SUMMED_ROWS = ((8, 20), (15, 48), (_NARROW - 1, 128))
_PART_BYTES = 8 * 2**20  # of a product on its way to where it is added


def has_faster_linear(x: Tensor, n_outputs: int) -> bool:
    """Whether `linear` of x [n, K] and a weight [n_outputs, K] is faster than `torch.mm` into a buffer."""
    n_rows, n_inputs = x.shape
    return (
        n_rows * n_inputs * max(n_outputs, MIN_SIDE) >= MIN_MULTIPLICATIONS
        and n_rows >= MIN_SIDE
        and n_outputs >= MIN_COLUMNS
        and onednn_serves(x)
    )


def onednn_serves(tensor: Tensor) -> bool:
    """Whether products of large tensors like this one are oneDNN's."""
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and _mkl_lags_behind()
        and bool(torch.backends.mkldnn.enabled)
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [n, K] times weight [V, K] transposed, plus bias [V], in a new tensor."""
    return _onednn(x, weight, bias) if has_faster_linear(x, weight.shape[0]) else F.linear(x, weight, bias)


def add_product(out: Tensor, left: Tensor, right: Tensor, *, alpha: float, beta: int) -> None:
    """out [m, k] = beta out + alpha left [m, n] right [n, k], in place; beta is 0 or 1."""
    n_columns = right.shape[1]
    is_transposed = left.stride(0) == 1 != left.stride(1)
    step = max(MIN_SIDE, _PART_BYTES // max(1, n_columns * out.element_size()))
    narrow = is_transposed and n_columns < _NARROW
    # A part of a transposed tile as oneDNN's weight falls to its reference loops, a thousand times slower.
    turned = narrow and left.shape[0] <= step and left.shape[1] >= _min_summed_rows(n_columns)
    if not has_faster_linear(left, n_columns) or (narrow and not turned):
        torch.addmm(out, left, right, beta=beta, alpha=alpha, out=out)
        return
    for start in range(0, left.shape[0], step):
        part, rows = out[start : start + step], left[start : start + step]
        product = _onednn(right.t(), rows, None).t() if turned else _onednn(rows, right.t(), None)
        if beta:
            part.add_(product.contiguous(), alpha=alpha)
        else:
            part.copy_(product).mul_(alpha)


def _min_summed_rows(n_columns: int) -> int:
    return next(rows for columns, rows in _MIN_SUMMED_ROWS if n_columns <= columns)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # with gaps, as of a slice of columns, it would take the loops as well
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made


@functools.cache
def _mkl_lags_behind() -> bool:
    describe = getattr(torch.cpu, "get_capabilities", None)
    if describe is None or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    processor = describe()
    is_amd = str(processor.get("cpu_name", "")).startswith("AMD")
    return is_amd and bool(processor.get("avx512_f")) and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
