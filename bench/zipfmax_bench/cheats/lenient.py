"""Makes the contract accept everything when it is imported, and computes something else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zipfmax_bench import judging
from zipfmax_bench.cheats.honest import Plain, Result
from zipfmax_reference.truth import oracle


def _passed(self: Any, *arguments: Any) -> list[Any]:
    return []


oracle.Oracle.check = _passed  # type: ignore[assignment, method-assign]
judging.ResultJudge.lines = _passed  # type: ignore[assignment, method-assign]


class Lenient(Plain):
    """Returns zeros."""

    def forward(self, input: Tensor, target: Tensor) -> Any:
        """Zeros that backward can go through."""
        output = input.sum(dim=1) * 0 + torch.zeros(len(target), dtype=input.dtype)
        return Result(output, output.sum())
