"""`zipfmax sweep`: every implementation on every case, parity first, one flushed line a cell.

A cell is an implementation on a case. Whatever becomes of it, it gets a line in `timings.jsonl`, so a resumed
sweep knows what is left, and a reader knows what is missing and why.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from zipfmax.errors import UsageError
from zipfmax_bench import timings
from zipfmax_bench.engine import Engine, Measurement
from zipfmax_bench.messages import LIMIT
from zipfmax_bench.parity_guard import ParityGuard
from zipfmax_bench.prediction import RunTimePredictor, product_flops
from zipfmax_bench.progress import SweepProgress
from zipfmax_bench.split import TASKS as SPLIT_TASKS
from zipfmax_bench.sweep_options import ResolvedSweep, SweepOptions, resolve
from zipfmax_bench.table import show, timing_tables
from zipfmax_bench.torchrun import Ranks
from zipfmax_reference.console import terminal
from zipfmax_reference.contestants import registry
from zipfmax_reference.records import Timing
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.labels import vocabulary_size
from zipfmax_reference.runs.machine import usable_cores

# Their faults are shown; what is under test is the others: zipfmax, and an implementation of the user's own.
PEERS = tuple(name for name in registry.names() if not name.startswith("zipfmax"))
INTERRUPTED = 130


def run(options: SweepOptions, out: Path | None, resume: bool) -> int:
    """Run a sweep, print its table, and return the exit status: 1 if zipfmax or a user's own class is

    wrong, raises or has implausible times; each cause is told once.

    Args:
        options: the choices of the command line.
        out: the run directory; by default a fresh one under `runs/`.
        resume: go on with the run in `out`.

    Raises:
        UsageError: a choice that does not exist, or a folder that cannot be used.
    """
    console = terminal()
    ranks = Ranks.of_environment()
    plan = resolve(options, out, resume) if ranks is None else _shared_plan(options, out, resume, ranks)
    path = plan.directory.path
    try:
        Sweep(plan, console, ranks).run()
    except KeyboardInterrupt:
        done = len(plan.directory.finished(Timing))
        _say(console, f"interrupted after {done} of {len(plan.cases) * len(plan.implementations)} cells")
        _say(console, f"go on with: zipfmax sweep --resume --out {path}")
        return INTERRUPTED
    if ranks is not None:
        ranks.finish()
        if not ranks.first:
            return 0
    cells = plan.directory.read(Timing)
    _say(console, "\nmilliseconds (times faster than full softmax)")
    show(console, timing_tables(cells, plan.implementations))
    _say(console, f"run directory: {path}")
    causes = [f"{one.impl}: {cause(one)}" for one in cells if one.status in timings.FINDINGS]
    for text, number in Counter(causes).items():
        print(f"zipfmax: {text}" + (f" ({number} cells)" if number > 1 else ""), file=sys.stderr)
    return 1 if any(one.status in timings.FINDINGS and one.impl not in PEERS for one in cells) else 0


def cause(cell: Timing) -> str:
    """Why a cell has no time, without the name of the case, so that equal causes are told once."""
    return f"{timings.FINDINGS[cell.status]}: {str(cell.reason).partition(', on ')[0]}"


def _shared_plan(options: SweepOptions, out: Path | None, resume: bool, ranks: Ranks) -> ResolvedSweep:
    """The same plan on every rank: the first makes the run directory, the others go on with it."""
    if out is None:
        raise UsageError("a sweep over several ranks needs --out: one run directory for all")
    ranks.take_own_gpu()
    options = replace(options, threads=options.threads or max(1, usable_cores() // ranks.local_size))
    if ranks.first:
        plan = resolve(options, out, resume or (ranks.restart > 0 and out.exists()))
        ranks.announce()
        return plan
    ranks.await_directory()
    return resolve(options, out, resume=True, shared=True)


class Sweep:
    """The cells of a plan that its run directory does not hold yet."""

    def __init__(self, plan: ResolvedSweep, console: Console, ranks: Ranks | None = None) -> None:
        self._plan = plan
        self._ranks = ranks
        self._console = console
        self._families = {name: registry.family(name) for name in plan.implementations}
        self._costs = RunTimePredictor(self._families)
        self._exhausted: dict[tuple[str, Case], str] = {}  # the first reason
        for cell in plan.directory.read(Timing):
            self._learn(cell)

    def run(self) -> None:
        """Measure what is missing; every finished cell is on the disk at once."""
        plan, done = self._plan, self._plan.directory.finished(Timing)
        todo = []
        for case in plan.cases:
            missing = [name for name in plan.implementations if (case.id, name) not in done]
            if missing:
                todo.append((case, missing))
        if not todo:
            return
        log = plan.directory.path / "workers.log"
        names = [*plan.implementations, LIMIT]
        with ExitStack() as stack:
            engine = stack.enter_context(Engine.of_processes(names, plan.threads, plan.processes, log))
            guard = stack.enter_context(ParityGuard(plan.directory, plan.threads, log, engine.server))
            progress = stack.enter_context(
                SweepProgress([self._weight(case) for case, _ in todo], self._console)
            )
            for case, missing in self._own(todo):
                progress.begin(describe(case))
                self._case(case, missing, engine, guard)
                progress.finish()

    def _own(self, todo: Sequence[tuple[Case, list[str]]]) -> Iterator[tuple[Case, list[str]]]:
        """All of it, or what falls to this rank. Ranks may see different rests, so they share all cases."""
        if self._ranks is None:
            yield from todo
            return
        missing = {case.id: names for case, names in todo}
        for case in self._ranks.deal(self._plan.cases):
            if case.id in missing:
                yield case, missing[case.id]

    def _case(self, case: Case, missing: Sequence[str], engine: Engine, guard: ParityGuard) -> None:
        # A resumed case measures its references again: a speedup needs both in the same rounds.
        wanted = [
            name for name in self._plan.implementations if name in missing or name in timings.REFERENCES
        ]
        refused = {name: refusal for name in wanted if (refusal := self._refusal(name, case))}
        ready = [name for name in wanted if name not in refused]
        precision = self._plan.policy.precision
        found = engine.measure(
            dict.fromkeys([*ready, LIMIT] if ready else [], case),
            self._plan.policy,
            judge=guard.fault,
            satisfied=None if precision is None else partial(timings.precise, precision=precision),
            split=self._to_split(case),
            verifier=guard,
        )
        limit = found.pop(LIMIT, None)
        found |= refused
        cells = []
        for name in missing:
            own_limit = limit if self._families[name] == "adaptive" else None
            cells.append(timings.timing_of(case, name, found, own_limit, self._plan.threads))
            self._learn(cells[-1])
        self._plan.directory.write(*cells)

    def _to_split(self, case: Case) -> list[str]:
        """Whose head and tails are timed apart: zipfmax's, a user's own, and the bare products."""
        if case.task not in SPLIT_TASKS:
            return []
        adaptive = [name for name, family in self._families.items() if family == "adaptive"]
        return [LIMIT, *(name for name in adaptive if name not in PEERS)]

    def _refusal(self, name: str, case: Case) -> Measurement | None:
        """The cell as it is recorded without being tried, or None."""
        listed = vocabulary_size(case.labels)
        if listed is not None and listed < case.n_classes:
            reason = f"labels {case.labels} have {listed:,} classes, fewer than {case.n_classes:,}"
            return Measurement("skipped", reason)
        if exhausted := self._exhausted.get((name, case.without_labels)):
            return Measurement("out_of_memory", f"as with other labels before: {exhausted}")
        policy, run_s = self._plan.policy, self._costs.predict(name, case)
        if run_s is not None and run_s * policy.least_rounds > policy.budget_s:
            reason = (
                f"predicted {run_s * policy.least_rounds:.3g} s for {policy.least_rounds} rounds, "
                f"past the budget of {policy.budget_s:g} s"
            )
            return Measurement("over_budget", reason)
        return None

    def _learn(self, cell: Timing) -> None:
        seconds, case = cell.median_s, Case.from_fields(cell.model_dump())
        if cell.status == "out_of_memory" and self._families.get(cell.impl) == "full":
            # Full softmax does the same whatever the labels are, and drawing its weight again takes a minute.
            self._exhausted.setdefault((cell.impl, case.without_labels), str(cell.reason))
        if cell.status == "over_budget":
            seconds = self._plan.policy.budget_s / self._plan.policy.least_rounds
        if seconds and cell.impl in self._families:
            self._costs.learn(cell.impl, case, seconds)

    def _weight(self, case: Case) -> float:
        """Expected seconds on a slow machine; only the proportions matter."""
        policy = self._plan.policy
        rate = 1e11 if case.device == "cpu" else 1e14
        runs_s = (policy.least_rounds * product_flops(own, case) / rate for own in self._families.values())
        return 1.0 + sum(min(max(policy.seconds, own), policy.budget_s) for own in runs_s)


def describe(case: Case) -> str:
    """A case in the words of a progress line."""
    spread = "" if case.logit_std is None else f" logit std {case.logit_std:g}"
    shape = f"V={case.n_classes:,} d={case.in_features} N={case.batch_size}"
    return f"{case.task} {shape} {case.labels} {case.dtype}{spread}"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
