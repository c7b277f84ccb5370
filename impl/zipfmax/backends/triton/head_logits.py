"""The head's logits, chunk by chunk in a workspace of bounded size, by the vendor's GEMM.

    z = W h + b

FLOPs: 2 N d head_size. Bytes: z is written once, 2 N head_size in half precision. At d = 1024 on an H100 (650
TFLOP/s, 3 TB/s) that is 3.2 ps and 0.7 ps a logit: bound by the tensor cores.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.backends.triton.runtime import cdiv, round_up

# Bytes of logits that exist at one time. A quarter of this is hardly slower on an H100; see the published
# measurements.
WORKSPACE_BYTES = 224 * 2**20

# Leading dimension of the workspace, in elements: 128-byte rows, which the vendor's GEMMs want.
ALIGNMENT = 64


class Chunks:
    """Iterates over (rows, logits [rows, padded head size]): a view of one workspace, made again each time.

    Args:
        hidden: [N, d].
        head: [head_size, d]; bias: [head_size] or None.
        workspace_bytes: bound on the logits that exist at one time; one row of them does at least.
    """

    def __init__(self, hidden: Tensor, head: Tensor, bias: Tensor | None, workspace_bytes: int) -> None:
        self._hidden = hidden
        self.head, self.bias = padded_head(head, bias)
        n_rows, size = hidden.shape[0], self.head.shape[0]
        self._step = min(n_rows, chunk_rows(n_rows, size, head.element_size(), workspace_bytes))
        shape = (self._step, round_up(size, ALIGNMENT))
        self._workspace = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
        self.row_stride = shape[1]

    def __len__(self) -> int:
        return cdiv(self._hidden.shape[0], self._step) if self._step else 0

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        n_rows = self._hidden.shape[0]
        for begin in range(0, n_rows, max(1, self._step)):
            rows = slice(begin, min(begin + self._step, n_rows))
            logits = self._workspace[: rows.stop - begin, : self.head.shape[0]]
            product(self._hidden[rows], self.head, self.bias, logits)
            yield rows, logits


def product(hidden: Tensor, head: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """z = hidden head^T + bias into `out`. The seam for a fused epilogue: the one place that makes z."""
    if bias is None:
        torch.mm(hidden, head.t(), out=out)
    else:
        torch.addmm(bias, hidden, head.t(), out=out)


def padded_size_of(head_size: int) -> int:
    """Rows of a head with rows of zeros up to a multiple of 64, or its own where 8 divides them.

    The vendor's fast GEMMs want every dimension a multiple of 16 bytes: on an H100 the products of a head of
    20,002 rows run at 260 TFLOP/s in bfloat16, those of 20,032 at more than twice that, and copying the head
    costs a hundredth of a step. The logits of the padding are 0, no kernel looks at them, and as gradients
    they meet the padding's zeros only.
    """
    return head_size + (-head_size % 64 if head_size % 8 else 0)


def padded_head(head: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Head and bias padded to `padded_size_of` its rows, or themselves where that changes nothing."""
    extra = padded_size_of(head.shape[0]) - head.shape[0]
    if extra == 0:
        return head, bias
    return F.pad(head, (0, 0, 0, extra)), None if bias is None else F.pad(bias, (0, extra))


def chunk_rows(n_rows: int, head_size: int, itemsize: int, workspace_bytes: int) -> int:
    """Rows of one chunk: as even as can be within the workspace, and at least one."""
    most = max(1, workspace_bytes // (round_up(head_size, ALIGNMENT) * itemsize))
    even = cdiv(n_rows, max(1, cdiv(n_rows, most)))
    return min(most, round_up(even, 128))
