"""`zipfmax gate --self-test`: how often the gate is wrong, counted here and now.

Gate runs of the same code against itself give the false alarms; faults planted in zipfmax's layer give what
is caught. Every gate run takes fresh samples, in processes drawn at random from pools that are started once:
what differs between processes of one program is in the comparison, and hundreds of runs take minutes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from zipfmax.bench import judge, protocol, records
from zipfmax.bench.baseline import Baseline, Key, cell_of
from zipfmax.bench.coordinator import RUNS_OF_A_SHORT_SAMPLE, Measurement, Sample, Worker
from zipfmax.bench.gate import examine
from zipfmax.reference.case import Case
from zipfmax.reference.rundir import RunDirectory

Reply = TypeVar("Reply")

# A millisecond a run: the hardest to time well, and hundreds of gate runs fit into minutes.
CASE = Case(8000, 64, 256, (1000, 3000), labels="zipf:1.0", task="forward")
OURS = "zipfmax"
REFERENCE = protocol.LIMIT
POOL = 10
PROCESSES = 8
ROUNDS = 48
RERUN_ROUNDS = 80
FALSE_ALARM_RUNS = 200
SLOWER_RUNS = 40
EXACT_RUNS = 5

MOST_FALSE_ALARMS = 0.01
LEAST_CAUGHT = 0.95


@dataclass(frozen=True)
class Score:
    """How many gate runs of a kind failed, and how many should have."""

    kind: str
    runs: int
    failed: int
    required: str
    holds: bool

    @property
    def share(self) -> float:
        """Share of the runs that failed."""
        return self.failed / self.runs


def self_test(out: Path | None = None) -> int:
    """Run it, print the figures, and return 0 if they are as good as they should be, 1 otherwise.

    Args:
        out: a run directory in which to leave them, as `selftest.jsonl`.

    Raises:
        UsageError: `out` cannot be used.
    """
    console = Console()
    directory = RunDirectory.create(out, {"self_test": asdict(CASE)}, resume=True) if out else None
    started = time.monotonic()
    with Bench(threads=1) as bench, Progress(console=console) as progress:
        scores = list(_scores(bench, progress))
    table = Table("gate runs of", "runs", "failed", "should be", "", title="the gate, tested on itself")
    for score in scores:
        table.add_row(
            score.kind,
            str(score.runs),
            f"{score.failed} ({score.share:.1%})",
            score.required,
            "holds" if score.holds else "DOES NOT HOLD",
        )
    console.print(table)
    console.print(f"{time.monotonic() - started:.0f} s", highlight=False)
    if directory is not None:
        directory.append_all("selftest", [{**asdict(score), "share": score.share} for score in scores])
    return 0 if all(score.holds for score in scores) else 1


class Bench:
    """Pools of worker processes, one of each implementation, all on the one case.

    Args:
        threads: of every worker.
    """

    def __init__(self, threads: int, seed: int = 0) -> None:
        self.threads = threads
        self._pools: dict[str, list[Worker]] = {}
        self._round = 0
        self._random = random.Random(seed)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._pools):
            self.close(name)

    def close(self, name: str) -> None:
        """End the processes of an implementation."""
        for worker in self._pools.pop(name, []):
            worker.close()

    def measure(self, name: str, rounds: int) -> records.Record:
        """A timing line of an implementation beside the reference, from processes drawn anew."""
        chosen = {each: self._random.sample(self._pool(each), PROCESSES) for each in (name, REFERENCE)}
        found = {each: Measurement() for each in chosen}
        for round in range(rounds):
            self._round += 1
            order = list(chosen)
            self._random.shuffle(order)
            for each in order:
                timed = _must(
                    chosen[each][round % PROCESSES].ask(protocol.Sample(self._round, RUNS_OF_A_SHORT_SAMPLE)),
                    protocol.Timed,
                )
                found[each].rows.append(timed.occupancy)
                found[each].samples.append(Sample(round % PROCESSES, round, timed.seconds, timed.wall_s))
        found[name].work = _must(chosen[name][0].ask(protocol.Weigh()), protocol.Work)
        return records.timing_line(CASE, name, found, found[REFERENCE], self.threads)

    def _pool(self, name: str) -> list[Worker]:
        if name not in self._pools:
            self._pools[name] = [Worker(name, self.threads) for _ in range(POOL)]
            for worker in self._pools[name]:
                worker.start()
            for worker in self._pools[name]:
                _must(worker.ask(protocol.Prepare(CASE)), protocol.Prepared)
                _must(worker.ask(protocol.WarmUp()), protocol.Timed)
        return self._pools[name]


def _scores(bench: Bench, progress: Progress) -> Sequence[Score]:
    """False alarms, then each planted fault."""
    planted = "zipfmax.bench.planted"
    scores = []
    failed = _count(bench, progress, "the same code", OURS, FALSE_ALARM_RUNS)
    share = failed / FALSE_ALARM_RUNS
    scores.append(Score("the same code", FALSE_ALARM_RUNS, failed, "at most 1%", share <= MOST_FALSE_ALARMS))
    failed = _count(bench, progress, "10 % slower", f"{planted}:Slower", SLOWER_RUNS)
    share = failed / SLOWER_RUNS
    scores.append(
        Score("a step made 10 % slower", SLOWER_RUNS, failed, "at least 95%", share >= LEAST_CAUGHT)
    )
    for kind, name in (
        ("one more temporary", f"{planted}:ExtraTemporary"),
        ("one more host synchronisation", f"{planted}:ExtraSynchronisation"),
    ):
        failed = _count(bench, progress, kind, name, EXACT_RUNS)
        scores.append(Score(kind, EXACT_RUNS, failed, "all", failed == EXACT_RUNS))
    failed = _count(bench, progress, "a renamed cell", OURS, EXACT_RUNS, rename=True)
    scores.append(Score("a renamed cell", EXACT_RUNS, failed, "all", failed == EXACT_RUNS))
    return scores


def _count(bench: Bench, progress: Progress, kind: str, name: str, runs: int, rename: bool = False) -> int:
    """How many gate runs fail in which `name` stands where the baseline has zipfmax."""
    failed = 0
    for _ in progress.track(range(runs), description=kind):
        expected = Baseline({(CASE.id, OURS): cell_of(bench.measure(OURS, ROUNDS))})

        def again(keys: Sequence[Key]) -> Mapping[Key, Mapping[str, Any]]:
            return {key: bench.measure(name, RERUN_ROUNDS) for key in keys}

        case = "renamed" if rename else CASE.id
        found = {(case, OURS): bench.measure(name, ROUNDS)}
        failed += any(finding.failed for finding in examine(expected, found, judge.THRESHOLD, again))
    if name != OURS:
        bench.close(name)
    return failed


def _must(reply: object, kind: type[Reply]) -> Reply:
    if not isinstance(reply, kind):
        raise RuntimeError(f"the self-test's case cannot be measured here: {reply}")
    return reply
