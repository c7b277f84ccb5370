"""The engine: everything that is measured is measured here.

`measure(subjects, policy)` makes each subject ready on its executor, lets the caller judge whether it is
right, and takes samples of all of them in interleaved rounds, in random order, until the policy says that it
is enough. One executor is asked at a time, so that no two implementations' threads run together.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import IO, Self

from zipfmax import timers
from zipfmax_bench import messages, plausibility
from zipfmax_bench.executors import Executor, WorkerProcess
from zipfmax_bench.fork_server import ForkServer, can_fork
from zipfmax_bench.verification import Verifications, Verifier
from zipfmax_reference.runs.case import Case

# A first run below this is followed by another before anything is judged by it: in a fresh process a run of
# half a millisecond can take 80, and a sample of it would be one run, slower than the median of five.
PERHAPS_COLD_S = 1.0

SPLIT_SHARE = 0.1
"""Share of an implementation's seconds on a case that may be spent, beside them, on timing its parts."""

# Importing a framework, drawing weights, compiling kernels, counting work: not the implementation's cost.
_ALLOWANCE_S = 180.0


@dataclass(frozen=True)
class Sample:
    """The median of some timed runs."""

    process: int
    round: int
    seconds: float
    wall_s: float
    untimed_s: float = 0.0
    """What a request to time a run took, by this process's clock, beyond the time that was claimed for the

    run; the least of the sample's runs, since it holds whatever delayed the answer.
    """


@dataclass
class Measurement:
    """What came of one implementation on one case."""

    status: str = "ok"
    reason: str | None = None
    samples: list[Sample] = field(default_factory=list)
    throttled: int = 0
    """Samples that were left out, because the GPU was slowed down meanwhile."""
    unknown_throttle: int = 0
    """Samples of which that is not known."""
    settings: set[str] = field(default_factory=set)
    """What its processes were set to, in words; empty where there is no choice."""
    replayed: int = 0
    """Samples that were replays of a CUDA graph."""
    spent_s: float = 0.0
    """Wall time that its samples took, with loading and warming."""
    warm_up_s: float | None = None
    """Wall time of a process's first run of the case, which is cold."""
    run_s: float = math.inf
    """Wall time of the shortest of the runs that came before the samples."""
    rows: list[tuple[int, ...]] = field(default_factory=list)
    work: messages.Work = field(default_factory=messages.Work)
    parts: messages.PartTimes | None = None
    verified: int = 0
    """Samples whose results were compared with the definition."""
    empty_trips_s: list[float] = field(default_factory=list)
    """Of requests that time nothing, a round each: the cost of asking."""

    @property
    def runs_per_sample(self) -> int:
        """Runs whose median is one sample: several where a run is so short that a neighbour's blink shows."""
        return timers.runs_per_sample(self.run_s)

    @property
    def was_throttled(self) -> bool | None:
        """Whether the device was slowed down in a sample, which was left out; None where that is unknown."""
        if self.throttled:
            return True
        return None if self.unknown_throttle or not self.samples else False

    @property
    def ok(self) -> bool:
        """Whether it still runs."""
        return self.status == "ok"

    def end(self, status: str, reason: str) -> None:
        """No further sample; the first cause stays."""
        if self.ok:
            self.status, self.reason = status, reason


@dataclass(frozen=True)
class SamplingPolicy:
    """How long to go on measuring.

    Each implementation takes part in the rounds of a case until it has spent `seconds`, in at least `least`
    and at most `most` of them; `rounds` fixes the number for all. `budget_s` is what one cell, an
    implementation on a case, may cost at most. With a `precision` they go on until the caller is satisfied or
    the budget is spent.
    """

    seconds: float = 2.0
    least: int = 5
    most: int = 30
    rounds: int | None = None
    precision: float | None = None
    budget_s: float = 60.0
    replay: bool = False
    """Whether a GPU's runs are captured in CUDA graphs and replayed, where they can be."""

    @property
    def least_rounds(self) -> int:
        """Rounds that a case gets however long they take."""
        return self.rounds if self.rounds is not None else self.least

    def enough(self, rounds: int, spent_s: float) -> bool:
        """Whether an implementation leaves after so many rounds."""
        if self.rounds is not None:
            return rounds >= self.rounds
        if self.precision is not None:
            return rounds >= self.least and spent_s >= self.budget_s
        return rounds >= self.most or (rounds >= self.least and spent_s >= self.seconds)


Judge = Callable[[str, Case], tuple[str, str] | None]
"""Status and reason of a subject that must not be timed on a case, or None."""


class Engine:
    """Executors of some subjects, kept from case to case; equally many, as replicates, of each.

    Args:
        executors: of each subject; they take the rounds in turns.
        order: of the turns within a round.
        clock: seconds, of this process: it runs no user's code.
        secret: which timed runs are verified; by default nobody can predict it.
    """

    def __init__(
        self,
        executors: Mapping[str, Sequence[Executor]],
        order: random.Random | None = None,
        clock: Callable[[], float] = time.perf_counter,
        secret: random.Random | None = None,
    ) -> None:
        counts = {len(own) for own in executors.values()}
        if len(counts) > 1:
            raise ValueError(f"every subject should have equally many executors, got {sorted(counts)}")
        self.processes = counts.pop() if counts else 1
        self._executors = executors
        self._order = order or random.Random(0)
        self._clock = clock
        self._secret = secret or random.SystemRandom()
        self._log: IO[bytes] | None = None
        self.server: ForkServer | None = None
        """What forks its workers, where something does."""

    @classmethod
    def of_processes(
        cls,
        names: Iterable[str],
        threads: int,
        processes: int = 1,
        log: Path | None = None,
    ) -> Self:
        """One that starts worker processes of implementations, and ends them with its context.

        Args:
            names: implementations.
            threads: of every worker.
            processes: workers of each implementation.
            log: where the workers' output goes; nowhere by default.
        """
        out = log.open("ab") if log is not None else None
        server = ForkServer(threads) if can_fork() else None
        engine = cls(
            {
                name: [WorkerProcess(name, threads, out, sys.executable, server) for _ in range(processes)]
                for name in names
            }
        )
        engine._log, engine.server = out, server
        return engine

    def __enter__(self) -> Self:
        for own in self._executors.values():
            for executor in own:
                executor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for own in self._executors.values():
            for executor in own:
                executor.close()
        if self.server is not None:
            self.server.close()
        if self._log is not None:
            self._log.close()

    def measure(
        self,
        subjects: Mapping[str, Case],
        policy: SamplingPolicy,
        *,
        judge: Judge | None = None,
        satisfied: Callable[[Mapping[str, Measurement]], bool] | None = None,
        split: Collection[str] = (),
        count_work: bool = True,
        policies: Mapping[str, SamplingPolicy] | None = None,
        verifier: Verifier | None = None,
    ) -> dict[str, Measurement]:
        """What came of each subject on its case, measured together.

        Args:
            subjects: names of executors, and the case of each.
            policy: when to stop, and what a cell may cost.
            judge: asked for each subject that is ready, before any sample is taken.
            satisfied: asked after each round from the least number on; True stops too.
            split: the subjects whose head and tails are then timed apart.
            count_work: whether `Measurement.work` is wanted; it takes further runs.
            policies: for making single subjects ready, where theirs differs.
            verifier: judges what timed runs computed; without one nothing is verified.
        """
        found = self.prepare(subjects, policy, policies)
        for name, measurement in found.items():
            if judge is not None and measurement.ok and (fault := judge(name, subjects[name])):
                measurement.end(*fault)
        self.sample(found, policy, satisfied, split, count_work, verifier, subjects)
        if verifier is not None:
            plausibility.end_implausible(found, subjects)
        return found

    def prepare(
        self,
        subjects: Mapping[str, Case],
        policy: SamplingPolicy,
        policies: Mapping[str, SamplingPolicy] | None = None,
    ) -> dict[str, Measurement]:
        """Each subject ready for its case and warm, unless that already is beyond it.

        A first run that takes longer than the least number of rounds could within the budget is broken off
        and ends the cell; on a GPU the second, since the first compiles.
        """
        found = {name: Measurement() for name in subjects}
        for name, measurement in found.items():
            for executor in self._executors[name]:
                if measurement.ok:
                    own = (policies or {}).get(name, policy)
                    self._make_ready(executor, subjects[name], measurement, own)
        return found

    def sample(
        self,
        found: Mapping[str, Measurement],
        policy: SamplingPolicy,
        satisfied: Callable[[Mapping[str, Measurement]], bool] | None = None,
        split: Collection[str] = (),
        count_work: bool = True,
        verifier: Verifier | None = None,
        subjects: Mapping[str, Case] | None = None,
    ) -> None:
        """Rounds of samples of what `prepare` has made ready, in random order; then its work is counted.

        Args:
            found: what `prepare` returned; samples are added, and whatever happens to one ends it.
            policy: when to stop.
            satisfied: asked after each round from the least number on; True stops too.
            split: the implementations whose head and tails are then timed apart.
            count_work: whether `Measurement.work` is wanted; it takes further runs.
            verifier: judges what timed runs computed.
            subjects: the case of each, for the verifier.
        """
        common = self._secret.randrange(policy.least_rounds)
        plan = Verifications(verifier, subjects or {}, common, self._secret)

        def active(done: int) -> list[str]:
            going = [name for name, own in found.items() if own.ok and not policy.enough(done, own.spent_s)]
            return [] if satisfied and done >= policy.least_rounds and satisfied(found) else going

        for round, name in timers.rounds(active, self._order):
            self._take_turn(name, round, found, policy, plan)
        for measurement in found.values():
            if verifier is not None and measurement.ok and (fault := plausibility.clock_fault(measurement)):
                measurement.end("implausible", fault)
        for name, measurement in found.items():
            if measurement.ok and name in split:
                self._split(self._executors[name][0], measurement, policy)
            if measurement.ok and count_work:
                self._count_work(self._executors[name][0], measurement, policy)

    def _make_ready(
        self, executor: Executor, case: Case, measurement: Measurement, policy: SamplingPolicy
    ) -> None:
        reply = executor.ask(messages.PrepareCase(case), _ALLOWANCE_S)
        if isinstance(reply, messages.Prepared):
            measurement.settings |= {reply.settings} if reply.settings else set()
            longest_s = policy.budget_s / policy.least_rounds
            # On a GPU the first run compiles kernels, unless this machine has them already.
            compiles = case.device != "cpu"
            reply = executor.ask(messages.WarmUp(), longest_s + (_ALLOWANCE_S if compiles else 0.0))
            if isinstance(reply, messages.Timed):
                measurement.warm_up_s = reply.wall_s
                if compiles or reply.wall_s < PERHAPS_COLD_S:
                    reply = executor.ask(messages.WarmUp(), longest_s)
        match reply:
            case messages.Timed(_, wall_s, _):
                measurement.run_s = min(measurement.run_s, wall_s)
            case messages.Lacking(reason):
                measurement.end("skipped", reason)
            case messages.Failure("over_budget", reason):
                least = policy.least_rounds
                measurement.end(
                    "over_budget",
                    f"first run: {reason}; {least} rounds should take at most {policy.budget_s:g} s",
                )
            case messages.Failure(status, reason):
                measurement.end(status, reason)

    def _split(self, executor: Executor, measurement: Measurement, policy: SamplingPolicy) -> None:
        share_s = SPLIT_SHARE * policy.seconds
        match executor.ask(messages.Split(share_s, measurement.replayed > 0), policy.budget_s + _ALLOWANCE_S):
            case messages.PartTimes() as parts:
                measurement.parts = parts
            case messages.Failure(status, reason):
                measurement.end(status, f"while head and tails were timed apart: {reason}")

    def _count_work(self, executor: Executor, measurement: Measurement, policy: SamplingPolicy) -> None:
        match executor.ask(messages.Weigh(), policy.budget_s + _ALLOWANCE_S):
            case messages.Work() as work:
                measurement.work = work
            case messages.Failure(status, reason):
                # The times stand: an implementation may do what cannot be counted.
                measurement.work = messages.Work(uncounted=f"{status}: {reason}")

    def _take_turn(
        self,
        name: str,
        round: int,
        found: Mapping[str, Measurement],
        policy: SamplingPolicy,
        plan: Verifications,
    ) -> None:
        """One sample: each of its runs is a request of its own, on a batch that no other run sees."""
        own, executor = found[name], self._executors[name][round % self.processes]
        started = self._clock()
        runs = own.runs_per_sample
        verified = plan.runs_of(round, name, [each for each, one in found.items() if one.ok], runs)
        taken: list[tuple[messages.Timed, float]] = []
        rows, replayed, verifying_s = [], False, 0.0
        if plan.on:
            began = self._clock()
            executor.ask(messages.TakeSample(empty=True), policy.budget_s)
            own.empty_trips_s.append(self._clock() - began)
        for run in range(runs):
            batch = _batch_number(round, run)
            warm = _batch_number(round, -1) if run == 0 else None
            loaded = executor.ask(messages.Load(batch, warm, policy.replay), policy.budget_s)
            began = self._clock()
            reply = (
                executor.ask(messages.TakeSample(), policy.budget_s)
                if isinstance(loaded, messages.Loaded)
                else loaded
            )
            trip_s = self._clock() - began
            if isinstance(reply, messages.Failure):
                own.end(reply.status, reply.reason)
                break
            assert isinstance(loaded, messages.Loaded)
            assert isinstance(reply, messages.Timed)
            taken.append((reply, trip_s))
            rows.append(loaded.occupancy)
            replayed = loaded.replayed
            if run in verified:
                began = self._clock()
                fault = plan.fault(name, batch, executor)
                own.verified += run == verified[0]
                verifying_s += self._clock() - began
                if fault is not None:
                    own.end(*fault)
                    break
        if own.ok:
            own.rows.append(tuple(map(sum, zip(*rows, strict=True))))
            own.replayed += replayed
            self._note(own, round, taken)
        own.spent_s += self._clock() - started - verifying_s

    def _note(self, own: Measurement, round: int, taken: Sequence[tuple[messages.Timed, float]]) -> None:
        states = [timed.throttled for timed, _ in taken]
        own.unknown_throttle += None in states
        if True in states:
            own.throttled += 1
            return
        seconds, wall_s = (
            median(column) for column in zip(*((one.seconds, one.wall_s) for one, _ in taken), strict=True)
        )
        untimed_s = min(trip_s - one.wall_s for one, trip_s in taken)
        own.samples.append(Sample(round % self.processes, round, seconds, wall_s, untimed_s))


def _batch_number(round: int, run: int) -> int:
    """A batch of its own for each run of a sample, and for the untimed one before, which is -1."""
    return 1 + round * (timers.RUNS_OF_A_SHORT_SAMPLE + 1) + run + 1
