"""Right before fast: a cell is timed only once its implementation agrees with the definition on its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zipfmax_bench import protocol
from zipfmax_bench.coordinator import Worker
from zipfmax_bench.cost import product_flops
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.implementation import Family
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.rundir import RunDirectory

# What the float64 definition may compute for one check; a larger case is checked on fewer of its rows.
DEFINITION_FLOPS = 5e9
TIMEOUT_S = 300.0


class ParityGuard:
    """Checks each implementation once for each shape, in a process of its own, and remembers the verdict.

    A tensor is wrong if it is out of budget against every reference: the definition in the case's own dtype,
    and torch.nn, or for full softmax plain linear and cross entropy, whose errors differ by how the machine's
    matrix product sums. The verdicts are `parity.jsonl` of the run directory, so a resumed sweep checks
    nothing twice.
    """

    def __init__(self, directory: RunDirectory, threads: int, log: Path) -> None:
        self._directory = directory
        self._log = log.open("ab")
        self._worker = Worker(protocol.CHECKER, threads, self._log)
        # Of each implementation and case: by tensor, the fault against each reference, or None.
        self._faults: dict[tuple[str, str], dict[str, list[str | None]]] = {}
        self._refused: dict[tuple[str, str], tuple[str, str]] = {}
        self._shares: dict[tuple[str, str], list[float]] = {}
        for line in directory.records("parity"):
            self._remember(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.close()
        self._log.close()

    def fault(self, name: str, case: Case) -> tuple[str, str] | None:
        """Status and reason of a cell that must not be timed, or None where the implementation is right.

        One that says that its gradients are inexact is not judged: it is shown with that label.
        """
        if not registry.gradients(name).exact:
            return None
        checked = checked_case(case, registry.implementation(name).family)
        key = (name, checked.id)
        if key not in self._faults and key not in self._refused:
            self._check(name, checked)
        if key in self._refused:
            return self._refused[key]
        wrong = [faults for faults in self._faults[key].values() if all(faults)]
        if not wrong:
            return None
        more = f" (and {len(wrong) - 1} more tensors)" if len(wrong) > 1 else ""
        return "parity_failed", f"{wrong[0][0]}{more}, on {checked.id}"

    def worst(self, name: str, case: Case) -> float | None:
        """The largest error of the shape's check as a share of its budget, if anything was compared."""
        checked = checked_case(case, registry.implementation(name).family)
        return max(self._shares.get((name, checked.id), []), default=None)

    def _check(self, name: str, case: Case) -> None:
        key = (name, case.id)
        match self._worker.ask(protocol.CheckParity(name, case), TIMEOUT_S):
            case protocol.Parity(lines):
                self._directory.append_all("parity", lines)
                for line in lines:
                    self._remember(line)
            case protocol.Lacking(reason):
                self._refused[key] = ("skipped", reason)
            case protocol.Failure(status, reason):
                self._refused[key] = (status, f"while its parity was checked: {reason}")

    def _remember(self, line: Mapping[str, Any]) -> None:
        if line["error"] is not None and line["budget"]:
            self._shares.setdefault((line["impl"], line["case"]), []).append(line["error"] / line["budget"])
        tensors = self._faults.setdefault((line["impl"], line["case"]), {})
        if line["status"] == "pass":
            tensors.setdefault(line["tensor"], []).append(None)
        if line["status"] == "fail":
            tensors.setdefault(line["tensor"], []).append(_fault(line))


def checked_case(case: Case, family: Family) -> Case:
    """The cell that stands for all of its shape: Zipf labels, and as many rows as the definition can do."""
    case = replace(case, labels="zipf:1.0")
    affordable = DEFINITION_FLOPS / product_flops(family, case)
    return replace(case, batch_size=max(1, int(case.batch_size * min(1.0, affordable))))


def _fault(line: Mapping[str, Any]) -> str:
    """What is wrong with a tensor, from its parity line."""
    if line["reason"]:
        return str(line["reason"])
    return f"{line['tensor']} is off by {line['error']:.3g}, {line['budget']:.3g} is allowed"
