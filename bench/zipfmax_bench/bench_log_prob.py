"""Log-probabilities of all classes: `pytest --benchmark`."""

from __future__ import annotations

from typing import Any

from zipfmax_bench.suite import Cell

TASK = "log_prob"


def bench_log_prob(cell: Cell, benchmark: Any) -> None:
    """One implementation on one case."""
    cell.hand_to(benchmark)
