"""The most probable class: `pytest --benchmark`."""

from __future__ import annotations

from typing import Any

from zipfmax_bench.suite import Cell

TASK = "predict"


def bench_predict(cell: Cell, benchmark: Any) -> None:
    """One implementation on one case."""
    cell.hand_to(benchmark)
