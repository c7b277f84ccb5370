"""The loss without gradients, as in evaluation: `pytest --benchmark`."""

from __future__ import annotations

from typing import Any

from zipfmax_bench.suite import Cell

TASK = "forward"


def bench_forward(cell: Cell, benchmark: Any) -> None:
    """One implementation on one case."""
    cell.hand_to(benchmark)
