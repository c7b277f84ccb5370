"""`zipfmax mutants --timing`: are planted ways to claim time caught, and do honest layers keep their times?

Each layer of `cheats` is put through what a sweep does with a user's class: parity, then rounds of timed and
verified samples beside torch.nn's layer and the bare products. A cheat is caught where its cell has no time,
or where the time that it has is an honest one, which its trick did not shorten.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.progress import track
from rich.table import Table

from zipfmax_bench.engine import Engine, SamplingPolicy
from zipfmax_bench.executors import WorkerProcess
from zipfmax_bench.messages import LIMIT
from zipfmax_bench.parity_guard import ParityGuard
from zipfmax_bench.table import show
from zipfmax_bench.timings import FINDINGS, timing_of
from zipfmax_reference.console import terminal
from zipfmax_reference.records import RunDirectory, TimingFault
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.invocation import invocation

HONEST_SPEEDUP = 2.0
"""Over torch.nn's layer, of which every cheat is made: less was not gained by cheating."""

SHAPE = Case(10_000, 64, 256, (1_000, 4_000))
THREADS = 1
POLICY = SamplingPolicy(rounds=6, budget_s=60.0)


@dataclass(frozen=True)
class Planted:
    """A layer, and what it does."""

    name: str
    text: str
    honest: bool = False
    task: str = "train"
    device: str = "cpu"

    @property
    def implementation(self) -> str:
        """As `registry.implementation` takes it."""
        return f"zipfmax_bench.cheats.{self.name}"


PLANTED = (
    Planted("honest:Plain", "torch.nn's layer by another name", honest=True),
    Planted("honest:Fused", "gradients computed in the forward by torch.autograd.grad", honest=True),
    Planted("layers:CachedByAddress", "results kept by address and version of the batch"),
    Planted("layers:CachedByContent", "results kept by what the batch holds"),
    Planted("layers:RightOnTheFirstBatch", "the first batch's results for every batch"),
    Planted("layers:PreviousResults", "the last call's results in every other call"),
    Planted("layers:SkipsBackward", "no gradients in every other call"),
    Planted("layers:FirstRows", "an eighth of the rows, repeated"),
    Planted("layers:LowPrecision", "products in bfloat16"),
    Planted("layers:WatchesTheTimer", "stale results where a timer is on the stack"),
    Planted("layers:ZeroesTheTarget", "the target zeroed in place"),
    Planted("layers:ChangesTheInput", "the input replaced in place"),
    Planted("layers:Lazy", "results that are computed when they are read", task="forward"),
    Planted("layers:InTheBackground", "results filled in by a thread", task="forward"),
    Planted("layers:MoreThreads", "more threads than it was given"),
    Planted("clock:SlowClock", "time.perf_counter patched at import"),
    Planted("own_clock:OwnClock", "the module time and the timer's own clock replaced at import"),
    Planted("lenient:Lenient", "the contract and the judge patched at import"),
    Planted("events:ShortEvents", "torch.cuda.Event patched at import", device="cuda"),
)


@dataclass(frozen=True)
class LayerOutcome:
    """What became of one layer."""

    layer: str
    text: str
    honest: bool
    status: str
    reason: str | None
    speedup_vs_torch: float | None
    delegates: str | None

    @property
    def holds(self) -> bool:
        """Whether an honest layer kept its time, or a cheat gained none."""
        if self.honest:
            return self.status == "ok" and self.speedup_vs_torch is not None
        return self.status in FINDINGS or (
            self.status == "ok"
            and self.speedup_vs_torch is not None
            and self.speedup_vs_torch < HONEST_SPEEDUP
        )

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if self.honest:
            return "kept its time" if self.holds else "LOST ITS TIME"
        if not self.holds:
            return "NOT CAUGHT"
        return "no time" if self.status != "ok" else "honest time"


def run(out: Path | None = None, only: Sequence[str] = ()) -> int:
    """Measure every planted layer and show the table.

    Args:
        out: a run directory for `timing_faults.jsonl`; by default nothing is kept.
        only: names of `PLANTED`; by default all that this machine has the device for.

    Returns:
        0 where every cheat is caught and every honest layer keeps its time, otherwise 1.
    """
    chosen = [one for one in PLANTED if not only or one.name in only]
    here = [one for one in chosen if one.device == "cpu" or torch.cuda.is_available()]
    with tempfile.TemporaryDirectory(prefix="zipfmax-") as folder:
        directory = RunDirectory.start(out or Path(folder) / "run", invocation({"timing": True}))
        outcomes = examine(here, directory)
        directory.write(*(TimingFault(**asdict(outcome)) for outcome in outcomes))
    show(terminal(), [_table(outcomes)])
    for one in chosen:
        if one not in here:
            print(f"not tried, since there is no {one.device} device: {one.text}")
    cheats = [outcome for outcome in outcomes if not outcome.honest]
    print(f"{sum(outcome.holds for outcome in cheats)} of {len(cheats)} ways to claim time caught")
    wrong = [outcome.layer for outcome in outcomes if not outcome.holds]
    if wrong:
        print(f"FAILED: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def examine(planted: Sequence[Planted], directory: RunDirectory) -> list[LayerOutcome]:
    """What becomes of each layer, measured beside torch.nn's and the bare products."""
    log = directory.path / "workers.log"
    outcomes = []
    with ParityGuard(directory, THREADS, log) as guard:
        beside = {name: [WorkerProcess(name, THREADS)] for name in ("torch", LIMIT)}
        try:
            for one in track(planted, "timing faults", console=terminal(stderr=True), transient=True):
                outcomes.append(_outcome(one, beside, guard))
        finally:
            for (worker,) in beside.values():
                worker.close()
    return outcomes


def _outcome(one: Planted, beside: dict[str, list[WorkerProcess]], guard: ParityGuard) -> LayerOutcome:
    case = replace(SHAPE, task=one.task, device=one.device)
    name = one.implementation
    worker = WorkerProcess(name, THREADS)
    try:
        subjects = dict.fromkeys([name, *beside], case)
        found = Engine({name: [worker], **beside}).measure(
            subjects, POLICY, judge=guard.fault, verifier=guard
        )
    finally:
        worker.close()
        guard.release(name)
    timing = timing_of(case, name, found, found[LIMIT], THREADS)
    return LayerOutcome(
        one.name,
        one.text,
        one.honest,
        timing.status,
        timing.reason,
        timing.speedup_vs_torch,
        timing.delegates,
    )


def _table(outcomes: Sequence[LayerOutcome]) -> Table:
    table = Table("planted", "outcome", "times torch.nn", "what was found", title="ways to claim time")
    for one in outcomes:
        speedup = "" if one.speedup_vs_torch is None else f"{one.speedup_vs_torch:.3g}"
        found = one.reason or (f"delegates to {one.delegates}" if one.delegates else "")
        table.add_row(one.text, one.verdict, speedup, found, style=None if one.holds else "red")
    return table
