"""`zipfmax plan --world N`: the plan's step over ranks, from the parts' cost model and collectives measured here.

Where this machine has fewer cores or GPUs than ranks, the collectives are measured on as many as it has and
extrapolated by the bytes that they send: the prediction is then marked as simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from rich.console import Console

from zipfmax.calibration import Calibration
from zipfmax.errors import UsageError
from zipfmax.planner import Plan
from zipfmax.rank_costs import CollectiveCost, predict
from zipfmax_bench.rank_steps import PLACE
from zipfmax_reference.contestants.ranked_layer import RankedLayer, RankPool, check_ranks
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.runs.machine import usable_cores

SIZES = (1 << 12, 1 << 18, 1 << 23)
"""Bytes of the collectives that are measured."""
ROUNDS = 7


def measured_collectives(world: int, device: str) -> CollectiveCost:
    """What sums cost between so many ranks of this machine."""
    case = Case(64, 8, 8, (16,), device=device)
    step = RankedLayer("zipfmax", world, "zipfmax", (), RankPool(world, PLACE)).made(
        "time", case, draw_inputs(case)
    )
    samples = []
    for n_bytes in SIZES:
        seconds = [max(step.everyones("collective", "sum", n_bytes)) for _ in range(ROUNDS)]
        samples.append((2.0 * n_bytes * (world - 1) / world, median(seconds[1:])))
    return CollectiveCost.fit(samples)


def over_ranks(
    plan: Plan, calibration: Calibration, worlds: Sequence[int], dtype: str, device: str, task: str
) -> list[dict[str, Any]]:
    """Predictions for each number of ranks, as JSON holds them.

    Raises:
        UsageError: a number of ranks that the plan's clusters do not allow.
    """
    here = torch.cuda.device_count() if device.startswith("cuda") else usable_cores()
    rows = [share * plan.batch_size for share in plan.occupancy]
    itemsize = getattr(torch, dtype).itemsize
    known: dict[int, CollectiveCost] = {}
    found = []
    for world in worlds:
        check_ranks(world)
        measured_on = min(world, max(2, here))
        try:
            if measured_on not in known:
                known[measured_on] = measured_collectives(measured_on, device)
            one = predict(calibration.model, plan.layout, rows, world, known[measured_on], itemsize, task)
        except ValueError as error:
            raise UsageError(str(error)) from error
        found.append(
            {
                **asdict(one),
                "seconds": one.seconds,
                "efficiency": one.efficiency,
                "collective": asdict(known[measured_on]),
                "collectives_measured_on": measured_on,
                "simulated": measured_on != world,
            }
        )
    return found


def show(found: list[dict[str, Any]], console: Console) -> None:
    """One sentence for each number of ranks."""
    for one in found:
        how = (
            f"simulated from {one['collectives_measured_on']} ranks"
            if one["simulated"]
            else "collectives measured"
        )
        console.print(
            f"over {one['world']} ranks: {one['seconds'] * 1e3:.3g} ms predicted ({how}), of which collectives "
            f"{one['collectives_s'] * 1e3:.3g} ms; on one {one['one_rank_s'] * 1e3:.3g} ms, efficiency "
            f"{one['efficiency']:.2f}; a rank sends {one['sent_bytes'] / 1e6:.3g} MB and holds "
            f"{one['parameter_bytes'] / 1e6:.3g} MB of weights",
            highlight=False,
            soft_wrap=True,
        )
