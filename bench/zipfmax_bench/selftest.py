"""`zipfmax gate --self-test`: how often the gate is wrong, counted here and now.

A layer with nothing planted gives the false alarms; faults planted in zipfmax's layer give what is caught.
Each gate run measures a baseline and then a run, both as `make gate` does, and judges them by the gate's own
code; what is suspect is measured beside the layer as it was, as `gate --base` does, in processes started for
that.

The workers of the two sides are disjoint halves of a pool, drawn at random for every gate run, so processes
of one program differ between the sides as much as fresh ones would. One of them is replaced after every gate
run. That, and small cells, is what makes hundreds of gate runs take minutes.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.table import Table

from zipfmax.errors import UsageError
from zipfmax_bench import compare, judge, messages, presets
from zipfmax_bench.baseline import Baseline, Key, cell_of
from zipfmax_bench.engine import Engine
from zipfmax_bench.executors import WorkerProcess
from zipfmax_bench.fork_server import ForkServer, can_fork
from zipfmax_bench.gate import RERUN_POLICY, examine
from zipfmax_bench.revisions import Side
from zipfmax_bench.timings import timing_of
from zipfmax_reference.console import print_table, terminal
from zipfmax_reference.records import Finding, Outcome, RunDirectory, SelfTest, SelfTestRun, Timing
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.invocation import invocation

AXES = presets.PRESETS["gate"]
# Under a millisecond a run: the hardest to time well. They share their weights, so going from one to the
# other costs nothing.
CASES = tuple(case for case in presets.cases(AXES) if case.task == "forward")
OURS = "zipfmax"
REFERENCES = ("torch", messages.LIMIT)
THREADS = 1
PROCESSES = 6

MOST_FALSE_ALARMS = 0.01
LEAST_CAUGHT = 0.95


@dataclass(frozen=True)
class Kind:
    """A kind of gate runs: what stands in our layer's place in one cell, and what the gate should say."""

    name: str
    runs: int
    stand_in: str = OURS
    renamed: bool = False
    outcome: Outcome | None = None
    """Of the one cell; None where no cell may fail."""
    word: str = ""
    """Has to be in the finding, so that it was found for what was planted."""
    required: str = "all"

    @property
    def timed(self) -> bool:
        """Whether a clock decides it."""
        return self.required not in ("all", "none")


_PLANTED = "zipfmax_bench.planted"
KINDS = (
    Kind("one more temporary", 5, f"{_PLANTED}:ExtraTemporary", outcome="changed", word="peak_bytes"),
    Kind(
        "one more host synchronisation",
        5,
        f"{_PLANTED}:ExtraSynchronisation",
        outcome="changed",
        word="synchronisations",
    ),
    Kind("a renamed cell", 5, renamed=True, outcome="missing"),
    Kind("a layer with nothing planted", 100, f"{_PLANTED}:Unchanged", required="at most 1%"),
    Kind("one cell made 10 % slower", 100, f"{_PLANTED}:Slower", outcome="slower", required="at least 95%"),
)


@dataclass(frozen=True)
class Score:
    """How many gate runs of a kind failed, how many were undecided, and how many should have failed."""

    kind: str
    runs: int
    failed: int
    undecided: int
    required: str
    holds: bool

    @property
    def share(self) -> float:
        """Share of the runs that failed."""
        return self.failed / self.runs


def score(kind: Kind, failed: Sequence[bool], undecided: int = 0) -> Score:
    """What the runs of a kind came to."""
    count, runs = sum(failed), len(failed)
    holds = {
        "all": count == runs,
        "none": count == 0,
        "at most 1%": count <= MOST_FALSE_ALARMS * runs,
        "at least 95%": count >= LEAST_CAUGHT * runs,
    }[kind.required]
    return Score(kind.name, runs, count, undecided, kind.required, holds)


def self_test(
    out: Path | None = None, resume: bool = False, kinds: Sequence[Kind] = KINDS, runs: int | None = None
) -> int:
    """Run it, print the figures, and return 0 if they are as good as they should be, 1 otherwise.

    Args:
        out: a run directory: each gate run is a line of `selftest_runs.jsonl` there as soon as it is done,
            and the figures become `selftest.jsonl`.
        resume: go on with the run in `out`.
        kinds: of gate runs, and how many of each.
        runs: at most so many of each kind.

    Raises:
        UsageError: `out` cannot be used, or the cells cannot be measured here.
    """
    if runs is not None:
        if runs < 1:
            raise UsageError(f"--runs should be a positive number, got {runs}")
        kinds = [replace(kind, runs=min(kind.runs, runs)) for kind in kinds]
    console = terminal()
    planned = invocation({"self_test": {kind.name: kind.runs for kind in kinds}})
    directory = RunDirectory.optional(out, planned, resume)
    done: dict[tuple[str, int], SelfTestRun] = {}
    for one in directory.read(SelfTestRun) if directory else ():
        done[one.kind, one.run] = one
    started = time.monotonic()
    todo = [(kind, run) for kind, run in schedule(kinds) if (kind.name, run) not in done]
    left = Counter(kind.stand_in for kind, _ in todo)
    with Bench(seed=len(done)) as bench, Progress(console=console) as progress:
        for kind, run in progress.track(todo, description="gate runs"):
            done[kind.name, run] = line = SelfTestRun(kind=kind.name, run=run, **bench.gate_run(kind))
            if directory is not None:
                directory.write(line)
            left[kind.stand_in] -= 1
            if not left[kind.stand_in] and kind.stand_in != OURS:
                bench.close(kind.stand_in)
    scores = []
    for kind in kinds:
        lines = [done[kind.name, run] for run in range(kind.runs)]
        scores.append(score(kind, [one.failed for one in lines], sum(one.undecided for one in lines)))
    print_table(console, _table(scores))
    console.print(f"{len(todo)} gate runs in {time.monotonic() - started:.0f} s", highlight=False)
    if directory is not None:
        directory.write(*(SelfTest(**asdict(one), share=one.share) for one in scores))
    return 0 if all(one.holds for one in scores) else 1


def schedule(kinds: Sequence[Kind]) -> list[tuple[Kind, int]]:
    """Every gate run: what is counted first, a kind at a time; then what is timed, the kinds side by side, so

    that the machine's good and bad minutes fall to all of them and a cut leaves some of each.
    """
    counted = [(kind, run) for kind in kinds if not kind.timed for run in range(kind.runs)]
    timed = [(kind, run) for kind in kinds if kind.timed for run in range(kind.runs)]
    return counted + sorted(timed, key=lambda one: (one[1] + 0.5) / one[0].runs)


class Bench:
    """Pools of worker processes, one of each implementation, for both sides of a gate run."""

    def __init__(self, seed: int = 0) -> None:
        self._pools: dict[str, list[WorkerProcess]] = {}
        self._random = random.Random(seed)
        self._turn = 0
        self._server = ForkServer(THREADS) if can_fork() else None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._pools):
            self.close(name)
        if self._server is not None:
            self._server.close()

    def close(self, name: str) -> None:
        """End the processes of an implementation."""
        for worker in self._pools.pop(name, []):
            worker.close()

    def gate_run(self, kind: Kind) -> dict[str, Any]:
        """Measure a baseline and a run and judge them: whether it failed, and what was said of which cell."""
        started = time.monotonic()
        then, now = self._sides(kind)
        base = {(case.id, OURS): self._measure(case, OURS, then) for case in CASES}
        keys = [(case.id, measured(kind, case)) for case in CASES]
        found = {key: self._measure(case, key[1], now) for case, key in zip(CASES, keys, strict=True)}
        expected = {
            (case, name): cell_of(base[case, OURS]).model_copy(update={"impl": name}) for case, name in keys
        }
        if kind.renamed:
            found["renamed", OURS] = found.pop((CASES[0].id, OURS))
        findings = examine(Baseline(expected), found, judge.THRESHOLD, None, beside_ours)
        self._replace_one()
        has_failed = failed(kind, findings)
        return {
            "failed": has_failed,
            "undecided": not has_failed and any(one.outcome == "undecided" for one in findings),
            "said": [one for one in findings if one.failed or one.outcome == "undecided" or one.impl != OURS],
            "seconds": time.monotonic() - started,
        }

    def _measure(self, case: Case, name: str, workers: Mapping[str, Sequence[WorkerProcess]]) -> Timing:
        """The timing of an implementation, measured beside the references."""
        together = (name, *REFERENCES)
        engine = Engine({each: workers[each] for each in together}, self._random)
        found = engine.measure(dict.fromkeys(together, case), AXES.policy)
        for each, measurement in found.items():
            if not measurement.ok:
                raise UsageError(
                    f"the self-test cannot measure {each} here: {measurement.status}: {measurement.reason}"
                )
        return timing_of(case, name, found, found[messages.LIMIT], THREADS)

    def _sides(self, kind: Kind) -> tuple[dict[str, list[WorkerProcess]], dict[str, list[WorkerProcess]]]:
        """Ready workers of every name for the baseline and for the run, none of them in both."""
        sizes = dict.fromkeys((OURS, *REFERENCES), 2 * PROCESSES)
        sizes.setdefault(kind.stand_in, PROCESSES)
        fresh = []
        for name, size in sizes.items():
            pool = self._pools.setdefault(name, [])
            fresh += [self._worker(name) for _ in range(size - len(pool))]
            pool += [worker for worker in fresh if worker.name == name]
        for worker in fresh:
            worker.start()
        for worker in fresh:
            worker.ask(messages.PrepareCase(CASES[0]))
        drawn = {name: self._random.sample(self._pools[name], size) for name, size in sizes.items()}
        return (
            {name: workers[PROCESSES:] for name, workers in drawn.items()},
            {name: workers[:PROCESSES] for name, workers in drawn.items()},
        )

    def _worker(self, name: str) -> WorkerProcess:
        return WorkerProcess(name, THREADS, None, sys.executable, self._server)

    def _replace_one(self) -> None:
        """End the oldest worker of one implementation, each in its turn; the next gate run starts another."""
        names = list(self._pools)
        self._pools[names[self._turn % len(names)]].pop(0).close()
        self._turn += 1


class _Ours(Side):
    """The layer as it was before a fault was planted, in place of a base revision."""

    def implementation(self, name: str) -> str:
        """Ours, whatever was planted."""
        return OURS


def beside_ours(keys: Sequence[Key]) -> dict[Key, Finding]:
    """Judges cells by measuring what is in them beside our layer, as `gate --base` measures two revisions."""
    here = Path()
    pair = (
        _Ours("the layer as it was", here, here, sys.executable),
        Side("this one", here, here, sys.executable),
    )
    cells = {key: next(case for case in CASES if case.id == key[0]) for key in keys}
    return compare.beside(cells, pair, THREADS, judge.THRESHOLD, RERUN_POLICY, count_work=False)


def measured(kind: Kind, case: Case) -> str:
    """What a run of a kind measures where the baseline has ours: the planted fault in the first cell."""
    return kind.stand_in if case == CASES[0] else OURS


def failed(kind: Kind, findings: Sequence[Finding]) -> bool:
    """Whether the gate failed: where a fault is planted, for that cell and for that reason."""
    if kind.outcome is None:
        return any(finding.failed for finding in findings)
    return any(
        (finding.case, finding.impl) == (CASES[0].id, kind.stand_in)
        and finding.outcome == kind.outcome
        and kind.word in finding.text
        for finding in findings
    )


def _table(scores: Sequence[Score]) -> Table:
    columns = ("gate runs of", "runs", "failed", "should be", "", "undecided")
    table = Table(*columns, title="the gate, tested on itself")
    for one in scores:
        holds = "holds" if one.holds else "DOES NOT HOLD"
        failures = f"{one.failed} ({one.share:.1%})"
        table.add_row(one.kind, str(one.runs), failures, one.required, holds, str(one.undecided))
    return table
