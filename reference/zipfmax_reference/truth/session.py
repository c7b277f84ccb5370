"""One module in use, and the verdicts on its calls and gradients: what the protocol's rules are written in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from zipfmax_reference.contestants.use import Use
from zipfmax_reference.runs.arrays import Array, Inputs, Results
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_batch, draw_weights
from zipfmax_reference.truth.judgement import Truth, Verdict


class CallSession:
    """One fresh module, its weights and batches, and the verdicts so far.

    Args:
        case: a training case. Batches "a" and "b" are drawn as it says; "c" is smaller, of the shortlist only.
        make: makes a module with these inputs' weights, in use.
    """

    def __init__(self, case: Case, make: Callable[[Inputs], Use]) -> None:
        self.case = case
        self.weights: dict[str, Array] = draw_weights(case)
        self.batches = {name: draw_batch(case, round) for round, name in enumerate("abc")}
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
        return draw_weights(replace(self.case, seed=self.case.seed + 1))

    def upstream(self, batch: str) -> Array:
        """A random gradient of a batch's output."""
        return np.random.default_rng(7).standard_normal(len(self.batches[batch][1]))

    def called(self, name: str, batch: str, record: bool = True, use: Use | None = None) -> Results:
        """Call, and judge output and loss."""
        results = (use or self.use).call(name, batch, record)
        self.judge(results, batch)
        return results

    def judge(self, results: Results, batch: str) -> None:
        """Judge a call's output and loss."""
        self._add(_truth(replace(self.case, task="forward"), self.inputs(batch)).verdicts(results))

    def differentiated(
        self,
        name: str,
        batch: str,
        grad_output: Array | None = None,
        grad_loss: float | None = 1.0,
        retain: bool = False,
    ) -> None:
        """One backward of a call, and its gradients judged as the only ones."""
        self.use.clear()
        self.use.backward(name, grad_output, grad_loss, retain)
        self.judge_gradients(batch, [(batch, grad_output, grad_loss)])

    def judge_gradients(
        self, batch: str, backwards: Sequence[tuple[str, Array | None, float | None]], use: Use | None = None
    ) -> None:
        """Judge what lies in the leaves: the weights' sums over backwards, and the input's of one batch."""
        truths = [(of, self.truth(of, output, loss)) for of, output, loss in backwards]
        found = (use or self.use).gradients(batch)
        of_weights = _sum([truth for _, truth in truths])
        verdicts = {name: of_weights.judge(name, v) for name, v in found.items() if name != "grad.input"}
        if own := [truth for of, truth in truths if of == batch]:
            verdicts["grad.input"] = _sum(own).judge("grad.input", found["grad.input"])
        self._add(verdicts)

    def truth(self, batch: str, grad_output: Array | None = None, grad_loss: float | None = 1.0) -> Truth:
        """The definition on a batch and the present weights, for these incoming gradients."""
        n_rows = len(self.batches[batch][1])
        row_weight = (
            np.zeros(n_rows) if grad_output is None else np.asarray(grad_output, dtype=np.float64).copy()
        )
        if grad_loss is not None:
            row_weight -= grad_loss / n_rows
        return _truth(self.case, self.inputs(batch), row_weight)

    def judge_log_prob(self, values: Array) -> None:
        """Judge `log_prob` of batch "a"."""
        truth = _truth(replace(self.case, task="log_prob"), self.inputs("a"))
        self._add(truth.verdicts({"log_prob": values}))

    def same(self, what: str, before: Results, after: Results) -> None:
        """Fail where a bit of these arrays changed."""
        for name, value in before.items():
            if value.tobytes() != after[name].tobytes():
                self.fail(f"{what.format(name)} changed")

    def fail(self, reason: str) -> None:
        """Note a fault that is no distance."""
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

    def _add(self, verdicts: dict[str, Verdict]) -> None:
        self.verdicts += verdicts.items()


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
        gradients = [name for name in total.values if name.startswith("grad.")]
        total = replace(
            total,
            values={name: total.values[name] + other.values[name] for name in gradients},
            deviations={name: total.deviations[name] + other.deviations[name] for name in gradients},
            target=np.concatenate([total.target, other.target]),
        )
    return total
