"""The parity check: an implementation against the definition, and against other implementations.

An `Oracle` evaluates the truth and the references of one case once, and judges any number of implementations by
them. `definition` is the truth itself. Another reference's results take its place, and since both may be off by
rounding, budgets count twice there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from zipfmax.errors import UsageError
from zipfmax_reference.contestants import isolated, surroundings
from zipfmax_reference.contestants.child import told
from zipfmax_reference.contestants.implementation import Family, Implementation
from zipfmax_reference.contestants.torch_nn import TorchModule, users_layer
from zipfmax_reference.runs import grid as grids
from zipfmax_reference.runs.arrays import Inputs, Results
from zipfmax_reference.runs.case import PROTOCOL, RANKS, Case
from zipfmax_reference.runs.drawing import FULL_WEIGHT, draw_full_weight, draw_inputs
from zipfmax_reference.truth import protocol, rank_traps
from zipfmax_reference.truth.causes import Causes
from zipfmax_reference.truth.judgement import Truth, Verdict

DEFINITION = "definition"
WHOLE = "*"
"""In place of a tensor's name: the record speaks of the whole cell."""

Record = dict[str, Any]


def check(
    case: Case,
    implementation: Implementation | str,
    against: Sequence[str | Implementation] = ("definition", "torch"),
) -> list[Record]:
    """Parity records of one implementation on one case; see `Oracle.check`."""
    return Oracle(case, against).check(_resolved(implementation))


def assert_parity(
    layer: str | nn.Module | Callable[..., Any],
    cases: Sequence[Case] | None = None,
    against: Sequence[str] = ("definition", "torch"),
) -> None:
    """Raise unless a layer computes adaptive softmax.

    Args:
        layer: a class with torch.nn's constructor and parameter names; or a module made by one, which is
            copied, never changed; or the name of an implementation. A class or module runs in this process, whose
            global state it may change; a class given by name, as "path/file.py:Class", in one of its own.
            A module's frozen weights are judged too: its copy takes gradients.
        cases: what to compute; by default `grid.small` for a class or a name, and for a module
            its own partition with several batches and labels.
        against: names of references.

    Raises:
        AssertionError: what is wrong, a line for each tensor of each case; one line for what a layer raises in
            every case.
        ValueError: no cases, or no references.
    """
    if cases is not None and not cases:
        raise ValueError("cases is empty: give at least one, or None for the usual ones")
    if not against:
        raise ValueError("against is empty: give at least one reference")
    if isinstance(layer, nn.Module):
        implementation: Implementation = _module(layer)
        cases = grids.of_layer(layer) if cases is None else cases
    elif isinstance(layer, str):
        implementation = isolated.implementation(layer)
    else:
        implementation = users_layer(getattr(layer, "__name__", "layer"), layer)
    peers = [_resolved(one) for one in against]
    faults, judged, attempts = [], False, Attempts()
    for case in grids.small() if cases is None else cases:
        records = check(case, implementation, peers)
        attempts.note(records)
        if attempts.hopeless:
            raise AssertionError(f"{implementation.name} cannot be used: {attempts.reason}, in every case")
        for record in records:
            judged |= record["status"] != "skipped"
            if record["status"] == "fail":
                faults.append(
                    f"{record['tensor']} against {record['against']}: {fault(record)}, in {case.id}"
                )
    if not judged:
        raise AssertionError(f"{implementation.name} was not judged: {record['reason']}")
    if faults:
        raise AssertionError(f"{implementation.name} does not match the reference:\n" + "\n".join(faults))


class Attempts:
    """Whether an implementation raises the same in each of its first cells: then it is not tried in others."""

    CELLS = 3

    def __init__(self) -> None:
        self._raised: list[str | None] = []

    def note(self, records: Sequence[Record]) -> None:
        """Take a cell's records; those of a cell that was skipped say nothing."""
        if len(self._raised) < self.CELLS and records[0]["status"] != "skipped":
            reasons = {record["reason"] for record in records}
            raised = len(reasons) == 1 and str(records[0]["reason"]).startswith(("raised ", "its process "))
            self._raised.append(records[0]["reason"] if raised else None)

    @property
    def reason(self) -> str | None:
        """What the first cell raised."""
        return self._raised[0] if self._raised else None

    @property
    def hopeless(self) -> bool:
        """Whether enough cells have raised, and the same."""
        return len(self._raised) == self.CELLS and self.reason is not None and len({*self._raised}) == 1


def fault(record: Record) -> str:
    """What is wrong with a failed tensor, in words."""
    if record["reason"] is not None:
        return str(record["reason"])
    cause = f"; likely cause: {record['cause']}" if record["cause"] else ""
    return (
        f"{record['where']} is off by {record['error']:.3g}, {record['budget']:.3g} is allowed "
        f"({record['grain']}{_others(record)}){cause}"
    )


def _others(record: Record) -> str:
    """The groups that are over their budgets too, in words."""
    over = [part["name"] for part in record["parts"] if part["error"] > part["budget"]]
    return f"; over budget: {', '.join(over[:4])}" if over else ""


class Oracle:
    """Truth and references of a case, each computed once.

    Args:
        case: the cell.
        against: the references: names, or implementations that several cases share.
        inputs: weights and batch; by default the case's own.
        explain: whether a likely cause of each failure is looked for.
    """

    def __init__(
        self,
        case: Case,
        against: Sequence[str | Implementation],
        inputs: Inputs | None = None,
        explain: bool = True,
    ) -> None:
        self.case = case
        self._against = {one if isinstance(one, str) else one.name: one for one in against}
        self._given = inputs
        self._explain = explain
        self._truths: dict[Family, Truth] = {}
        self._references: dict[tuple[str, Family], Truth | str] = {}
        self._causes: Causes | None = None
        self._wrong: dict[tuple[str, Family], dict[str, str]] = {}

    @cached_property
    def inputs(self) -> Inputs:
        """The case's weights and batch."""
        return self._given if self._given is not None else draw_inputs(self.case)

    def check(self, implementation: Implementation, rules: Sequence[str] = ()) -> list[Record]:
        """Judge an implementation, against each reference in turn.

        Args:
            implementation: what is judged.
            rules: of the protocol's, where that is the case's task; by default all that are asked of the case.

        Returns:
            Records with `case`, `impl`, `against`, `tensor`, `dtype` and the fields of `Verdict`. A cell that
            cannot be judged has one record with the tensor "*": skipped with what is lacking, or failed with
            what the implementation raised.
        """
        if self.case.task == PROTOCOL:
            return self._protocol(implementation, rules)
        if self.case.task == RANKS:
            return self._over_ranks(implementation)
        reason = implementation.unsupported_reason(self.case) or self._undrawn()
        if reason is None and implementation.family == "full" and FULL_WEIGHT not in self.inputs.weights:
            self.inputs.weights[FULL_WEIGHT] = draw_full_weight(self.case)
        if reason is not None:
            return [
                self._record(implementation, name, WHOLE, Verdict("skipped", reason=reason))
                for name in self._against
            ]
        try:
            with surroundings.kept():
                runner = implementation.build(self.case, self.inputs)
                runner.run()
                results, mismatches = runner.results(), runner.mismatches()
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:  # whatever an implementation raises is a finding about it
            raised = Verdict("fail", reason=told(error))
            tensor = getattr(error, "tensor", None) or WHOLE
            return [self._record(implementation, name, tensor, raised) for name in self._against]
        records = []
        for name in self._against:
            verdicts = self._judge(implementation.family, name, results, mismatches)
            records += [self._record(implementation, name, tensor, v) for tensor, v in verdicts.items()]
        return records

    def _protocol(self, implementation: Implementation, rules: Sequence[str]) -> list[Record]:
        """Records of the protocol's rules, which the definition judges whatever the references are."""
        make = getattr(implementation, "use", None)
        reason = implementation.unsupported_reason(replace(self.case, task="train"))
        if reason is None and make is None:
            reason = "its adapter does one task at a time"
        if reason is not None:
            return [self._record(implementation, DEFINITION, WHOLE, Verdict("skipped", reason=reason))]
        assert make is not None
        try:
            with surroundings.kept():
                make(self.case, self.inputs)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:  # told once, not for every rule
            tensor = getattr(error, "tensor", None) or WHOLE
            return [self._record(implementation, DEFINITION, tensor, Verdict("fail", reason=told(error)))]
        verdicts = protocol.check(self.case, partial(make, self.case), rules)
        return [self._record(implementation, DEFINITION, rule, v) for rule, v in verdicts.items()]

    def _over_ranks(self, implementation: Implementation) -> list[Record]:
        """Records of what goes wrong over ranks, which the definition and one rank judge."""
        training = replace(self.case, task="train")
        make = getattr(implementation, "options", None)
        reason = implementation.unsupported_reason(training)
        if reason is None and make is None:
            reason = "it runs in one process"
        if reason is not None:
            return [self._record(implementation, DEFINITION, WHOLE, Verdict("skipped", reason=reason))]
        verdicts = rank_traps.check(training, implementation)
        return [self._record(implementation, DEFINITION, rule, v) for rule, v in verdicts.items()]

    def _undrawn(self) -> str | None:
        """Why the case's labels cannot be had on this machine, or None."""
        try:
            self.inputs  # noqa: B018 - drawn here
        except UsageError as error:
            return str(error)
        return None

    def truth(self, family: Family = "adaptive") -> Truth:
        """The definition and its budgets, evaluated once."""
        if family not in self._truths:
            self._truths[family] = Truth.of(self.case, self.inputs, family, precision=precision(self.case))
        return self._truths[family]

    def _judge(
        self, family: Family, name: str, results: Results, mismatches: dict[str, str]
    ) -> dict[str, Verdict]:
        reference = self.truth(family) if name == DEFINITION else self._reference(name, family)
        if isinstance(reference, str):
            return {WHOLE: Verdict("skipped", reason=f"{name}: {reference}")}
        verdicts = reference.verdicts(results, mismatches)
        for tensor in self._wrong.get((name, family), {}).keys() & verdicts.keys():
            reason = f"{name}'s own is wrong: {self._wrong[name, family][tensor]}"
            verdicts[tensor] = Verdict("skipped", reason=reason)
        return {
            tensor: replace(verdict, cause=self._cause(family, tensor, results, verdict))
            for tensor, verdict in verdicts.items()
        }

    def _cause(self, family: Family, tensor: str, results: Results, verdict: Verdict) -> str | None:
        if (
            not self._explain
            or verdict.status != "fail"
            or family != "adaptive"
            or verdict.reason is not None
            or tensor not in results
        ):
            return None
        if self._causes is None:
            self._causes = Causes(self.case, self.inputs, self.truth(family))
        return self._causes.of(tensor, results[tensor])

    def _reference(self, name: str, family: Family) -> Truth | str:
        """A peer's results as the truth, or why there are none."""
        key = name, family
        if key not in self._references:
            self._references[key] = self._evaluated(name, family)
        return self._references[key]

    def _evaluated(self, name: str, family: Family) -> Truth | str:
        implementation = _resolved(self._against[name])
        if implementation.family != family:
            return f"computes {implementation.family} softmax, which is another function"
        if (reason := implementation.unsupported_reason(self.case)) is not None:
            return reason
        try:
            with surroundings.kept():
                runner = implementation.build(self.case, self.inputs)
                runner.run()
                results = runner.results()
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:  # a reference that raises judges nobody; the record says so
            return told(error)
        truth = self.truth(family)
        own = {tensor: truth.judge(tensor, results[tensor]) for tensor in truth.values if tensor in results}
        # Nobody is held against a result that the definition refuses.
        self._wrong[name, family] = {
            tensor: verdict.reason or f"{verdict.where} is off by {verdict.error:.3g}"
            for tensor, verdict in own.items()
            if verdict.status == "fail"
        }
        return truth.of_results(results)

    def _record(self, implementation: Implementation, against: str, tensor: str, verdict: Verdict) -> Record:
        identity = {
            "case": self.case.id,
            "impl": implementation.name,
            "against": against,
            "tensor": tensor,
            "dtype": self.case.dtype,
        }
        parts = tuple(dict(vars(part)) for part in verdict.parts)
        return {**identity, **vars(verdict), "parts": parts}


def precision(case: Case) -> str:
    """The key of `rounding.ROUNDING`: a GPU's float32 products may be asked to round their operands to tf32."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return case.dtype if exact or case.dtype != "float32" or case.device == "cpu" else "tf32"


def _resolved(implementation: Implementation | str) -> Implementation:
    return isolated.implementation(implementation) if isinstance(implementation, str) else implementation


def _module(module: nn.Module) -> Implementation:
    return TorchModule(type(module).__name__, lambda case: copy.deepcopy(module).requires_grad_())
