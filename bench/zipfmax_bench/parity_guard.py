"""Right before fast: a cell is timed only once its implementation agrees with the definition on its shape.

What it computes while it is timed is judged too. An implementation runs in processes of its own, and the
process that judges runs no implementation under test, so none can change the verdict on itself or another.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from zipfmax_bench import messages
from zipfmax_bench.executors import Executor, WorkerProcess
from zipfmax_bench.fork_server import ForkServer
from zipfmax_bench.judging import DEFINITION_FLOPS
from zipfmax_bench.prediction import product_flops
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.implementation import Family
from zipfmax_reference.records import Parity, RunDirectory
from zipfmax_reference.runs.case import Case

TIMEOUT_S = 300.0

# Cost of a verification, in FLOPs of the cell's products: up to the first every sample is verified, up to the
# second one of each round, beyond it one of each implementation.
EVERY_SAMPLE_FLOPS, EVERY_ROUND_FLOPS = 3e7, 1e9


class ParityGuard:
    """Checks each implementation once for each shape, and timed runs whenever it is asked.

    A tensor is wrong if it is out of the budget that the float64 definition gives it. The verdicts on shapes are
    `parity.jsonl` of the run directory, so a resumed sweep checks nothing twice.
    """

    def __init__(
        self, directory: RunDirectory, threads: int, log: Path, server: ForkServer | None = None
    ) -> None:
        self._directory = directory
        self._server = server
        self._threads = threads
        self._log = log.open("ab")
        self._judge = self._worker(messages.CHECKER)
        self._subjects: dict[str, WorkerProcess] = {}
        # Of each implementation and case: by tensor, what is wrong with it, or None.
        self._faults: dict[tuple[str, str], dict[str, str | None]] = {}
        self._refused: dict[tuple[str, str], tuple[str, str]] = {}
        self._shares: dict[tuple[str, str], list[float]] = {}
        for one in directory.read(Parity):
            self._remember(one)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in (self._judge, *self._subjects.values()):
            worker.close()
        self._log.close()

    def release(self, name: str) -> None:
        """End the process that an implementation is checked in, if there is one."""
        if name in self._subjects:
            self._subjects.pop(name).close()

    def fault(self, name: str, case: Case) -> tuple[str, str] | None:
        """Status and reason of a cell that must not be timed, or None where the implementation is right.

        The bare products have no results to judge. An implementation that says that its gradients are inexact
        is shown with that label.
        """
        if not judged(name):
            return None
        checked = checked_case(case, registry.family(name))
        key = (name, checked.id)
        if key not in self._faults and key not in self._refused:
            self._check(name, checked)
        if key in self._refused:
            return self._refused[key]
        found = _verdict(self._faults[key])
        return None if found is None else ("parity_failed", f"{found}, on {checked.id}")

    def wanted(self, cases: Mapping[str, Case], common: bool, drawn: str) -> set[str]:
        """The subjects of a round whose sample is verified: as many as are affordable.

        Args:
            cases: of the round's subjects.
            common: whether this is the round in which every subject is verified.
            drawn: the subject that is verified where one of a round is.
        """
        wanted = set()
        for name, case in cases.items():
            flops = product_flops(registry.family(name), case) if judged(name) else float("inf")
            on_gpu = 100 if case.device != "cpu" else 1
            if judged(name) and (
                common
                or flops <= EVERY_SAMPLE_FLOPS
                or (name == drawn and flops <= on_gpu * EVERY_ROUND_FLOPS)
            ):
                wanted.add(name)
        return wanted

    def timed_fault(self, name: str, case: Case, batch: int, executor: Executor) -> tuple[str, str] | None:
        """Status and reason where what an executor computed in its last timed run is wrong."""
        lines = self._judged(name, case, batch, executor)
        if not isinstance(lines, messages.Compared):
            return _refusal(lines, "while a timed run was verified")
        tensors: dict[str, str | None] = {}
        for line in lines.lines:
            _note(tensors, Parity.model_validate(line))
        if not tensors:
            return "failed", "nothing of a timed run could be compared"
        found = _verdict(tensors)
        return None if found is None else ("parity_failed", f"in a timed run: {found}")

    def worst(self, name: str, case: Case) -> float | None:
        """The largest error of the shape's check as a share of its budget, if anything was compared."""
        checked = checked_case(case, registry.family(name))
        return max(self._shares.get((name, checked.id), []), default=None)

    def _check(self, name: str, case: Case) -> None:
        key = (name, case.id)
        worker = self._subjects.setdefault(name, self._worker(name))
        reply = worker.ask(messages.PrepareCase(case, fastest=False), TIMEOUT_S)
        if isinstance(reply, messages.Prepared):
            reply = self._judged(name, case, 0, worker)
            worker.ask(messages.Forget())
        match reply:
            case messages.Compared(lines):
                compared = [Parity.model_validate(line) for line in lines]
                self._directory.write(*compared)
                for one in compared:
                    self._remember(one)
            case _:
                self._refused[key] = _refusal(reply, "while its parity was checked")

    def _worker(self, name: str) -> WorkerProcess:
        return WorkerProcess(name, self._threads, self._log, sys.executable, self._server)

    def _judged(self, name: str, case: Case, batch: int, executor: Executor) -> messages.Reply:
        with tempfile.TemporaryDirectory(prefix="zipfmax-") as folder:
            kept = executor.ask(messages.Keep(folder), TIMEOUT_S)
            if not isinstance(kept, messages.Kept):
                return kept
            family = registry.family(name)
            request = messages.Judge(name, family, case, batch, folder, kept.mismatches)
            return self._judge.ask(request, TIMEOUT_S)

    def _remember(self, one: Parity) -> None:
        if one.error is not None and one.budget:
            self._shares.setdefault((one.impl, one.case), []).append(one.error / one.budget)
        _note(self._faults.setdefault((one.impl, one.case), {}), one)


def judged(name: str) -> bool:
    """Whether results of a name are judged: the bare products have none, and inexact ones are labelled."""
    return name != messages.LIMIT and registry.gradients(name).exact


def _note(tensors: dict[str, str | None], one: Parity) -> None:
    if one.status != "skipped":
        tensors[one.tensor] = tensors.get(one.tensor) or (_fault(one) if one.status == "fail" else None)


def _verdict(tensors: Mapping[str, str | None]) -> str | None:
    """What is wrong with the first tensor that is out of its budget, or None."""
    wrong = [fault for fault in tensors.values() if fault is not None]
    if not wrong:
        return None
    return wrong[0] + (f" (and {len(wrong) - 1} more tensors)" if len(wrong) > 1 else "")


def _refusal(reply: messages.Reply, when: str) -> tuple[str, str]:
    match reply:
        case messages.Lacking(reason):
            return "skipped", reason
        case messages.Failure(status, reason):
            return status, f"{when}: {reason}"
    raise TypeError(f"unexpected answer {type(reply).__name__}")


def checked_case(case: Case, family: Family) -> Case:
    """The cell that stands for all of its shape: Zipf labels, and as many rows as the definition can do."""
    case = replace(case, labels="zipf:1.0")
    affordable = DEFINITION_FLOPS / product_flops(family, case)
    return replace(case, batch_size=max(1, int(case.batch_size * min(1.0, affordable))))


def _fault(one: Parity) -> str:
    """What is wrong with a tensor, from its parity line."""
    if one.reason:
        return str(one.reason)
    where = f" in {one.where}" if one.where else ""
    return f"{one.tensor} is off by {one.error:.3g}{where}, {one.budget:.3g} is allowed"
