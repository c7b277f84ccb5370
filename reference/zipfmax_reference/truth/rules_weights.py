"""Rules of the weights: however they change, whoever holds them, whichever of them take gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from zipfmax_reference.runs.arrays import Results
from zipfmax_reference.truth.rules import rule
from zipfmax_reference.truth.session import CallSession


@rule(large=True)
def weights_written_in_place_count(s: CallSession) -> None:
    """The next call and its gradients are those of the new weights."""
    _new_weights_count(s, s.use.write)


@rule()
def weights_put_into_data_count(s: CallSession) -> None:
    """Where autograd does not see it: by `p.data.copy_(weight)`, and by `p.data = weight`."""
    _new_weights_count(
        s, lambda weights: s.use.write(weights, "data"), lambda weights: s.use.write(weights, "replace")
    )


@rule()
def loaded_weights_count(s: CallSession) -> None:
    """A state dict, loaded between two calls; a state dict holds the weights, before and after."""
    s.same("the state dict's {}", s.use.weights(), s.use.state())
    _new_weights_count(s, s.use.load)
    s.same("the state dict's {}", s.use.weights(), s.use.state())


def _new_weights_count(s: CallSession, *put: Callable[[Results], None]) -> None:
    """A call and its gradients before and after other weights are put into the module, in each manner."""
    s.called("x", "a")
    s.differentiated("x", "a")
    own = s.weights
    for turn, one in enumerate(put):
        s.weights = own if turn % 2 else s.other_weights()
        one(s.weights)
        s.called("y", "a")
        s.differentiated("y", "a")


@rule()
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


@rule()
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


@rule()
def frozen_weights_leave_the_inputs_gradient(s: CallSession) -> None:
    """And get none of their own; unfrozen ones get theirs again."""
    s.use.require(False)
    s.called("x", "a")
    s.use.backward("x", None, 1.0)
    found = s.use.gradients("a")
    s.judge_tensor(s.truth("a"), "grad.input", found["grad.input"])
    if any(gradient.any() for name, gradient in found.items() if name != "grad.input"):
        s.fail("a frozen weight got a gradient")
    s.use.require(True)
    s.called("y", "a")
    s.differentiated("y", "a")


@rule(large=True)
def weights_frozen_one_by_one_leave_the_others_gradients(s: CallSession) -> None:
    """As where only some clusters are tuned: one tail's output weight frozen, then everything but it."""
    names = [name for name in s.weights if name.startswith("tail.")] or list(s.weights)
    one, others = names[-1], [name for name in s.weights if name != names[-1]]
    for frozen in ([one], others):
        s.use.require(True)
        s.use.require(False, frozen)
        s.called("x", "a")
        s.use.clear()
        s.use.backward("x", None, 1.0)
        found, truth = s.use.gradients("a"), s.truth("a")
        for name, value in found.items():
            if name.removeprefix("grad.") not in frozen:
                s.judge_tensor(truth, name, value)
            elif value.any():
                s.fail(f"the frozen {name.removeprefix('grad.')} got a gradient")


@rule()
def an_input_without_gradient_leaves_those_of_the_weights(s: CallSession) -> None:
    """As where the trunk is frozen."""
    s.use.batch("a", *s.batches["a"], leaf=False)
    s.called("x", "a")
    s.use.backward("x", None, 1.0)
    for name, value in s.use.gradients("a").items():
        if name != "grad.input":
            s.judge_tensor(s.truth("a"), name, value)
