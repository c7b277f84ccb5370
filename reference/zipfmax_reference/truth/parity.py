"""The parity check: an implementation against the truth, with budgets set by what references get wrong.

An `Oracle` computes the truth and the references of one case once, and judges any number of implementations
by them. A reference's own error is the largest over orders of summation, since one order may be lucky: where
a comparison does not hold at first, the reference is evaluated again with rows and features permuted, which
changes nothing but rounding, and at last beside the definition in plain arithmetic of the case's dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from zipfmax.errors import UsageError
from zipfmax_reference.checks import grid as grids
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.implementation import Family, Implementation, Inputs, Results
from zipfmax_reference.contestants.torch_nn import ParameterMismatchError, TorchModule, users_layer
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import FULL_WEIGHT, draw_full_weight, draw_inputs
from zipfmax_reference.truth import contract, definition
from zipfmax_reference.truth.contract import Size, Values, Verdict

ORDERS = 6
"""Orders of summation in which a reference is evaluated before a comparison counts as failed."""

PLAIN = 6
"""Evaluations of the definition in `plain_arithmetic` that follow."""

WHOLE = "*"
"""In place of a tensor's name: the record speaks of the whole cell."""

Record = dict[str, Any]

_BY_ROW = ("output", "grad.input", "log_prob", *contract.CLASSES, "topk.values")
_EXTENDED_LIMIT, _PLAIN_LIMIT = 1 << 24, 1 << 28
"""Multiplications N x d x V up to which it is affordable to do without a BLAS."""
_HOPELESS = 64
"""Errors of so many budgets are not bad luck: the reference is not evaluated again."""


def check(
    case: Case, implementation: Implementation | str, against: Sequence[str] = ("definition", "torch")
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
            copied, never changed; or the name of an implementation.
        cases: what to compute; by default `grid.small` for a class or a name, and for a module
            its own partition with several batches and labels.
        against: names of references.

    Raises:
        AssertionError: what is wrong, a line for each tensor of each case.
    """
    if isinstance(layer, nn.Module):
        implementation: Implementation = _module(layer)
        cases = grids.of_layer(layer) if cases is None else cases
    elif isinstance(layer, str):
        implementation = registry.implementation(layer)
    else:
        implementation = users_layer(getattr(layer, "__name__", "layer"), layer)
    faults = []
    for case in grids.small() if cases is None else cases:
        for record in check(case, implementation, against):
            if record["status"] == "fail":
                faults.append(
                    f"{record['tensor']} against {record['against']}: {fault(record)}, in {case.id}"
                )
    if faults:
        raise AssertionError(f"{implementation.name} is no adaptive softmax:\n" + "\n".join(faults))


def fault(record: Record) -> str:
    """What is wrong with a failed tensor, in words."""
    if record["reason"] is not None:
        return str(record["reason"])
    return (
        f"error {record['error']:.3g} ({record['norm']}), budget {record['budget']:.3g}, "
        f"the reference's own {record['reference_error']:.3g}"
    )


class Oracle:
    """Truth and references of a case, each computed once.

    Args:
        case: the cell.
        against: names of the references. `definition` as a reference is evaluated in the case's own dtype, so
            that it too has an error to measure. The truth is evaluated in float64, for a small float64 case
            in extended precision.
    """

    def __init__(self, case: Case, against: Sequence[str], inputs: Inputs | None = None) -> None:
        self.case = case
        self._against = tuple(against)
        self._given = inputs
        self._truths: dict[Family, Truth] = {}
        self._references: dict[tuple[str, Family], Reference] = {}

    @cached_property
    def inputs(self) -> Inputs:
        """The case's weights and batch."""
        return self._given if self._given is not None else draw_inputs(self.case)

    def check(self, implementation: Implementation) -> list[Record]:
        """Judge an implementation, against each reference in turn.

        Returns:
            Records with `case`, `impl`, `against`, `tensor`, `status` ("pass", "fail", "skipped"), `error`,
            `budget`, `reference_error`, `reason`, and also `dtype`, `norm` ("max" or "rms", the one nearer to
            its budget), `error_ulp`. A cell that cannot be judged has one record with the tensor "*": skipped
            with what is lacking, or failed with what the implementation raised.
        """
        reason = implementation.lacks(self.case) or self._undrawn()
        if reason is None and implementation.family == "full" and FULL_WEIGHT not in self.inputs.weights:
            self.inputs.weights[FULL_WEIGHT] = draw_full_weight(self.case)
        if reason is not None:
            return [
                self._record(implementation, name, WHOLE, Verdict("skipped", reason=reason))
                for name in self._against
            ]
        try:
            runner = implementation.build(self.case, self.inputs)
            runner.run()
            results, mismatches = runner.results(), runner.mismatches()
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever an implementation raises is a finding about it
            raised = Verdict("fail", reason=f"raised {type(error).__name__}: {_one_line(error)}")
            tensor = error.tensor if isinstance(error, ParameterMismatchError) else WHOLE
            return [self._record(implementation, name, tensor, raised) for name in self._against]
        records = []
        for name in self._against:
            verdicts = self._judge(implementation.family, name, results, mismatches)
            records += [self._record(implementation, name, tensor, v) for tensor, v in verdicts.items()]
        return records

    def _undrawn(self) -> str | None:
        """Why the case's labels cannot be had on this machine, or None."""
        try:
            self.inputs  # noqa: B018 - drawn here
        except UsageError as error:
            return str(error)
        return None

    def truth(self, family: Family = "adaptive") -> Truth:
        """The definition, evaluated once."""
        if family not in self._truths:
            self._truths[family] = Truth.of(self.case, self.inputs, family)
        return self._truths[family]

    def _judge(
        self, family: Family, name: str, results: Results, mismatches: dict[str, str]
    ) -> dict[str, Verdict]:
        reference = self._reference(name, family)
        if reference.reason is not None:
            return {WHOLE: Verdict("skipped", reason=f"{name}: {reference.reason}")}
        truth = self.truth(family)
        verdicts = {}
        for tensor, true_values in truth.results.items():
            if tensor not in results:
                verdicts[tensor] = Verdict("fail", reason="missing")
                continue
            values = results[tensor]
            fault = mismatches.get(tensor) or contract.form_fault(
                tensor, values, true_values, self.case.dtype
            )
            verdicts[tensor] = (
                Verdict("fail", reason=fault) if fault else judged(tensor, values, truth, reference)
            )
        for tensor in results.keys() - truth.results.keys():
            verdicts[tensor] = Verdict("fail", reason="not a tensor of this task")
        return verdicts

    def _reference(self, name: str, family: Family) -> Reference:
        if (name, family) not in self._references:
            self._references[name, family] = Reference(name, self.truth(family), self.case, self.inputs)
        return self._references[name, family]

    def _record(self, implementation: Implementation, against: str, tensor: str, verdict: Verdict) -> Record:
        identity = {
            "case": self.case.id,
            "impl": implementation.name,
            "against": against,
            "tensor": tensor,
            "dtype": self.case.dtype,
        }
        return {**identity, **asdict(verdict)}


@dataclass(frozen=True)
class Truth:
    """What a case's task gives, more precisely than the case's dtype holds."""

    family: Family
    dtype: str
    results: Results
    log_prob: Values | None
    """[N, n_classes] for "predict" and "topk", whose ties it settles; None for the other tasks."""

    @classmethod
    def of(cls, case: Case, inputs: Inputs, family: Family) -> Truth:
        """Evaluate the definition."""
        chosen = definition.arithmetic(_truth_precision(case))
        counted = _counted_as(case)
        results = definition.evaluate(case, inputs, family, chosen)
        if case.task not in ("predict", "topk"):
            return cls(family, counted, results, None)
        hidden = inputs.hidden
        if family == "full":
            log_prob = definition.full_log_prob(definition.full_weight(case, inputs), hidden, chosen)
        else:
            log_prob = definition.adaptive_log_prob(case.layout, inputs.weights, hidden, chosen)
        return cls(family, counted, results, log_prob)

    def error(self, tensor: str, values: Values) -> Size:
        """Error of a tensor; of classes the gaps to the most probable ones."""
        if tensor in contract.CLASSES:
            assert self.log_prob is not None
            return contract.size(contract.gaps(values, self.log_prob))
        return contract.error(values, self.results[tensor])

    def judge(self, tensor: str, values: Values, reference_error: Size) -> Verdict:
        """The contract's verdict on a tensor of the right shape and dtype."""
        if tensor in contract.CLASSES:
            assert self.log_prob is not None
            gap = contract.gaps(values, self.log_prob)
            return contract.judge_gaps(gap, self.log_prob, reference_error, self.dtype)
        return contract.judge(values, self.results[tensor], reference_error, self.dtype)


@dataclass(frozen=True)
class Order:
    """An order of rows and features: the same function, summed otherwise."""

    rows: Values
    features: Values

    @classmethod
    def number(cls, number: int, case: Case) -> Order:
        """0 is as they are, the others are random."""
        rows, features = np.arange(case.batch_size), np.arange(case.in_features)
        if number == 0:
            return cls(rows, features)
        rng = np.random.default_rng(number)
        return cls(rng.permutation(rows), rng.permutation(features))

    def permuted(self, inputs: Inputs) -> Inputs:
        """The inputs in this order."""
        weights = {
            name: weight[:, self.features] if _has_features(name) else weight
            for name, weight in inputs.weights.items()
        }
        return Inputs(inputs.hidden[self.rows][:, self.features], inputs.target[self.rows], weights)

    def restored(self, results: Results) -> Results:
        """Results of permuted inputs in the original order."""
        rows, features = np.argsort(self.rows), np.argsort(self.features)
        restored = {}
        for name, values in results.items():
            if name.startswith("grad.") and _has_features(name.removeprefix("grad.")):
                values = values[:, features]
            restored[name] = values[rows] if name in _BY_ROW else values
        return restored


@dataclass
class Reference:
    """A reference on one case, and how wrong it is: its error grows as more orders are evaluated."""

    name: str
    truth: Truth
    case: Case
    inputs: Inputs
    reason: str | None = None
    """Why it can say nothing here."""
    orders: int = 0
    errors: dict[str, Size] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.orders_known = ORDERS
        if self.name != "definition":
            implementation = registry.implementation(self.name)
            self.orders_known = getattr(implementation, "orders", ORDERS)
            if implementation.family != self.truth.family:
                self.reason = f"computes {implementation.family} softmax, which is another function"
            else:
                self.reason = implementation.lacks(self.case)
        if self.reason is None:
            self.widen()

    def widen(self) -> bool:
        """Evaluate in one more order; False once there are enough, or it cannot."""
        number = self.orders if not self.orders_known <= self.orders < ORDERS else ORDERS
        self.orders = number + 1
        if number >= ORDERS + PLAIN or self.reason is not None:
            return False
        if number >= ORDERS:
            if _multiplications(self.case) > _PLAIN_LIMIT:
                return False
            rng = np.random.default_rng(number)
            self._note(self._defined(self.inputs, definition.plain_arithmetic(self.case.dtype, rng)))
            return True
        order = Order.number(number, self.case)
        try:
            results = self._evaluate(order.permuted(self.inputs))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a reference that raises sets no budget; the record says so
            self.reason = f"raised {type(error).__name__}: {_one_line(error)}"
            return False
        self._note(order.restored(results))
        return True

    def _note(self, results: Results) -> None:
        """Keep the larger of the known errors and these results'."""
        for tensor, values in results.items():
            if tensor in self.truth.results and values.shape == self.truth.results[tensor].shape:
                found = self.truth.error(tensor, values)
                known = self.errors.get(tensor, Size(0.0, 0.0))
                self.errors[tensor] = Size(max(known.max, found.max), max(known.rms, found.rms))

    def _defined(self, inputs: Inputs, arithmetic: definition.Arithmetic) -> Results:
        return definition.evaluate(self.case, inputs, self.truth.family, arithmetic)

    def _evaluate(self, inputs: Inputs) -> Results:
        if self.name == "definition":
            return self._defined(inputs, definition.arithmetic(self.case.dtype))
        runner = registry.implementation(self.name).build(self.case, inputs)
        runner.run()
        return runner.results()


def judged(tensor: str, values: Values, truth: Truth, reference: Reference) -> Verdict:
    """The verdict on a tensor by a reference, which is evaluated again as long as that may change it."""
    while True:
        if tensor not in reference.errors:
            reason = f"{reference.name} gives no {tensor} of the right shape"
            return Verdict("skipped", reason=reference.reason or reason)
        verdict = truth.judge(tensor, values, reference.errors[tensor])
        if verdict.status != "fail" or _is_hopeless(verdict) or not reference.widen():
            return verdict


def _is_hopeless(verdict: Verdict) -> bool:
    if verdict.error is None or verdict.budget is None:
        return True
    return not verdict.error <= _HOPELESS * verdict.budget


def _counted_as(case: Case) -> str:
    """The dtype whose eps the contract takes: a GPU's float32 products may be asked to round to tf32."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return case.dtype if exact or case.dtype != "float32" or case.device == "cpu" else "tf32"


def _truth_precision(case: Case) -> str:
    affordable = _multiplications(case) <= _EXTENDED_LIMIT
    return "extended" if case.dtype == "float64" and affordable else "float64"


def _multiplications(case: Case) -> int:
    return case.batch_size * case.n_classes * case.in_features


def _has_features(name: str) -> bool:
    """Whether a tensor's second axis is in_features."""
    return name in ("input", "head.weight", "full.weight") or name.endswith(".0.weight")


def _resolved(implementation: Implementation | str) -> Implementation:
    if isinstance(implementation, str):
        return registry.implementation(implementation)
    return implementation


def _module(module: nn.Module) -> Implementation:
    return TorchModule(type(module).__name__, lambda case: copy.deepcopy(module))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
