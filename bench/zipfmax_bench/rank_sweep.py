"""`zipfmax sweep --world N`: layers whose vocabulary is split over N ranks of this machine, against one rank.

Rounds take turns: a step over the ranks, a step on one. Every case is written as soon as it is done. A rank
that dies costs its case, which is recorded as failed with the reason; new ranks take the next one, and
`--resume` goes on with what is not there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch
from rich.table import Table

from zipfmax.errors import UsageError
from zipfmax_bench import presets
from zipfmax_bench.rank_steps import PLACE
from zipfmax_bench.sweep_options import PLANNED, SweepOptions, check_numbers, chosen_device, default_path
from zipfmax_reference.console import print_table, terminal
from zipfmax_reference.contestants.child import ChildError, told
from zipfmax_reference.contestants.ranked_layer import RankedLayer, RankPool, check_ranks
from zipfmax_reference.records import CaseFields, RankTiming, RunDirectory
from zipfmax_reference.runs.case import TASKS as ALL_TASKS
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.runs.invocation import invocation

ROUNDS = 9
TASKS = ("forward", "train")
NOT_OVER_RANKS = ("processes", "precision", "budget", "replay")
"""Options of a sweep that one over ranks does not have."""


def run(options: SweepOptions, worlds: Sequence[int], out: Path | None, resume: bool) -> int:
    """Measure, show the table, and leave `ranks.jsonl` in `out`.

    Returns:
        0 where every case was measured, 1 where one failed.

    Raises:
        UsageError: choices that do not exist or do not go with ranks, or a folder that cannot be used.
    """
    for world in worlds:
        for name in options.impl or ("zipfmax",):
            check_ranks(world, name)
    _check(options)
    axes = presets.axes(
        "quick" if options.preset is None else options.preset,
        classes=options.classes,
        labels=options.labels,
        tasks=options.task or TASKS,
        implementations=options.impl or ("zipfmax",),
        cutoffs=tuple(presets.parse_cutoffs(text) for text in options.cutoffs),
        features=options.features,
        batch=options.batch,
        div_value=options.div_value,
        dtypes=options.dtype,
        logit_std=options.logit_std,
        device=chosen_device(options.device or presets.device(options.preset)),
        seed=options.seed,
    )
    cases = presets.cases(axes)
    threads = options.threads or 1
    torch.set_num_threads(threads)  # which the ranks take over
    arguments = {"sweep": asdict(options), "world": list(worlds)}
    directory = RunDirectory.start(out or default_path(), invocation(arguments), resume)
    done = directory.finished(RankTiming)
    for world in worlds:
        pools = RankPool(1, PLACE), RankPool(world, PLACE)
        for case in cases:
            for name in axes.implementations:
                if (case.id, name, world) not in done:
                    directory.write(measured(case, name, pools, world, options.rounds or ROUNDS, threads))
    found = directory.read(RankTiming)
    show(found)
    print(f"records in {directory.path}")
    return 1 if any(record.status == "failed" for record in found) else 0


def _check(options: SweepOptions) -> None:
    check_numbers(options)
    if beyond := [task for task in options.task if task in ALL_TASKS and task not in TASKS]:
        raise UsageError(f"over ranks there are the tasks {' and '.join(TASKS)}, not {beyond[0]}")
    others = [name for name in NOT_OVER_RANKS if getattr(options, name) is not None]
    if PLANNED in options.cutoffs:
        others.append("cutoffs plan")
    if others:
        raise UsageError(f"--{others[0]} does not go with --world")


def measured(
    case: Case, name: str, pools: tuple[RankPool, RankPool], world: int, rounds: int, threads: int
) -> RankTiming:
    """One case over the ranks of the second pool, and on the one of the first."""
    alone, layer = (
        RankedLayer(name, size, name, (), pool) for size, pool in zip((1, world), pools, strict=True)
    )
    record = RankTiming(
        case=case.id,
        impl=name,
        world=world,
        fields=CaseFields(**case.to_fields()),
        threads=threads,
        status="ok",
    )
    if (reason := layer.unsupported_reason(case)) is not None:
        return record.model_copy(update={"status": "skipped", "reason": reason})
    try:
        inputs = draw_inputs(case)
        steps = [one.made("time", case, inputs) for one in (alone, layer)]
        of_one, of_ranks = (step.everyones("counted") for step in steps)
        samples: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for step, found in zip(steps, samples, strict=True):
                found.append(max(step.everyones("time")))
    except ChildError as error:
        return record.model_copy(update={"status": "failed", "reason": told(error)})
    largest = {key: max(rank[key] for rank in of_ranks) for key in of_ranks[0]}
    return record.model_copy(
        update={
            **largest,
            "one_rank_peak_bytes": of_one[0]["peak_bytes"],
            "one_rank_parameter_bytes": of_one[0]["parameter_bytes"],
            "one_rank_samples_s": samples[0],
            "samples_s": samples[1],
            "one_rank_s": median(samples[0]),
            "median_s": median(samples[1]),
        }
    )


def show(records: Iterable[RankTiming]) -> None:
    """Print the table, and what failed."""
    table = Table(title="vocabulary over ranks", title_justify="left")
    for heading in ("case", "layer"):
        table.add_column(heading)
    for heading in ("ranks", "ms", "ms on one", "efficiency", "sent MB", "peak MB", "on one", "weights MB"):
        table.add_column(heading, justify="right")
    for r in records:
        if r.median_s is None or r.one_rank_s is None:
            print(f"{r.status}: {r.impl} over {r.world} ranks, {r.case}: {r.reason}")
            continue
        numbers = (r.sent_bytes, r.peak_bytes, r.one_rank_peak_bytes, r.parameter_bytes)
        table.add_row(
            r.case,
            r.impl,
            str(r.world),
            f"{r.median_s * 1e3:.3g}",
            f"{r.one_rank_s * 1e3:.3g}",
            f"{r.efficiency:.2f}",
            *(f"{(number or 0) / 1e6:.3g}" for number in numbers),
        )
    print_table(terminal(), table)
    sys.stdout.flush()
