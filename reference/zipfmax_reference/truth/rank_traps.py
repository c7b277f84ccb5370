"""What goes wrong where a vocabulary is split over ranks, trap by trap, each with the labels that show it.

A trap drives a layer over ranks through a call or two, and holds what every rank returns against the
definition where that has it, and else against the same layer in one process. Its name is what is held. All of
it is in float64, so that a fault is not a matter of rounding; an answer that is not the same on every rank fails
before it is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from zipfmax_reference.contestants.child import told
from zipfmax_reference.contestants.ranked_layer import OptionCalls, RankedLayer, RankedRunner
from zipfmax_reference.runs.arrays import Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.truth import definition
from zipfmax_reference.truth.judgement import Truth, Verdict

PREFIX = "ranks."
TOLERANCE = 1e-10
"""Of one process's results, relative to the largest of a tensor: float64 leaves 1e-13 at these sizes."""
DRAWS = 4000
DEVIATIONS = 6.0
"""Standard deviations that a class may be off in its share of the draws."""

Trap = Callable[["RankedSession"], None]
TRAPS: dict[str, Trap] = {}


def trap(function: Trap) -> Trap:
    """Enter a trap under its own name."""
    TRAPS[function.__name__.replace("_", "-")] = function
    return function


class RankedSession:
    """One layer over ranks, the same in one process, and the verdicts so far."""

    def __init__(self, case: Case, layer: RankedLayer) -> None:
        self.case, self.world = case, layer.world
        self.inputs = draw_inputs(case)
        self.ranks: RankedRunner = layer.options(case, self.inputs)
        self.alone = OptionCalls(layer.layer, case, self.inputs)
        self.verdicts: list[tuple[str, Verdict]] = []

    def step(self, target: Labels, **options: Any) -> Results:
        """What a step gives on every rank, held against one process."""
        found: Results = self.ranks.call("step", options, target)
        for name, expected in self.alone.step(options, target).items():
            self.hold(name, found[name], expected)
        return found

    def hold(self, name: str, found: Any, expected: Any) -> None:
        """Note the largest error of a tensor."""
        there = np.isfinite(expected)
        if not np.array_equal(np.isfinite(found), there):
            reason = f"{name} is finite in other places than it should be"
            self.verdicts.append((name, Verdict("fail", reason=reason)))
            return
        error = np.abs(found - expected)[there].max(initial=0.0)
        budget = TOLERANCE * (1.0 + np.abs(expected)[there].max(initial=0.0))
        self.note(name, float(error), float(budget))

    def note(self, name: str, error: float, budget: float) -> None:
        """Add a verdict."""
        verdict = Verdict("pass" if error <= budget else "fail", error, budget, grain="element", where=name)
        self.verdicts.append((name, verdict))

    def hold_by_definition(self, found: Results, target: Labels, row_weight: Array) -> None:
        """Judge output and gradients, which are those of the sum of row_weight times output."""
        truth = Truth.of(
            self.case, Inputs(self.inputs.hidden, target, self.inputs.weights), row_weight=row_weight
        )
        for name in truth.values.keys() - {"loss"}:
            self.verdicts.append((name, truth.judge(name, found[name])))
        self.hold("loss", found["loss"], np.asarray((row_weight * truth.values["output"]).sum()))

    def worst(self) -> Verdict:
        """The first fault, or the largest share of a budget."""
        failed = [verdict for _, verdict in self.verdicts if verdict.status == "fail"]
        if failed:
            return failed[0]
        return replace(max((verdict for _, verdict in self.verdicts), key=lambda one: one.share), parts=())

    def edges(self) -> Labels:
        """Labels of the first and last class that each rank holds of each cluster, and of every cluster."""
        layout = self.case.layout
        found = {0, layout.n_classes - 1}
        for start, stop in zip(layout.bounds[:-1], layout.bounds[1:], strict=True):
            size = stop - start + (layout.n_clusters if start == 0 else 0)  # the head has the slots too
            step = -(-size // self.world)
            near = (start + rank * step + shift for rank in range(self.world + 1) for shift in (-1, 0))
            found |= {label for label in near if start <= label < stop} | {start, stop - 1}
        return np.resize(np.array(sorted(found), dtype=np.int64), self.case.batch_size)


@trap
def the_softmax_is_over_all_classes_once(s: RankedSession) -> None:
    """Not off by log(world), nor over padding; every gradient summed over the ranks, and once."""
    found = s.step(s.inputs.target)
    n_rows = len(s.inputs.target)
    s.hold_by_definition(found, s.inputs.target, np.full(n_rows, -1.0 / n_rows))


@trap
def a_label_is_scored_by_the_rank_that_holds_it(s: RankedSession) -> None:
    """Labels at both ends of every rank's part of every cluster."""
    target = s.edges()
    found = s.step(target, reduction="sum")
    s.hold_by_definition(found, target, np.full(len(target), -1.0))


@trap
def a_rank_may_have_no_label(s: RankedSession) -> None:
    """All labels are of the first rank, or all of the last; some clusters are absent."""
    size = s.case.n_classes
    for target in (s.inputs.target % 2, size - 1 - s.inputs.target % 2):
        found = s.step(target)
        s.hold_by_definition(found, target, np.full(len(target), -1.0 / len(target)))


@trap
def the_mean_is_over_the_counted_rows_of_all(s: RankedSession) -> None:
    """Rows that are ignored count on no rank."""
    target = s.inputs.target
    ignored = int(target[0])
    counted = target != ignored
    found = s.step(target, ignore_index=ignored)
    s.hold("output of ignored rows", found["output"][~counted], np.zeros(int((~counted).sum())))
    weight = np.where(counted, -1.0 / counted.sum(), 0.0)
    truth = definition.adaptive(s.case.layout, s.inputs.weights, s.inputs.hidden, target, row_weight=weight)
    output = np.where(counted, truth.pop("output"), 0.0)
    truth.pop("loss")
    s.hold("output", found["output"], output)
    s.hold("loss", found["loss"], np.asarray((weight * output).sum()))
    for name, value in truth.items():
        s.hold(name, found[name], value)


@trap
def ignored_rows_only_give_no_number_and_no_gradient(s: RankedSession) -> None:
    """The mean of nothing is NaN, its gradients are zeros."""
    target = np.full_like(s.inputs.target, -100)
    found = s.step(target, ignore_index=-100)
    s.hold("loss", found["loss"], np.asarray(np.nan))
    for name, value in found.items():
        if name.startswith("grad."):
            s.hold(name, value, np.zeros_like(value))


@trap
def smoothing_and_class_weights_are_of_all_classes(s: RankedSession) -> None:
    """Their sums run over the whole vocabulary, not over a rank's part."""
    size, target = s.case.n_classes, s.inputs.target
    log_p = definition.adaptive_log_prob(s.case.layout, s.inputs.weights, s.inputs.hidden)
    of_target = log_p[np.arange(len(target)), target]
    for smoothing in (0.0, 0.1, 1.0):
        for weight in (np.ones(size), np.linspace(0.1, 2.0, size)):
            found = s.step(target, label_smoothing=smoothing, weight=weight)
            smooth = smoothing / size * (log_p * weight).sum(axis=1)
            total = ((1 - smoothing) * weight[target] * of_target + smooth).sum()
            s.hold("loss", found["loss"], np.asarray(-total / weight[target].sum()))


@trap
def the_z_loss_squares_sums_over_all_classes(s: RankedSession) -> None:
    """It is not the sum of the ranks' squares."""
    s.step(s.inputs.target, z_loss=0.01)


@trap
def samples_are_the_same_on_every_rank(s: RankedSession) -> None:
    """Whatever the states of the ranks' generators, and by the definition's distribution."""
    log_p = definition.adaptive_log_prob(s.case.layout, s.inputs.weights, s.inputs.hidden)
    p = np.exp(log_p)
    for alike in (True, False):
        drawn = s.ranks.call("sample", DRAWS, alike)["sample"]
        shares = np.stack([np.bincount(row, minlength=s.case.n_classes) for row in drawn]) / DRAWS
        off = np.abs(shares - p) / np.sqrt(p * (1 - p) / DRAWS + 1.0 / DRAWS**2)
        s.note("shares of the draws", float(off.max()), DEVIATIONS)


def check(case: Case, layer: Any) -> dict[str, Verdict]:
    """The verdict on each trap, by its name: "ranks.a-rank-may-have-no-label" and so on.

    Args:
        case: a training case in float64.
        layer: a `RankedLayer`.
    """
    verdicts: dict[str, Verdict] = {}
    lost = False
    for name, one in TRAPS.items():
        if lost:  # each further trap would wait as long again
            verdict = Verdict("skipped", reason="not tried: the ranks lost each other in a trap before")
        else:
            verdict, lost = _verdict(one, case, layer)
        verdicts[f"{PREFIX}{name}"] = verdict
    return verdicts


def _verdict(one: Trap, case: Case, layer: RankedLayer) -> tuple[Verdict, bool]:
    """The verdict, and whether some ranks waited for others that did not come."""
    try:
        session = RankedSession(case, layer)
        one(session)
    except Exception as error:  # whatever a layer raises is a finding about it
        return Verdict("fail", reason=told(error)), layer.lost
    return session.worst(), False
