"""Rules of the weights: however they change, whoever holds them, whichever of them take gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from zipfmax_reference.contestants.use import Misfit
from zipfmax_reference.runs.arrays import Results
from zipfmax_reference.truth.rules import rule
from zipfmax_reference.truth.session import CallSession

WIDER = {"float32": "float64", "float64": "float32"}
"""What a layer of each dtype is converted to; those of 16 bits to float32."""


@rule(large=True)
def weights_written_in_place_count(s: CallSession) -> None:
    """The next call and its gradients are those of the new weights."""
    _new_weights_count(s, s.use.write)


@rule()
def weights_put_into_data_count(s: CallSession) -> None:
    """Where autograd does not see it: by `p.data.copy_(weight)`, and by `p.data = weight`.

    Also column by column, and behind other numbers, as in one flat buffer.
    """
    _new_weights_count(
        s,
        lambda weights: s.use.write(weights, "data"),
        lambda weights: s.use.write(weights, "replace"),
        lambda weights: s.use.write(weights, "turn"),
        lambda weights: s.use.write(weights, "flat"),
        methods=True,
    )


@rule()
def loaded_weights_count(s: CallSession) -> None:
    """A state dict, whole or of one weight, loaded between calls; it holds the weights, in each mode."""
    _state_is_the_weights(s)
    _new_weights_count(s, s.use.load)
    _state_is_the_weights(s)
    name = next(iter(s.weights))
    s.weights = s.weights | {name: -s.weights[name]}
    s.use.load({name: s.weights[name]}, partly=True)
    s.called("z", "a")


@rule()
def assigned_weights_count(s: CallSession) -> None:
    """A state dict whose tensors become the parameters, as a layer that was made without memory is loaded."""
    _new_weights_count(s, lambda weights: s.use.load(weights, assign=True))
    _state_is_the_weights(s)
    s.use.write(s.weights)
    s.judge_methods()


@rule()
def a_state_dict_that_does_not_fit_is_refused(s: CallSession) -> None:
    """Where a weight is missing, unexpected or of another shape; and the layer is what it was."""
    kinds: dict[Misfit, str] = {
        "missing": "lacks {}",
        "unexpected": "has one more than {}",
        "shape": "has a row too many in {}",
    }
    before = s.use.weights()
    for name in (next(iter(s.weights)), [*s.weights][-1]):
        for misfit, words in kinds.items():
            if s.use.takes(misfit, name):
                s.fail(f"a state dict is taken that {words.format(name)}")
    s.same("the weight {}", before, s.use.weights())
    s.called("x", "a")
    s.differentiated("x", "a")


@rule(optional=True)
def a_copy_is_a_layer_of_its_own(s: CallSession) -> None:
    """A copy.deepcopy after a call, as an average of weights is kept: each follows its own weights."""
    _copied(s, "deepcopy")


@rule(optional=True)
def a_layer_that_was_pickled_is_the_same_function(s: CallSession) -> None:
    """As where it is saved whole, or sent to another process."""
    _copied(s, "pickle")


def _copied(s: CallSession, manner: Literal["deepcopy", "pickle"]) -> None:
    """A copy and the first one, in turn, while the weights of each change."""
    s.called("x", "a")
    s.differentiated("x", "a")
    s.use.duplicate(manner)
    own, others = s.weights, s.other_weights()
    for turn, weights in enumerate((own, others, own)):
        s.use.exchange()
        if turn == 1:
            s.use.write(others)
        s.weights = weights
        s.use.clear()
        s.called("y", "b")
        s.differentiated("y", "b")
        s.judge_methods()


@rule(optional=True)
def another_dtype_is_the_same_function(s: CallSession) -> None:
    """After module.to(dtype), there and back, between calls."""
    first = s.case.dtype
    s.called("x", "a")
    s.differentiated("x", "a")
    for dtype in (WIDER.get(first, "float32"), first):
        s.converted(dtype)
        s.called("y", "a")
        s.differentiated("y", "a")
        s.judge_methods()


def _state_is_the_weights(s: CallSession) -> None:
    for training in (True, False, True):
        s.use.mode(training)
        s.same("the state dict's {}", s.use.weights(), s.use.state())


def _new_weights_count(s: CallSession, *put: Callable[[Results], None], methods: bool = False) -> None:
    """A call, its gradients and other methods before and after other weights are put in, in each manner."""
    if methods:
        s.judge_methods()
    s.called("x", "a")
    s.differentiated("x", "a")
    own = s.weights
    for turn, one in enumerate(put):
        s.weights = own if turn % 2 else s.other_weights()
        one(s.weights)
        if methods:
            s.judge_methods()
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
    """And get none of their own, while evaluating too; unfrozen ones get theirs again."""
    s.use.require(False)
    for training in (True, False):
        s.use.mode(training)
        s.use.clear()
        s.called("x", "a")
        s.use.backward("x", None, 1.0)
        found = s.use.gradients("a")
        s.judge_tensor(s.truth("a"), "grad.input", found["grad.input"])
        if any(gradient.any() for name, gradient in found.items() if name != "grad.input"):
            s.fail("a frozen weight got a gradient")
    s.use.mode(True)
    s.use.require(True)
    s.called("y", "a")
    s.differentiated("y", "a")


@rule(large=True)
def weights_frozen_one_by_one_leave_the_others_gradients(s: CallSession) -> None:
    """As where only some clusters are tuned: each weight frozen, everything but it, and each kind of weight.

    With an input that takes a gradient, and with one that takes none.
    """
    names = list(s.weights)
    kinds = [[n for n in names if n.endswith(kind)] for kind in (".0.weight", ".1.weight")]
    kinds += [[n for n in names if n.startswith(part)] for part in ("head.", "tail.", "tail.0.")]
    frozen = [[name] for name in names] + kinds
    frozen += [[name for name in names if name not in some] for some in frozen]
    for leaf in (True, False):
        s.use.batch("a", *s.batches["a"], leaf=leaf)
        for some in frozen:
            _frozen(s, some, leaf)


def _frozen(s: CallSession, frozen: Sequence[str], leaf: bool) -> None:
    """A step with these weights frozen."""
    s.use.require(True)
    s.use.require(False, frozen)
    s.called("x", "a")
    s.use.clear()
    truth = s.truth("a")
    taking = [f"grad.{name}" for name in s.weights if name not in frozen] + ["grad.input"] * leaf
    if not any(truth.values[name].any() for name in taking):
        return  # the loss depends on none of them: nothing can be differentiated
    s.use.backward("x", None, 1.0)
    found = s.use.gradients("a")
    for name, value in found.items():
        if name in taking:
            s.judge_tensor(truth, name, value)
        elif value.any():
            s.fail(f"{name.removeprefix('grad.')}, which takes no gradient, got one")


@rule()
def an_input_without_gradient_leaves_those_of_the_weights(s: CallSession) -> None:
    """As where the trunk is frozen."""
    s.use.batch("a", *s.batches["a"], leaf=False)
    s.called("x", "a")
    s.use.backward("x", None, 1.0)
    for name, value in s.use.gradients("a").items():
        if name != "grad.input":
            s.judge_tensor(s.truth("a"), name, value)
