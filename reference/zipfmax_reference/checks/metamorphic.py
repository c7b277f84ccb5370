"""`zipfmax metamorphic`: what holds of any adaptive softmax, checked where no truth is at hand.

The definition needs minutes for millions of classes; these relations between an implementation's own results
need one pass each:

- the probabilities of all classes sum to 1;
- the output is the target's entry of log_prob;
- a constant added to every logit of the head, through its bias, changes nothing;
- rows may be permuted, and the batch split;
- the length of the gradient is the finite difference of the loss along it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from zipfmax.errors import UsageError
from zipfmax_reference.console import print_table, terminal
from zipfmax_reference.contestants import isolated
from zipfmax_reference.contestants.child import told
from zipfmax_reference.contestants.implementation import Implementation
from zipfmax_reference.contestants.sources import digests
from zipfmax_reference.records import Metamorphic, RunDirectory
from zipfmax_reference.runs import grid as grids
from zipfmax_reference.runs.arrays import Inputs, Results
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.runs.invocation import invocation
from zipfmax_reference.truth.contract import EPS, Values

CASES = tuple(
    Case(n_classes, 64, 6, cutoffs, 4.0, True, dtype)
    for n_classes, cutoffs in (
        (267_735, (20_000, 60_000)),
        (1_000_000, (5_000, 60_000, 250_000)),
        (5_000_000, (5_000, 100_000, 1_000_000)),
    )
    for dtype in ("float32", "float64")
)
SHIFT = 4.0
STEP = 1e-4
ROUNDINGS = 16
"""Roundings of the largest number involved that two results may differ by."""


def run(
    impl: Sequence[str] = (), cells: str | None = None, out: Path | None = None, resume: bool = False
) -> int:
    """Check every relation on every large case, show the table, leave `metamorphic.jsonl` in `out`.

    With `resume`, cells whose every relation is already in `out` are not checked again.

    Returns:
        1 where a relation does not hold, otherwise 0.

    Raises:
        UsageError: an unknown name, a pattern that matches no cell, or no cell that could be judged.
    """
    implementations = [isolated.implementation(name) for name in impl or ("zipfmax", "torch")]
    cases = list(CASES) if cells is None else grids.matching(list(CASES), cells)
    arguments = {"metamorphic": True, "impl": [i.name for i in implementations], "cells": cells}
    directory = RunDirectory.optional(out, invocation(arguments, sources=digests(impl)), resume)
    known = [] if directory is None else [Metamorphic(**row) for row in directory.rows(Metamorphic)]
    relations = []
    for case in cases:
        for implementation in implementations:
            found = [row for row in known if (row.case, row.impl) == (case.id, implementation.name)]
            if len(found) != len(RELATIONS):
                found = list(check(case, implementation))
                if directory is not None:
                    directory.write(*found)
            relations += found
    _show(relations)
    if all(relation.status == "skipped" for relation in relations):
        raise UsageError(f"nothing was judged: {relations[0].reason}")
    return 1 if any(relation.status == "fail" for relation in relations) else 0


def check(case: Case, implementation: Implementation) -> Iterator[Metamorphic]:
    """Every relation of one implementation on one case, whose head needs a bias."""
    cell: dict[str, Any] = {"case": case.id, "impl": implementation.name}
    reason = implementation.unsupported_reason(case)
    for name, relation in RELATIONS.items():
        if reason is not None:
            yield Metamorphic(**cell, relation=name, status="skipped", reason=reason)
            continue
        try:
            error, budget = relation(case, implementation)
        except MemoryError:
            raise
        except Exception as raised:  # a finding about the implementation
            yield Metamorphic(**cell, relation=name, status="fail", reason=told(raised))
            continue
        holds = error <= budget  # NaN never does
        yield Metamorphic(
            **cell, relation=name, status="pass" if holds else "fail", error=error, budget=budget
        )


def sums_to_one(case: Case, implementation: Implementation) -> tuple[float, float]:
    """|log of the sum of exp(log_prob)|, row by row."""
    case = replace(case, task="log_prob")
    log_prob = _results(case, implementation, draw_inputs(case))["log_prob"]
    worst = 0.0
    for row in log_prob:
        largest = row.max()
        total = np.exp(row - largest, dtype=np.float64).sum()
        worst = max(worst, abs(float(largest) + float(np.log(total))))
    return worst, _budget(case, log_prob)


def output_is_gathered(case: Case, implementation: Implementation) -> tuple[float, float]:
    """Output against the target's entry of log_prob."""
    inputs = draw_inputs(case)
    output = _results(replace(case, task="forward"), implementation, inputs)["output"]
    log_prob = _results(replace(case, task="log_prob"), implementation, inputs)["log_prob"]
    gathered = log_prob[np.arange(len(output)), inputs.target]
    return _largest(output - gathered), _budget(case, log_prob)


def shift_changes_nothing(case: Case, implementation: Implementation) -> tuple[float, float]:
    """Output with SHIFT added to the head's bias, whose values are first rounded so that the sum is exact."""
    case = replace(case, task="forward", head_bias=True)
    inputs = draw_inputs(case)
    outputs = []
    for shift in (0.0, SHIFT):
        bias = np.round(inputs.weights["head.bias"] * 64) / 64 + shift
        weights = {**inputs.weights, "head.bias": bias.astype(inputs.weights["head.bias"].dtype)}
        shifted = Inputs(inputs.hidden, inputs.target, weights)
        outputs.append(_results(case, implementation, shifted)["output"])
    return _largest(outputs[0] - outputs[1]), _budget(case, outputs[0])


def rows_may_be_permuted(case: Case, implementation: Implementation) -> tuple[float, float]:
    """Output of reversed rows against the reversed output."""
    case = replace(case, task="forward")
    inputs = draw_inputs(case)
    straight = _results(case, implementation, inputs)["output"]
    turned = Inputs(inputs.hidden[::-1], inputs.target[::-1], inputs.weights)
    return _largest(_results(case, implementation, turned)["output"][::-1] - straight), _budget(
        case, straight
    )


def batch_may_be_split(case: Case, implementation: Implementation) -> tuple[float, float]:
    """Output of single rows against the output of the batch."""
    case = replace(case, task="forward")
    inputs = draw_inputs(case)
    whole = _results(case, implementation, inputs)["output"]
    runner = implementation.build(case, inputs)
    single = []
    for row in range(case.batch_size):
        runner.load(inputs.hidden[row : row + 1], inputs.target[row : row + 1])
        runner.run()
        single.append(runner.results()["output"])
    return _largest(np.concatenate(single) - whole), _budget(case, whole)


def gradient_is_the_slope(case: Case, implementation: Implementation) -> tuple[float, float]:
    """The loss's finite difference along the gradient against the gradient's length, its slope there.

    Along the gradient no two contributions cancel. The budget is the rounding of the loss over the step, and
    the step's own error, which falls with its square.
    """
    inputs = draw_inputs(case)
    gradients = {
        name.removeprefix("grad."): values
        for name, values in _results(replace(case, task="train"), implementation, inputs).items()
        if name.startswith("grad.")
    }
    step = STEP if case.dtype == "float64" else 1e-2
    losses = []
    for sign in (1, -1):
        moved = {name: _moved(inputs, name, sign * step, gradients[name]) for name in gradients}
        hidden = moved.pop("input")
        turned = Inputs(hidden, inputs.target, moved)
        losses.append(float(_results(replace(case, task="forward"), implementation, turned)["loss"]))
    difference = (losses[0] - losses[1]) / (2 * step)
    slope = sum(float((g.astype(np.float64) * _direction(g)).sum()) for g in gradients.values())
    rounding = ROUNDINGS * EPS[case.dtype] * max(map(abs, losses)) / step
    return abs(difference - slope), rounding + 10 * step * step * max(1.0, abs(slope))


RELATIONS: dict[str, Callable[[Case, Implementation], tuple[float, float]]] = {
    "probabilities sum to 1": sums_to_one,
    "output is gathered log_prob": output_is_gathered,
    "a shift of the logits changes nothing": shift_changes_nothing,
    "rows may be permuted": rows_may_be_permuted,
    "the batch may be split": batch_may_be_split,
    "the gradient is the loss's slope": gradient_is_the_slope,
}


def _moved(inputs: Inputs, name: str, distance: float, gradient: Values) -> Values:
    base = inputs.hidden if name == "input" else inputs.weights[name]
    return (base + distance * _direction(gradient)).astype(base.dtype)


def _direction(gradient: Values) -> Values:
    """The gradient itself, scaled to length 1, in float64."""
    exact = gradient.astype(np.float64)
    length = float(np.sqrt((exact**2).sum()))
    return exact / length if length else exact


def _results(case: Case, implementation: Implementation, inputs: Inputs) -> Results:
    runner = implementation.build(case, inputs)
    runner.run()
    return runner.results()


def _largest(values: Values) -> float:
    return float(np.abs(values.astype(np.float64)).max())


def _budget(case: Case, values: Values) -> float:
    return ROUNDINGS * EPS[case.dtype] * max(1.0, _largest(values))


def _show(relations: Sequence[Metamorphic]) -> None:
    table = Table("relation", "implementation", "case", "error", "budget", "", title="metamorphic relations")
    for r in relations:
        error, budget = (f"{x:.2e}" if x is not None else "" for x in (r.error, r.budget))
        style = "red" if r.status == "fail" else None
        table.add_row(r.relation, r.impl, r.case, error, budget, r.reason or r.status, style=style)
    print_table(terminal(), table)
