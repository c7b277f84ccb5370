"""A training step: forward and backward of the mean loss: `pytest --benchmark`."""

from __future__ import annotations

from typing import Any

from zipfmax_bench.suite import Cell

TASK = "train"


def bench_train(cell: Cell, benchmark: Any) -> None:
    """One implementation on one case."""
    cell.hand_to(benchmark)
