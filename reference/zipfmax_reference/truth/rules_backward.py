"""Rules of backward: whatever comes in, through which results, in which order."""

from __future__ import annotations

import numpy as np

from zipfmax_reference.contestants.use import Gaps, NotPromisedError
from zipfmax_reference.runs.arrays import Array
from zipfmax_reference.truth.rules import rule
from zipfmax_reference.truth.session import CallSession

FEW = 3
"""Rows of whose every log-probability the gradient is asked."""
STEP = 1e-4
"""Of the difference that a second derivative is held against, in float64."""
CURVATURE_ERROR = {"float64": 1e-5, "float32": 1e-3}
"""Allowed of it, relative to its largest element; the difference itself is off by about 1e-8. Dtypes of 16 bits are
not asked: their own error is as large as a fault's."""


@rule(large=True)
def the_incoming_gradient_counts(s: CallSession) -> None:
    """A loss that gradient accumulation or a loss scaler scales up or down, that has its sign turned, or is zero."""
    half = s.case.dtype == "float16"
    large, small = (2.0**10, 2.0**-2) if half else (2.0**20, 2.0**-30)
    for call, factor in enumerate((0.5, -3.0, large, small, 0.0, 1.0)):
        s.called(f"call {call}", "a")
        s.differentiated(f"call {call}", "a", grad_loss=factor)


@rule(large=True)
def output_can_be_differentiated(s: CallSession) -> None:
    """With a random gradient for each row, also a large one; and one of zeros in some rows, whose sum is zero."""
    upstream = s.upstream("a")
    balanced = np.resize([0.0, 1.0, -1.0], len(upstream) // 3 * 3)
    balanced = np.pad(balanced, (0, len(upstream) - len(balanced)))
    for call, gradient in (("x", upstream), ("y", 2.0**6 * upstream), ("z", balanced)):
        s.called(call, "a")
        s.differentiated(call, "a", gradient, None)


@rule()
def output_can_be_summed(s: CallSession) -> None:
    """All rows' gradient is one number in memory then; only output, and with the loss."""
    s.called("x", "a")
    s.differentiated("x", "a", -0.25, None)
    s.called("y", "b")
    s.differentiated("y", "b", 0.125, 0.5)


@rule()
def gradients_that_come_in_may_have_gaps(s: CallSession) -> None:
    """As from a loss that stacks, transposes or sums up: of output, of both results, and of log_prob."""
    for call, grad_loss in (("x", None), ("y", 0.5)):
        s.called(call, "a")
        s.differentiated(call, "a", s.upstream("a"), grad_loss, gaps="columns")
    upstream = _few(s)
    kinds: tuple[Gaps, ...] = ("columns", "rows", "turned")
    for gaps in kinds:
        _log_prob_differentiated(s, upstream, gaps)
    _log_prob_differentiated(s, np.broadcast_to(0.25, upstream.shape))


@rule()
def output_and_loss_can_be_differentiated_together(s: CallSession) -> None:
    """In one backward, and then the loss only again."""
    s.called("x", "a")
    s.differentiated("x", "a", s.upstream("a"), 0.7)
    s.called("y", "a")
    s.differentiated("y", "a")


@rule()
def log_prob_can_be_differentiated(s: CallSession) -> None:
    """As where a model is distilled: with a gradient for each class of a few rows; while evaluating too."""
    upstream = _few(s)
    for training in (True, False):
        s.use.mode(training)
        _log_prob_differentiated(s, upstream)


@rule(large=True)
def log_prob_of_a_whole_batch_can_be_differentiated(s: CallSession) -> None:
    """With a gradient for the class of each row's label: those of the outputs; and it is the same log_prob."""
    upstream, labels = s.upstream("a"), s.batches["a"][1]
    of_classes = np.zeros((len(labels), s.case.n_classes))
    of_classes[np.arange(len(labels)), labels] = upstream
    found = s.use.evaluate("log_prob", "a", "x", mode="record")
    s.judge_tensor(s.truth_of_methods("a"), "log_prob", found)
    s.use.backward("x", of_classes, None)
    s.judge_gradients("a", [("a", upstream, None)])


def _few(s: CallSession) -> Array:
    """Make the batch "few"; gradients of its log_prob."""
    hidden, target = s.batches["c"]
    s.batches["few"] = hidden[:FEW], target[:FEW]
    s.use.batch("few", *s.batches["few"])
    return np.random.default_rng(8).integers(-4, 5, (len(target[:FEW]), s.case.n_classes)) / 4


def _log_prob_differentiated(s: CallSession, upstream: Array, gaps: Gaps = "none") -> None:
    s.use.clear()
    s.use.evaluate("log_prob", "few", "few", mode="record")
    same = upstream.strides == (0, 0)
    s.use.backward("few", float(upstream[0, 0]) if same else upstream, None, gaps=gaps)
    s.judge_gradients_of_log_prob("few", upstream)


@rule()
def what_is_not_finite_shows(s: CallSession) -> None:
    """A gradient that comes in, as of an overflow that a loss scaler looks for; a weight of a run that is lost."""
    truth = s.truth("a")
    reached = [name for name in ("grad.input", "grad.head.weight") if truth.values[name].any()]
    for value in (np.inf, np.nan):
        rows = np.zeros(len(s.batches["a"][1]))
        rows[0] = value
        for call, gradients in (("loss", (None, value)), ("output", (rows, None))):
            s.called(call, "a")
            s.use.clear()
            s.use.backward(call, *gradients)
            found = s.use.gradients("a")
            for name in reached:
                if np.isfinite(found[name]).all():
                    s.fail(f"{name} is finite though {value} comes in for {call}")
    parts = {"head.weight": 0} | {f"tail.{tail.index}.1.weight": tail.start for tail in s.case.layout}
    for name, label in parts.items():
        weight = s.weights[name].copy()
        weight[:1] = np.nan
        s.use.write(s.weights | {name: weight})
        hidden, target = s.batches["a"]
        s.use.batch("label", hidden, np.full_like(target, label))
        if weight.size and np.isfinite(s.use.call("x", "label", "no_grad")["loss"]).any():
            s.fail(f"the loss is finite though {name} is not")
    s.use.write(s.weights)
    s.called("x", "a")
    s.differentiated("x", "a")


@rule()
def gradients_accumulate(s: CallSession) -> None:
    """Over two batches, without being dropped between them; twice, first onto those of a batch of the shortlist."""
    for _ in range(2):
        s.use.clear()
        for call, (batch, of_loss) in enumerate((("c", 1.0), ("a", 0.5), ("c", 1.0))):
            s.called(f"call {call}", batch)
            s.use.backward(f"call {call}", None, of_loss)
        s.judge_gradients("a", [("a", None, 0.5), ("c", None, 1.0), ("c", None, 1.0)])
    s.use.clear()
    s.called("x", "a")
    s.use.backward("x", None, 1.0)
    s.called("y", "b")
    s.use.backward("y", None, 0.5)
    backwards = [("a", None, 1.0), ("b", None, 0.5)]
    s.judge_gradients("a", backwards)
    s.judge_gradients("b", backwards)


@rule(large=True)
def losses_of_several_calls_can_be_added_up(s: CallSession) -> None:
    """One backward of the sum, as where two heads or two micro-batches make one loss."""
    calls = {f"call {number}": batch for number, batch in enumerate("abab")}
    for call, batch in calls.items():
        s.called(call, batch)
    s.use.backward_of_sum([*calls])
    for batch in "ab":
        s.judge_gradients(batch, [(of, None, 1.0) for of in calls.values()])


@rule()
def backwards_may_come_later_and_in_any_order(s: CallSession) -> None:
    """Two calls first, then both backwards, the first one last."""
    s.called("x", "a")
    s.called("y", "b")
    s.differentiated("y", "b")
    s.differentiated("x", "a")


@rule()
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


@rule()
def gradients_may_be_set_to_zero_in_place(s: CallSession) -> None:
    """By zero_grad(set_to_none=False); the next ones are left in the same tensors, as flat buffers need them."""
    for call, batch in enumerate("aba"):
        s.use.clear(to_zero=call > 0)
        s.called(f"call {call}", batch)
        s.use.backward(f"call {call}", None, 1.0)
        s.judge_gradients(batch, [(batch, None, 1.0)])
        if call:
            s.same(
                "the tensor that held {} before",
                s.use.gradients("c"),
                {**s.use.gradients("c"), **s.use.kept()},
            )
        s.use.keep("c")


@rule()
def gradients_may_be_asked_for_without_being_left(s: CallSession) -> None:
    """By torch.autograd.grad, without gradients in the leaves and beside some."""
    s.called("x", "a")
    s.asked("x", "a")
    s.called("y", "b")
    s.differentiated("y", "b")
    s.called("z", "a")
    s.asked("z", "a")
    s.judge_gradients("b", [("b", None, 1.0)])


@rule()
def the_input_may_be_computed(s: CallSession) -> None:
    """From a tensor that takes the gradient, as where a trunk is below."""
    s.called("x", "a", through=True)
    s.differentiated("x", "a")
    s.called("y", "b", through=True)
    s.differentiated("y", "b", s.upstream("b"), 0.5)


@rule(optional=True)
def a_graph_that_is_kept_can_be_used_twice(s: CallSession) -> None:
    """backward(retain_graph=True) and backward, with other incoming gradients."""
    s.called("x", "a")
    s.differentiated("x", "a", grad_loss=2.0, retain=True)
    s.differentiated("x", "a", s.upstream("a"), 0.5)


@rule(optional=True, dtypes=tuple(CURVATURE_ERROR))
def a_second_derivative_is_right(s: CallSession) -> None:
    """By input and weights, of a loss with a penalty on its gradients, half their squared norm.

    By a difference of the definition's first derivatives.
    """
    found, constants = s.use.curvature("a")
    first = {name: value for name, value in s.truth("a").values.items() if name.startswith("grad.")}
    taken = {name: value.astype(np.float64) * (name not in constants) for name, value in first.items()}
    (hidden, target), weights = s.batches["a"], s.weights
    moved = []
    for sign in (1, -1):
        s.batches["a"] = hidden + sign * STEP * taken["grad.input"], target
        s.weights = {n: w + sign * STEP * taken[f"grad.{n}"] for n, w in weights.items()}
        moved.append(s.truth("a").values)
    for name, gradient in first.items():
        second = (moved[0][name] - moved[1][name]).astype(np.float64) / (2 * STEP)
        error = np.abs(found[name] - gradient.astype(np.float64) - second).max(initial=0)
        allowed = CURVATURE_ERROR[s.case.dtype] * np.abs(second).max(initial=0)
        if not error <= allowed:
            s.fail(f"the second derivative by {name[5:]} is off by {error:.3g}, {allowed:.3g} is allowed")
    if constants:
        raise NotPromisedError(f"constants, though create_graph=True was said: {', '.join(constants)}")
