"""Is the same input computed to the same bits: again, with its rows permuted, and in two halves?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zipfmax_reference.contestants.implementation import Implementation
from zipfmax_reference.runs.arrays import Inputs, Labels, Results
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.truth.judgement import Truth

CASE = Case(5000, 64, 257, (300, 1200, 3000), 2.0, True)

BITWISE, WITHIN, BEYOND = "bitwise equal", "within budget", "beyond budget"


@dataclass(frozen=True)
class ChangeOutcome:
    """One tensor of one implementation under one change: a line of `stability.jsonl`."""

    impl: str
    change: str
    """"again", "rows permuted" or "in two halves"."""
    tensor: str
    verdict: str
    difference: float
    """Largest difference between the two results."""


def examine(implementation: Implementation, case: Case = CASE) -> list[ChangeOutcome]:
    """Run an implementation on a training step and on the same step changed.

    "within budget" means that the changed step too is as near to the truth as the numeric contract asks.
    """
    inputs = draw_inputs(case)
    truth = Truth.of(case, inputs, implementation.family)
    straight = _run(implementation, case, inputs)
    order = np.random.default_rng(0).permutation(case.batch_size)
    permuted = Inputs(inputs.hidden[order], inputs.target[order], inputs.weights)
    changed = {
        "again": _run(implementation, case, inputs),
        "rows permuted": _restored(_run(implementation, case, permuted), order),
        "in two halves": _in_halves(implementation, case, inputs),
    }
    return [
        _compared(implementation.name, change, tensor, straight, results, truth)
        for change, results in changed.items()
        for tensor in straight
    ]


def _compared(
    name: str, change: str, tensor: str, straight: Results, changed: Results, truth: Truth
) -> ChangeOutcome:
    one, other = straight[tensor], changed[tensor]
    if np.array_equal(one, other):
        return ChangeOutcome(name, change, tensor, BITWISE, 0.0)
    verdict = truth.judge(tensor, other)
    difference = float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max())
    return ChangeOutcome(name, change, tensor, WITHIN if verdict.status == "pass" else BEYOND, difference)


def _restored(results: Results, order: Labels) -> Results:
    """Results of permuted rows in the original order."""
    back = np.argsort(order)
    return {
        name: values[back] if name in ("output", "grad.input") else values for name, values in results.items()
    }


def _in_halves(implementation: Implementation, case: Case, inputs: Inputs) -> Results:
    """The step as two batches, whose losses and gradients are weighted by their rows."""
    middle = case.batch_size // 2
    parts, shares = [], []
    for rows in (slice(0, middle), slice(middle, None)):
        half = Inputs(inputs.hidden[rows], inputs.target[rows], inputs.weights)
        parts.append(_run(implementation, case, half))
        shares.append(len(half.target) / case.batch_size)
    joined: Results = {}
    for tensor, first in parts[0].items():
        second = parts[1][tensor]
        if tensor == "output":
            joined[tensor] = np.concatenate([first, second])
        elif tensor == "grad.input":
            joined[tensor] = np.concatenate([first * shares[0], second * shares[1]]).astype(first.dtype)
        else:
            joined[tensor] = (first * shares[0] + second * shares[1]).astype(first.dtype)
    return joined


def _run(implementation: Implementation, case: Case, inputs: Inputs) -> Results:
    runner = implementation.build(case, inputs)
    runner.run()
    return runner.results()
