"""The ten most probable classes and their log-probabilities: `pytest --benchmark`."""

from __future__ import annotations

from typing import Any

from zipfmax_bench.suite import Cell

TASK = "topk"


def bench_topk(cell: Cell, benchmark: Any) -> None:
    """One implementation on one case."""
    cell.hand_to(benchmark)
