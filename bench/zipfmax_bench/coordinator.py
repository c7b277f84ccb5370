"""One worker process per implementation; one asked at a time, in random order, round after round.

So the implementations' thread pools never run together, memory is each one's own, drift of the machine hits
all of them alike, and an implementation that dies costs one cell.
"""

from __future__ import annotations

import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from zipfmax_bench import protocol
from zipfmax_reference.runs.case import Case

# Set before a worker imports anything; frameworks read them once. Importing Paddle with OMP_NUM_THREADS unset
# would set it to 1.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)

# Intel's OpenMP keeps idle threads spinning for 200 ms, into the next worker's sample. One millisecond spans
# the gaps within a run and is over before the next worker has drawn its batch.
_SPIN = {"KMP_BLOCKTIME": "1"}

SHORT_S = 0.02
# A first run below this is followed by another before anything is judged by it: in a fresh process a run of
# half a millisecond can take 80, and a sample of it would be one run, slower than the median of five.
PERHAPS_COLD_S = 1.0
RUNS_OF_A_SHORT_SAMPLE = 5

SPLIT_SHARE = 0.1
"""Share of an implementation's seconds on a case that may be spent, beside them, on timing its parts."""

# Importing a framework, drawing weights, compiling kernels, counting work: not the implementation's cost.
_ALLOWANCE_S = 180.0


class Worker:
    """A process that holds one implementation. Started at the first request, and again after a failure.

    Args:
        name: of the implementation.
        threads: that it computes with.
        log: where its output goes; nowhere by default.
        python: interpreter whose zipfmax the process runs; this one's by default.
    """

    def __init__(
        self, name: str, threads: int, log: IO[bytes] | None = None, python: str = sys.executable
    ) -> None:
        self.name = name
        self._python = python
        self._threads = threads
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id, or None while no process runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, if there is none; returns before it is ready."""
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    # Another interpreter imports what is installed in it, whatever PYTHONPATH says here.
                    *((self._python,) if self._python == sys.executable else (self._python, "-I")),
                    *("-m", "zipfmax_bench.worker"),
                    *("--name", self.name, "--threads", str(self._threads), "--fd", str(theirs.fileno())),
                ],
                env=worker_environment(self._threads),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log or subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the coordinator, which then ends its workers
            )
        self._connection = Connection(ours.detach())

    def ask(self, request: protocol.Request, timeout_s: float | None = None) -> protocol.Reply:
        """The answer, or a `Failure` if the process raised, died or took longer than `timeout_s`."""
        self.start()
        assert self._connection is not None
        try:
            self._connection.send(request)
            if not self._connection.poll(timeout_s):
                self.close()
                return protocol.Failure("over_budget", f"no answer within {timeout_s:g} s")
            reply: protocol.Reply = self._connection.recv()
        except (EOFError, OSError):
            return self._post_mortem()
        if isinstance(reply, protocol.Failure):
            self.close()  # what raised may have left anything behind
        return reply

    def close(self) -> None:
        """End the process at once."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None

    def _post_mortem(self) -> protocol.Failure:
        assert self._process is not None
        status = self._process.wait()
        self.close()
        if status == -signal.SIGKILL:
            return protocol.Failure(
                "out_of_memory", "killed by SIGKILL, as the kernel does when memory runs out"
            )
        if status < 0:
            return protocol.Failure("failed", f"killed by {signal.Signals(-status).name}")
        return protocol.Failure("failed", f"ended with exit status {status}")


@dataclass(frozen=True)
class Sample:
    """One timed run."""

    process: int
    round: int
    seconds: float
    wall_s: float


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
    work: protocol.Work = field(default_factory=protocol.Work)
    parts: protocol.PartTimes | None = None

    @property
    def runs_per_sample(self) -> int:
        """Runs whose median is one sample: several where a run is so short that a neighbour's blink shows."""
        return RUNS_OF_A_SHORT_SAMPLE if self.run_s < SHORT_S else 1

    @property
    def ok(self) -> bool:
        """Whether it still runs."""
        return self.status == "ok"

    def end(self, status: str, reason: str) -> None:
        """No further sample; the first cause stays."""
        if self.ok:
            self.status, self.reason = status, reason


@dataclass(frozen=True)
class Effort:
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


class Coordinator:
    """The workers of a sweep, kept from case to case.

    Args:
        names: implementations.
        threads: of every worker.
        processes: workers per implementation; they take the rounds in turns, as replicates.
        log: where the workers' output goes; nowhere by default.
        seed: of the order within the rounds.
        pythons: interpreters of names such as "zipfmax@main", which stand for an implementation of another
            installation; the part from the "@" on is no part of the implementation's name.
    """

    def __init__(
        self,
        names: Sequence[str],
        threads: int,
        processes: int = 1,
        log: Path | None = None,
        seed: int = 0,
        pythons: Mapping[str, str] | None = None,
    ) -> None:
        self.threads = threads
        self.processes = processes
        self._log = log.open("ab") if log is not None else None
        self._workers: dict[str, list[Worker]] = {}
        for name in names:
            python = (pythons or {}).get(name)
            own = (
                (name.partition("@")[0], threads, self._log, python) if python else (name, threads, self._log)
            )
            self._workers[name] = [Worker(*own) for _ in range(processes)]
        self._order = random.Random(seed)

    @classmethod
    def borrowing(
        cls, workers: Mapping[str, Sequence[Worker]], threads: int, order: random.Random | None = None
    ) -> Self:
        """One that measures with workers that its caller starts and ends: equally many of every name."""
        counts = {len(own) for own in workers.values()}
        if len(counts) != 1:
            raise ValueError(f"every name should have equally many workers, got {sorted(counts)}")
        made = cls((), threads, counts.pop())
        made._workers = {name: list(own) for name, own in workers.items()}
        if order is not None:
            made._order = order
        return made

    def __enter__(self) -> Self:
        for workers in self._workers.values():
            for worker in workers:
                worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for workers in self._workers.values():
            for worker in workers:
                worker.close()
        if self._log is not None:
            self._log.close()

    def prepare(self, case: Case, names: Sequence[str], effort: Effort) -> dict[str, Measurement]:
        """Each implementation ready for a case and warm, unless that already is beyond it.

        A first run that takes longer than the least number of rounds could within the budget is broken off
        and ends the cell; on a GPU the second, since the first compiles.
        """
        found = {name: Measurement() for name in names}
        for name, measurement in found.items():
            for worker in self._workers[name]:
                if measurement.ok:
                    self._make_ready(worker, case, measurement, effort)
        return found

    def sample(
        self,
        found: Mapping[str, Measurement],
        effort: Effort,
        satisfied: Callable[[], bool] | None = None,
        split: Collection[str] = (),
        count_work: bool = True,
    ) -> None:
        """Rounds of samples of what `prepare` has made ready, in random order; then its work is counted.

        Args:
            found: what `prepare` returned; samples are added, and whatever happens to one ends it.
            effort: when to stop.
            satisfied: asked after each round from the least number on; True stops too.
            split: the implementations whose head and tails are then timed apart.
            count_work: whether `Measurement.work` is wanted; it takes further runs.
        """
        round = 0
        while names := [
            name for name, own in found.items() if own.ok and not effort.enough(round, own.spent_s)
        ]:
            if satisfied and round >= effort.least_rounds and satisfied():
                break
            self._order.shuffle(names)
            for name in names:
                self._take_turn(self._workers[name][round % self.processes], round, found[name], effort)
            round += 1
        for name, measurement in found.items():
            if measurement.ok and name in split:
                self._split(self._workers[name][0], measurement, effort)
            if measurement.ok and count_work:
                self._count_work(self._workers[name][0], measurement, effort)

    def _make_ready(self, worker: Worker, case: Case, measurement: Measurement, effort: Effort) -> None:
        reply = worker.ask(protocol.Prepare(case), _ALLOWANCE_S)
        if isinstance(reply, protocol.Prepared):
            measurement.settings |= {reply.settings} if reply.settings else set()
            longest_s = effort.budget_s / effort.least_rounds
            # On a GPU the first run compiles kernels, unless this machine has them already.
            compiles = case.device != "cpu"
            reply = worker.ask(protocol.WarmUp(), longest_s + (_ALLOWANCE_S if compiles else 0.0))
            if isinstance(reply, protocol.Timed):
                measurement.warm_up_s = reply.wall_s
                if compiles or reply.wall_s < PERHAPS_COLD_S:
                    reply = worker.ask(protocol.WarmUp(), longest_s)
        match reply:
            case protocol.Timed(_, wall_s):
                measurement.run_s = min(measurement.run_s, wall_s)
            case protocol.Lacking(reason):
                measurement.end("skipped", reason)
            case protocol.Failure("over_budget", reason):
                least = effort.least_rounds
                measurement.end(
                    "over_budget",
                    f"first run: {reason}; {least} rounds should take at most {effort.budget_s:g} s",
                )
            case protocol.Failure(status, reason):
                measurement.end(status, reason)

    def _split(self, worker: Worker, measurement: Measurement, effort: Effort) -> None:
        share_s = SPLIT_SHARE * effort.seconds
        match worker.ask(protocol.Split(share_s, measurement.replayed > 0), effort.budget_s + _ALLOWANCE_S):
            case protocol.PartTimes() as parts:
                measurement.parts = parts
            case protocol.Failure(status, reason):
                measurement.end(status, f"while head and tails were timed apart: {reason}")

    def _count_work(self, worker: Worker, measurement: Measurement, effort: Effort) -> None:
        match worker.ask(protocol.Weigh(), effort.budget_s + _ALLOWANCE_S):
            case protocol.Work() as work:
                measurement.work = work
            case protocol.Failure(status, reason):
                measurement.end(status, f"while its work was counted: {reason}")

    def _take_turn(self, worker: Worker, round: int, own: Measurement, effort: Effort) -> None:
        started = time.monotonic()
        match worker.ask(protocol.Sample(round, own.runs_per_sample, effort.replay), effort.budget_s):
            case protocol.Timed(seconds, wall_s, rows, throttled, replayed):
                own.rows.append(rows)
                own.replayed += replayed
                own.unknown_throttle += throttled is None
                if throttled:
                    own.throttled += 1
                else:
                    own.samples.append(Sample(round % self.processes, round, seconds, wall_s))
            case protocol.Failure(status, reason):
                own.end(status, reason)
        own.spent_s += time.monotonic() - started


def worker_environment(threads: int) -> dict[str, str]:
    """This process's environment with the thread count of every framework set, equal for all."""
    return {**os.environ, **_SPIN, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}


def usable_cores() -> int:
    """Cores that this process may run on: the default thread count."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
