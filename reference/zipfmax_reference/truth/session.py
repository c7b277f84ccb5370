"""One module in use, and the verdicts on its calls and gradients: what the protocol's rules are written in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from zipfmax_reference.contestants import surroundings
from zipfmax_reference.contestants.use import CallMode, Gaps, Use
from zipfmax_reference.runs.arrays import Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_batch, draw_weights
from zipfmax_reference.truth.contract import HOST_DTYPE, form_fault
from zipfmax_reference.truth.judgement import Truth, Verdict

Upstream = Array | float | None
"""A gradient that comes in: of each row, the same of all, or none."""


class CallSession:
    """One fresh module, its weights and batches, and the verdicts so far.

    Args:
        case: a training case. Batches "a" and "b" are drawn as it says; "c" is smaller, of the shortlist only.
        make: makes a module with these inputs' weights, in use.
    """

    def __init__(self, case: Case, make: Callable[[Inputs], Use]) -> None:
        self.case = case
        self.weights: dict[str, Array] = dict(_weights(case))
        self.batches = {name: _batch(case, round) for round, name in enumerate("abc")}
        hidden, target = self.batches["c"]
        n_few = max(1, len(hidden) // 3)
        self.batches["c"] = hidden[:n_few], target[:n_few] % case.layout.shortlist_size
        self.make = make
        self.use = make(self.inputs("a"))
        self.verdicts: list[tuple[str, Verdict]] = []
        for name, (hidden, target) in self.batches.items():
            self.use.batch(name, hidden, target)

    def inputs(self, batch: str) -> Inputs:
        """A batch with the present weights."""
        return Inputs(*self.batches[batch], self.weights)

    def other_weights(self) -> dict[str, Array]:
        """Weights of another seed."""
        return dict(_weights(replace(self.case, seed=self.case.seed + 1)))

    def upstream(self, batch: str) -> Array:
        """A random gradient of a batch's output."""
        return np.random.default_rng(7).standard_normal(len(self.batches[batch][1]))

    def called(
        self,
        name: str,
        batch: str,
        mode: CallMode = "record",
        through: bool = False,
        use: Use | None = None,
    ) -> None:
        """Call, and judge output and loss."""
        self.judge((use or self.use).call(name, batch, mode, through), batch)

    def judge(self, results: Results, batch: str) -> None:
        """Judge a call's output and loss."""
        truth = _truth(replace(self.case, task="forward"), self.inputs(batch))
        for name in truth.values:
            if name not in results:
                self.fail(f"{name} is missing")
            elif fault := form_fault(name, results[name], truth.values[name], self.case.dtype):
                self.fail(f"{name} has {fault}")
            else:
                self.judge_tensor(truth, name, results[name])

    def differentiated(
        self,
        name: str,
        batch: str,
        grad_output: Upstream = None,
        grad_loss: float | None = 1.0,
        retain: bool = False,
        gaps: Gaps = "none",
    ) -> None:
        """One backward of a call, and its gradients judged as the only ones."""
        self.use.clear()
        self.use.backward(name, grad_output, grad_loss, retain, gaps)
        self.judge_gradients(batch, [(batch, grad_output, grad_loss)])

    def asked(self, name: str, batch: str) -> None:
        """Judge the gradients of a call's loss that are asked for and not left."""
        truth = self.truth(batch)
        for tensor, value in self.use.asked(name, batch).items():
            self.judge_tensor(truth, tensor, value)

    def judge_gradients(
        self, batch: str, backwards: Sequence[tuple[str, Upstream, float | None]], use: Use | None = None
    ) -> None:
        """Judge what lies in the leaves: the weights' sums over backwards, and the input's of one batch."""
        truths = [(of, self.truth(of, output, loss)) for of, output, loss in backwards]
        found = (use or self.use).gradients(batch)
        of_weights = _sum([truth for _, truth in truths])
        own = [truth for of, truth in truths if of == batch]
        for name, value in found.items():
            if name != "grad.input":
                self.judge_tensor(of_weights, name, value)
            elif own:
                self.judge_tensor(_sum(own), name, value)

    def truth(self, batch: str, grad_output: Upstream = None, grad_loss: float | None = 1.0) -> Truth:
        """The definition on a batch and the present weights, for these incoming gradients."""
        n_rows = len(self.batches[batch][1])
        row_weight = np.zeros(n_rows)
        if grad_output is not None:
            row_weight += grad_output
        if grad_loss is not None:
            row_weight -= grad_loss / n_rows
        return _truth(self.case, self.inputs(batch), row_weight)

    def truth_of_methods(self, batch: str) -> Truth:
        """The definition's `log_prob` of a batch, which also judges `predict`."""
        return _truth(replace(self.case, task="log_prob"), self.inputs(batch))

    def judge_methods(self, batch: str = "a") -> None:
        """Judge `log_prob` and `predict` of a batch."""
        truth = self.truth_of_methods(batch)
        log_prob, predicted = (self.use.evaluate(method, batch) for method in ("log_prob", "predict"))
        recorded = self.use.evaluate("predict", batch, mode="record")
        if fault := form_fault("log_prob", log_prob, truth.values["log_prob"], self.case.dtype):
            self.fail(f"log_prob has {fault}")
        elif predicted.shape != (len(log_prob),) or predicted.dtype.kind not in "iu":
            self.fail(f"predict has shape {predicted.shape} and dtype {predicted.dtype}")
        else:
            self.judge_tensor(truth, "log_prob", log_prob)
            self.judge_tensor(truth, "predict", predicted)
            if not np.array_equal(recorded, predicted):
                self.fail("predict differs where gradients are recorded")

    def judge_gradients_of_log_prob(self, batch: str, upstream: Array) -> None:
        """Judge the gradients of log_prob of a batch, for these coming in, [N, n_classes].

        They are those of the outputs of a batch that holds every row once for each class. Deviations of what is
        added up add up, as in a sum of gradients.
        """
        hidden, _ = self.batches[batch]
        n_rows, n_classes = upstream.shape
        labels = np.tile(np.arange(n_classes), n_rows)
        inputs = Inputs(np.repeat(hidden, n_classes, axis=0), labels, self.weights)
        truth = _truth(replace(self.case, batch_size=len(labels)), inputs, upstream.ravel())
        found = self.use.gradients(batch)
        of_input = found.pop("grad.input")
        for name, value in found.items():
            self.judge_tensor(truth, name, value)
        value, deviation = (
            of["grad.input"].reshape(n_rows, n_classes, -1).sum(axis=1)
            for of in (truth.values, truth.deviations)
        )
        own = replace(
            truth,
            values={"grad.input": value},
            deviations={"grad.input": deviation},
            overflows={"grad.input": ~np.isfinite(deviation)},
            target=self.batches[batch][1],
        )
        self.judge_tensor(own, "grad.input", of_input)

    def judge_autocast(self, results: Results, batch: str) -> None:
        """Judge output, loss and gradients of a call under autocast to bfloat16.

        Each may be as exact as the case's dtype, or that of weights and input rounded to bfloat16.
        """
        self._judge_either(
            {**results, **self.use.gradients(batch)}, self._truths_under_autocast("train", batch)
        )

    def judge_methods_under_autocast(self, batch: str, mode: CallMode = "autocast") -> None:
        """As `judge_autocast`, `log_prob` and `predict`."""
        truths = self._truths_under_autocast("log_prob", batch)
        found = {method: self.use.evaluate(method, batch, mode=mode) for method in ("log_prob", "predict")}
        if found["predict"].dtype.kind not in "iu":
            self.fail(f"predict has dtype {found['predict'].dtype} under autocast")
        self._judge_either(found, truths)

    def _truths_under_autocast(self, task: str, batch: str) -> list[Truth]:
        """The truth of a batch, and that of weights and input rounded to bfloat16."""
        case = replace(self.case, task=task)
        hidden, target = self.batches[batch]
        weights = {name: _rounded(weight) for name, weight in self.weights.items()}
        low = _truth(replace(case, dtype="bfloat16"), Inputs(_rounded(hidden), target, weights))
        return [_truth(case, self.inputs(batch)), low]

    def _judge_either(self, found: Results, truths: Sequence[Truth]) -> None:
        """Each tensor has to be within the budgets of one of these."""
        for name in found:
            value = found[name].astype(np.float64)
            verdicts = [truth.judge_quickly(name, value) for truth in truths]
            self.verdicts.append((name, min(verdicts, key=lambda verdict: verdict.share)))

    def converted(self, dtype: str) -> None:
        """Go on in another dtype: the module, the weights and the batches."""
        self.use.convert(dtype)
        self.case = replace(self.case, dtype=dtype)
        self.weights = {name: weight.astype(HOST_DTYPE[dtype]) for name, weight in self.weights.items()}
        for name, (hidden, target) in self.batches.items():
            self.batches[name] = hidden.astype(HOST_DTYPE[dtype]), target
            self.use.batch(name, *self.batches[name])

    def same(self, what: str, before: Results, after: Results) -> None:
        """Fail where a bit of these arrays changed."""
        for name, value in before.items():
            if value.tobytes() != after[name].tobytes():
                self.fail(f"{what.format(name)} changed")

    def unchanged(
        self, what: str, before: dict[str, str], after: dict[str, str], but: str | None = None
    ) -> None:
        """Fail where one of these states is another one now; those whose name begins with `but` may be.

        So may those that an import changes, where something was imported.
        """
        may: tuple[str, ...] = (surroundings.IMPORTED,)
        if after[surroundings.IMPORTED] != before[surroundings.IMPORTED]:
            may += surroundings.BY_IMPORT
        for name, value in before.items():
            if after[name] != value and not (name in may or (but and name.startswith(but))):
                self.fail(what.format(name))

    def fail(self, reason: str) -> None:
        """Note a fault that is not a distance."""
        self.verdicts.append(("*", Verdict("fail", reason=reason)))

    def worst(self) -> Verdict:
        """The verdict on the rule: the first fault in words, or the largest share of a budget."""
        told = [verdict for _, verdict in self.verdicts if verdict.reason is not None]
        if told:
            return told[0]
        if not self.verdicts:
            return Verdict("pass", 0.0, 0.0)
        tensor, worst = max(self.verdicts, key=lambda one: one[1].share)
        return replace(worst, where=f"{tensor}, {worst.where}", parts=())

    def judge_tensor(self, truth: Truth, name: str, value: Array) -> None:
        """Judge one tensor."""
        self.verdicts.append((name, truth.judge_quickly(name, value)))


@lru_cache(maxsize=8)
def _weights(case: Case) -> dict[str, Array]:
    return draw_weights(case)


@lru_cache(maxsize=12)
def _batch(case: Case, round: int) -> tuple[Array, Labels]:
    return draw_batch(case, round)


def _rounded(values: Array) -> Array:
    return torch.from_numpy(np.array(values)).bfloat16().float().numpy()


_truths: dict[bytes, Truth] = {}
_MOST_TRUTHS = 256


def _truth(case: Case, inputs: Inputs, row_weight: Array | None = None) -> Truth:
    """The definition, kept by the values that it is evaluated on: rules ask for the same ones again."""
    digest = hashlib.blake2b(repr(case).encode())
    for values in (inputs.hidden, inputs.target, *inputs.weights.values(), row_weight):
        digest.update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
    key = digest.digest()
    if key not in _truths:
        if len(_truths) >= _MOST_TRUTHS:
            _truths.clear()
        _truths[key] = Truth.of(case, inputs, row_weight=row_weight)
    return _truths[key]


def _sum(truths: Sequence[Truth]) -> Truth:
    """The truth on gradients that have been added up; deviations add up too, since errors may be alike."""
    total = truths[0]
    for other in truths[1:]:
        # Inputs have gradients of their own, which batches of other sizes show.
        gradients = [
            name
            for name, value in total.values.items()
            if name.startswith("grad.") and value.shape == other.values[name].shape
        ]
        total = replace(
            total,
            values={name: total.values[name] + other.values[name] for name in gradients},
            deviations={name: total.deviations[name] + other.deviations[name] for name in gradients},
            target=np.concatenate([total.target, other.target]),
        )
    return total
