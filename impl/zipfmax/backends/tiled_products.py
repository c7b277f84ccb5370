"""Matrix products on a CPU by the fastest way that torch's build has there, found out at their first use.

In float32 `torch.mm` calls MKL, which keeps AVX-512 to Intel's processors: on an AMD EPYC of the Zen 5
generation it does 115 GFLOP/s a core, and oneDNN 200 to 260. Eager torch reaches oneDNN in float32 by the
linear operator that its compiler uses, which returns a new tensor; so it is given a tile at a time.

In 16 bits a processor without instructions for them gets torch's reference loops: 8 GFLOP/s on an AMD EPYC of
the Zen 3 generation, where float32 does 50. There the operands are taken to float32, a part at a time, and
logits are float32 from the product on.

Which of two ways is taken depends on their time for a small product, asked once a process, in a thread of its
own: nobody's autograd, inference or fake mode is in it.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SIDE = 16
"""Rows of a product's result below which oneDNN has no advantage. Fewer columns cost it as much as these."""
MIN_COLUMNS = 2
"""A single column is a vector, which MKL is good at; with two to fifteen it is 3 to 8 times slower."""
MIN_MULTIPLICATIONS = 2**21
"""Multiplications below which oneDNN has no advantage."""
MIN_GAIN = 1.25
"""How much faster than torch.mm another way should be to be taken: less could be chance, and two runs differ."""

PADDED_COLUMNS = 256
"""Columns from which a result's rows are padded."""

_LINE, _PAGE = 64, 4096  # bytes
_NARROW = 192  # columns of a weight's gradient below which its transpose is the faster product
# Rows to sum from which a transpose pays, by the columns that a product has at most.
_MIN_SUMMED_ROWS = ((8, 20), (15, 48), (_NARROW - 1, 128))
_PART_BYTES = 8 * 2**20  # of a product on its way to where it is added
_WIDE_BYTES = 2 * 2**20  # of that in float32 for 16 bits, and of a weight
_TRIALS = 5
_TRIAL = 128, 256, 1040  # rows, inputs and outputs of the product that is timed


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
        and bool(torch.backends.mkldnn.enabled)
        and _onednn_is_faster()
    )


def product_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which products of tensors like this one are taken: float32 for 16 bits where that is faster."""
    is_16_bit = tensor.dtype in (torch.bfloat16, torch.float16)
    if is_16_bit and tensor.device.type == "cpu" and _float32_is_faster(tensor.dtype):
        return torch.float32
    return tensor.dtype


def row_pitch(n_columns: int, tensor: Tensor) -> int:
    """Elements from one row of a product's result to the next, for the speed of `torch.mm`.

    In float32 MKL takes up to twice as long where rows do not begin at the same place of a cache line, and a
    third longer where all begin at the same place of a page. Operands like `tensor`.
    """
    if n_columns < PADDED_COLUMNS or tensor.device.type != "cpu" or product_dtype(tensor) != torch.float32:
        return n_columns
    line, page = _LINE // 4, _PAGE // 4
    pitch = -(-n_columns // line) * line
    return pitch if pitch % page else pitch + line


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [n, K] times weight [V, K] transposed, plus bias [V], in a new tensor of x's dtype."""
    if product_dtype(x) != x.dtype:
        logits = torch.empty(x.shape[0], weight.shape[0], dtype=torch.float32, device=x.device)
        write_logits(logits, x.float(), weight, bias)
        return logits.to(x.dtype)
    return _onednn(x, weight, bias) if has_faster_linear(x, weight.shape[0]) else F.linear(x, weight, bias)


def write_logits(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, factor: float = 1.0
) -> None:
    """out [n, V] = factor (x [n, K] W^T + b), in out's dtype, which is x's; W [V, K] may be in 16 bits."""
    beta = 0.0 if bias is None else factor
    if weight.dtype == x.dtype:
        torch.addmm(out if bias is None else bias, x, weight.t(), beta=beta, alpha=factor, out=out)
        return
    for columns, part in _parts(weight, x.dtype):
        added = out[:, columns] if bias is None else bias[columns].to(x.dtype)
        torch.addmm(added, x, part.t(), beta=beta, alpha=factor, out=out[:, columns])


def add_product(out: Tensor, left: Tensor, right: Tensor, *, alpha: float, beta: int) -> None:
    """out [m, k] = beta out + alpha left [m, n] right [n, k], in place; beta is 0 or 1.

    Where left is float32 and right or out is not, the product is taken in float32 and rounded once, into out.
    """
    if not left.dtype == right.dtype == out.dtype:
        _add_in_parts(out, left, right, alpha, beta)
        return
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


def _add_in_parts(out: Tensor, left: Tensor, right: Tensor, alpha: float, beta: int) -> None:
    """`add_product` of a float32 left: by parts of its columns, or of the result where that is the longer."""
    if left.shape[1] > left.shape[0]:
        total = left.new_zeros(out.shape)
        for columns, part in _parts(right, left.dtype):
            total.addmm_(left[:, columns], part)
        _write(out, total, alpha, beta)
        return
    right = right.to(left.dtype)
    step = max(MIN_SIDE, _WIDE_BYTES // max(1, right.shape[1] * right.element_size()))
    for start in range(0, left.shape[0], step):
        _write(out[start : start + step], left[start : start + step] @ right, alpha, beta)


def _write(out: Tensor, term: Tensor, alpha: float, beta: int) -> None:
    if beta:
        out.add_(term, alpha=alpha)
    else:
        out.copy_(term.mul_(alpha))


def _parts(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a weight in another dtype, as many as fit `_WIDE_BYTES`; all of them where it has that dtype."""
    if weight.dtype == dtype:
        yield slice(0, weight.shape[0]), weight
        return
    step = max(MIN_SIDE, _WIDE_BYTES // max(1, weight.shape[1] * dtype.itemsize))
    for start in range(0, weight.shape[0], step):
        rows = slice(start, min(start + step, weight.shape[0]))
        yield rows, weight[rows].to(dtype)


def _min_summed_rows(n_columns: int) -> int:
    return next(rows for columns, rows in _MIN_SUMMED_ROWS if n_columns <= columns)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # with gaps, as of a slice of columns, it would take the loops as well
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made


@functools.cache
def _onednn_is_faster() -> bool:
    """Whether oneDNN's float32 product is faster than torch.mm."""
    if not (torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):  # type: ignore[no-untyped-call]
        return False
    x, weight = _operands(torch.float32)
    return _is_faster(lambda: _onednn(x, weight, None), lambda: torch.mm(x, weight.t()))


@functools.cache
def _float32_is_faster(dtype: torch.dtype) -> bool:
    """Whether a product of 16-bit tensors is faster in float32, with the conversion of one of them."""
    x, weight = _operands(dtype)
    wide = x.float()
    return _is_faster(lambda: torch.mm(wide, weight.float().t()), lambda: torch.mm(x, weight.t()))


def _operands(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    n_rows, n_inputs, n_outputs = _TRIAL
    x = torch.ones(n_rows, n_inputs, dtype=dtype, device="cpu")
    return x, torch.ones(n_outputs, n_inputs, dtype=dtype, device="cpu")


def _is_faster(other: Callable[[], Tensor], usual: Callable[[], Tensor]) -> bool:
    """Whether the least time of `other`, taken in turn with `usual`, is shorter by `MIN_GAIN`."""

    def seconds(product: Callable[[], Tensor]) -> float:
        start = time.perf_counter()
        product()
        return time.perf_counter() - start

    def timed() -> bool:
        pairs = [(seconds(other), seconds(usual)) for _ in range(1 + _TRIALS)][1:]
        others, usuals = zip(*pairs, strict=True)
        return bool(min(others) * MIN_GAIN < min(usuals))

    # In a thread of its own the caller's modes do not reach the trial; after the main thread none can be started.
    if not threading.main_thread().is_alive():
        return timed()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(timed).result()
