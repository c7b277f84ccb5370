"""The protocol of calls: whether a layer is right in use, not on its first call only.

A rule drives one fresh module through a few calls (`session.CallSession`) and holds every result and gradient
against the definition, by the budgets of `judgement`. Its name is what is held. What a layer need not do, such as
a second derivative, is skipped where the layer refuses it, and must be right where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from zipfmax_reference.contestants.child import told
from zipfmax_reference.contestants.use import NotPromisedError, Use, surroundings_kept
from zipfmax_reference.runs.arrays import Inputs, Results
from zipfmax_reference.runs.case import Case
from zipfmax_reference.truth.judgement import Verdict
from zipfmax_reference.truth.session import CallSession

STEP = 1e-4
"""Of the difference that a second derivative is held against, in float64."""
CURVATURE_ERROR = {"float64": 1e-5, "float32": 1e-3}
"""Allowed of it, relative to its largest element; the difference itself is off by about 1e-8. Dtypes of 16 bits are
not asked: their own error is as large as a fault's."""

Rule = Callable[[CallSession], None]
RULES: dict[str, Rule] = {}
OPTIONAL: set[Rule] = set()
"""Rules of what a layer need not promise: a refusal there is no fault."""
PREFIX = "protocol."
"""Before a rule's name, where records have a tensor's."""


def rule(function: Rule) -> Rule:
    """Enter a rule under its own name."""
    RULES[function.__name__.replace("_", "-")] = function
    return function


def optional(function: Rule) -> Rule:
    """Let a layer refuse what a rule asks for."""
    OPTIONAL.add(function)
    return function


# Calls.


@rule
def later_calls_are_right(s: CallSession) -> None:
    """Batch after batch, the first a small one of frequent labels only; others twice."""
    for call, batch in enumerate("cabcab"):
        s.called(f"call {call}", batch)


@rule
def an_earlier_result_stays(s: CallSession) -> None:
    """What a call returned holds its values through later calls and their backwards."""
    before = s.use.call("first", "a")
    for call, batch in enumerate("bcab"):
        s.use.call(f"call {call}", batch)
        s.use.backward(f"call {call}", None, 1.0)
    s.use.evaluate("log_prob", "b")
    s.same("the {} of an earlier call", before, s.use.read("first"))


@rule
def the_callers_tensors_stay(s: CallSession) -> None:
    """Input, target and weights have the same bits after calls and backwards."""
    inputs, weights = s.use.inputs("a"), s.use.weights()
    s.use.call("x", "a")
    s.use.backward("x", s.upstream("a"), 1.0)
    s.use.call("y", "a", "no_grad")
    s.use.evaluate("log_prob", "a")
    s.use.evaluate("predict", "a")
    s.same("the caller's {}", inputs, s.use.inputs("a"))
    s.same("the weight {}", weights, s.use.weights())


@rule
def new_values_in_the_same_tensors_count(s: CallSession) -> None:
    """A batch written over in place is a new batch."""
    s.called("x", "a")
    s.use.refill("a", *s.batches["b"])
    s.batches["a"] = s.batches["b"]
    s.called("y", "a")
    s.differentiated("y", "a")


@rule
def new_labels_for_the_same_input_count(s: CallSession) -> None:
    """The same hidden states with the labels of other rows."""
    s.called("x", "a")
    hidden, target = s.batches["a"]
    s.batches["a"] = hidden, target[::-1].copy()
    s.use.refill("a", *s.batches["a"])
    s.called("y", "a")
    s.differentiated("y", "a")


@rule
def a_result_is_a_plain_tensor_in_the_graph(s: CallSession) -> None:
    """Of the input's dtype, differentiable where it is recorded, no subclass that computes when it is read."""
    for mode in ("no_grad", "record"):
        s.use.call(mode, "a", mode)
        if (fault := s.use.form(mode)) is not None:
            s.fail(fault)


@rule
def batches_may_have_gaps(s: CallSession) -> None:
    """Input and targets that are columns of wider tensors."""
    s.use.batch("a", *s.batches["a"], gaps=True)
    s.called("x", "a")
    s.differentiated("x", "a")
    s.judge_log_prob(s.use.evaluate("log_prob", "a"))


@rule
def a_call_without_gradients_is_the_same_function(s: CallSession) -> None:
    """Under no_grad, and between a call and its backward."""
    s.called("x", "a")
    s.called("y", "b", "no_grad")
    s.called("z", "a", "no_grad")
    s.differentiated("x", "a")
    s.called("w", "b")
    s.differentiated("w", "b")


@rule
def a_call_in_inference_mode_is_the_same_function(s: CallSession) -> None:
    """As the first one of all, before training, and between a call and its backward."""
    s.called("x", "a", "inference")
    s.called("y", "b")
    s.called("z", "b", "inference")
    s.differentiated("y", "b")


@rule
def evaluation_mode_is_the_same_function(s: CallSession) -> None:
    """And training mode after it."""
    s.use.mode(False)
    s.called("x", "a")
    s.differentiated("x", "a")
    s.use.mode(True)
    s.called("y", "b")
    s.differentiated("y", "b")


@rule
def other_methods_leave_a_call_alone(s: CallSession) -> None:
    """`log_prob` and `predict` between a call and its backward."""
    s.called("x", "a")
    s.use.evaluate("log_prob", "b")
    s.use.evaluate("predict", "a")
    s.differentiated("x", "a")


@rule
def log_prob_follows_the_weights(s: CallSession) -> None:
    """`log_prob`, once more after the weights have changed."""
    for weights in (s.weights, s.other_weights()):
        s.use.write(weights)
        s.weights = weights
        s.judge_log_prob(s.use.evaluate("log_prob", "a"))


# Weights.


@rule
def weights_written_in_place_count(s: CallSession) -> None:
    """The next call and its gradients are those of the new weights."""
    _new_weights_count(s, s.use.write)


@rule
def loaded_weights_count(s: CallSession) -> None:
    """A state dict, loaded between two calls."""
    _new_weights_count(s, s.use.load)


def _new_weights_count(s: CallSession, put: Callable[[Results], None]) -> None:
    """A call and its gradients before and after other weights are put into the module."""
    s.called("x", "a")
    s.differentiated("x", "a")
    s.weights = s.other_weights()
    put(s.weights)
    s.called("y", "a")
    s.differentiated("y", "a")


@rule
def an_optimizer_step_counts(s: CallSession) -> None:
    """It moves every weight that has a gradient, and the next call is that of the moved weights."""
    for name in ("x", "y", "z"):
        s.called(name, "a")
        s.differentiated(name, "a")
        before, gradients = s.use.weights(), s.use.gradients("a")
        s.use.step(0.5)
        s.weights = {n: np.array(w) for n, w in s.use.weights().items()}
        for weight, old in before.items():
            moved = (gradients[f"grad.{weight}"] != 0).any()
            if moved and np.array_equal(old, s.weights[weight]):
                s.fail(f"an optimizer step left {weight} as it was")


@rule
def two_layers_share_nothing(s: CallSession) -> None:
    """Two modules of one class with other weights, in turn."""
    first = dict(s.weights)
    s.weights = s.other_weights()
    other = s.make(s.inputs("a"))
    for name in "ab":
        other.batch(name, *s.batches[name])
    second = s.weights
    for call, batch in enumerate("ab"):
        s.weights = first
        s.called(f"first {call}", batch)
        s.weights = second
        s.called(f"second {call}", batch, use=other)
    s.use.backward("first 0", None, 1.0)
    other.backward("second 0", None, 1.0)
    s.judge_gradients("a", [("a", None, 1.0)], other)
    s.weights = first
    s.judge_gradients("a", [("a", None, 1.0)])


@rule
def frozen_weights_leave_the_inputs_gradient(s: CallSession) -> None:
    """And get none of their own; unfrozen ones get theirs again."""
    s.use.require(False)
    s.called("x", "a")
    s.use.backward("x", None, 1.0)
    found = s.use.gradients("a")
    s.verdicts.append(("grad.input", s.truth("a").judge("grad.input", found["grad.input"])))
    if any(gradient.any() for name, gradient in found.items() if name != "grad.input"):
        s.fail("a frozen weight got a gradient")
    s.use.require(True)
    s.called("y", "a")
    s.differentiated("y", "a")


@rule
def an_input_without_gradient_leaves_those_of_the_weights(s: CallSession) -> None:
    """As where the trunk is frozen."""
    s.use.batch("a", *s.batches["a"], leaf=False)
    s.called("x", "a")
    s.use.backward("x", None, 1.0)
    found = s.use.gradients("a")
    truth = s.truth("a")
    s.verdicts += [(name, truth.judge(name, value)) for name, value in found.items() if name != "grad.input"]


@rule
def the_input_may_be_computed(s: CallSession) -> None:
    """From a tensor that takes the gradient, as where a trunk is below."""
    s.called("x", "a", through=True)
    s.differentiated("x", "a")
    s.called("y", "b", through=True)
    s.differentiated("y", "b", s.upstream("b"), 0.5)


# Backward.


@rule
def the_incoming_gradient_counts(s: CallSession) -> None:
    """A loss that is scaled, as by a loss scaler or by gradient accumulation, and one with its sign turned."""
    for call, factor in enumerate((0.5, -3.0, 1.0)):
        s.called(f"call {call}", "a")
        s.differentiated(f"call {call}", "a", grad_loss=factor)


@rule
def output_can_be_differentiated(s: CallSession) -> None:
    """With a random gradient for each row."""
    for call in "xy":
        s.called(call, "a")
        s.differentiated(call, "a", s.upstream("a"), None)


@rule
def output_can_be_summed(s: CallSession) -> None:
    """All rows' gradient is one number in memory then; only output, and with the loss."""
    s.called("x", "a")
    s.differentiated("x", "a", -0.25, None)
    s.called("y", "b")
    s.differentiated("y", "b", 0.125, 0.5)


@rule
def output_and_loss_can_be_differentiated_together(s: CallSession) -> None:
    """In one backward, and then the loss only again."""
    s.called("x", "a")
    s.differentiated("x", "a", s.upstream("a"), 0.7)
    s.called("y", "a")
    s.differentiated("y", "a")


@rule
def gradients_accumulate(s: CallSession) -> None:
    """Over two batches, without being dropped between them."""
    s.called("x", "a")
    s.use.backward("x", None, 1.0)
    s.called("y", "b")
    s.use.backward("y", None, 0.5)
    backwards = [("a", None, 1.0), ("b", None, 0.5)]
    s.judge_gradients("a", backwards)
    s.judge_gradients("b", backwards)


@rule
def backwards_may_come_later_and_in_any_order(s: CallSession) -> None:
    """Two calls first, then both backwards, the first one last."""
    s.called("x", "a")
    s.called("y", "b")
    s.differentiated("y", "b")
    s.differentiated("x", "a")


@rule
def a_dropped_gradient_comes_back_new(s: CallSession) -> None:
    """And what a user keeps of it stays, whatever the next steps do."""
    s.called("x", "a")
    s.differentiated("x", "a")
    s.use.keep("a")
    kept = s.use.kept()
    for call, batch in enumerate("bca"):
        s.use.clear()
        s.called(f"call {call}", batch)
        s.differentiated(f"call {call}", batch)
    s.same("the {} that was kept", kept, s.use.kept())


@rule
@optional
def a_graph_that_is_kept_can_be_used_twice(s: CallSession) -> None:
    """backward(retain_graph=True) and backward, with other incoming gradients."""
    s.called("x", "a")
    s.differentiated("x", "a", grad_loss=2.0, retain=True)
    s.differentiated("x", "a", s.upstream("a"), 0.5)


@rule
@optional
def a_second_derivative_is_right(s: CallSession) -> None:
    """By a difference of the definition's first derivatives."""
    found = s.use.curvature("a")
    first = s.truth("a").values["grad.input"].astype(np.float64)
    hidden, target = s.batches["a"]
    moved = []
    for sign in (1, -1):
        s.batches["a"] = hidden + sign * STEP * first, target
        moved.append(s.truth("a").values["grad.input"])
    expected = ((moved[0] - moved[1]) / (2 * STEP)).astype(np.float64)
    error = np.abs(found - expected).max()
    allowed = CURVATURE_ERROR[s.case.dtype] * np.abs(expected).max()
    if not error <= allowed:
        s.fail(f"the second derivative is off by {error:.3g}, {allowed:.3g} is allowed")


# What surrounds a call.


@rule
def a_target_out_of_range_raises(s: CallSession) -> None:
    """And the next call is right."""
    hidden, target = s.batches["a"]
    for wrong in (-1, s.case.n_classes, s.case.n_classes + 1):
        labels = target.copy()
        labels[len(labels) // 2] = wrong
        s.use.batch("wrong", hidden, labels)
        try:
            s.use.call("wrong", "wrong")
        except Exception:
            continue
        s.fail(f"a target of {wrong} is taken without an error")
    s.called("x", "a")
    s.differentiated("x", "a")


@rule
def the_surroundings_stay(s: CallSession) -> None:
    """Grad mode, default dtype, threads and random numbers are the caller's."""
    before = s.use.surroundings()
    s.use.call("x", "a")
    s.use.backward("x", None, 1.0)
    s.use.evaluate("predict", "a")
    after = s.use.surroundings()
    for name, value in before.items():
        if after[name] != value:
            s.fail(f"a call changes {name}")


def check(case: Case, make: Callable[[Inputs], Use], rules: Sequence[str] = ()) -> dict[str, Verdict]:
    """The verdict on each rule, by its name: "protocol.later-calls-are-right" and so on.

    Args:
        case: its task is of no matter.
        make: makes a fresh module with the given weights.
        rules: names of those to check; all by default.
    """
    training = replace(case, task="train")
    return {
        f"{PREFIX}{name}": _verdict(RULES[name], training, make)
        for name in rules or RULES
        if RULES[name] is not a_second_derivative_is_right or case.dtype in CURVATURE_ERROR
    }


def _verdict(one: Rule, case: Case, make: Callable[[Inputs], Use]) -> Verdict:
    if one is a_target_out_of_range_raises and case.device != "cpu":
        return Verdict("skipped", reason="not asked: on a GPU a wrong target may end the process")
    try:
        with surroundings_kept():
            session = CallSession(case, make)
            one(session)
    except NotPromisedError as error:
        why = " ".join(str(error).split())[:200]
        if one in OPTIONAL:
            return Verdict("skipped", reason=f"not promised: {why}")
        return Verdict("fail", reason=f"refused, though every layer has to do this: {why}")
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # whatever a layer raises is a finding about it
        return Verdict("fail", reason=told(error))
    return session.worst()
