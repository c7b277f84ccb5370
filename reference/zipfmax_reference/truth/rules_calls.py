"""Rules of the results of calls: whichever call it is, in whichever mode, by whichever method."""

from __future__ import annotations

import numpy as np

from zipfmax_reference.contestants.use import Gaps
from zipfmax_reference.truth.rules import rule
from zipfmax_reference.truth.session import CallSession

LATER = 64
"""Calls between an early and a late one."""


@rule(large=True)
def later_calls_are_right(s: CallSession) -> None:
    """Batch after batch, the first a small one of frequent labels only; others twice; and after a dozen."""
    for call, batch in enumerate("cabcab"):
        s.called(f"call {call}", batch)
    for call in range(LATER):
        s.use.call(f"later {call}", "c")
    s.called("last", "a")
    s.differentiated("last", "a")


@rule()
def an_earlier_result_stays(s: CallSession) -> None:
    """What a call returned holds its values through later calls and their backwards."""
    before = s.use.call("first", "a")
    kept = {method: s.use.evaluate(method, "a", method) for method in ("log_prob", "predict")}
    for call, batch in enumerate("bcab"):
        s.use.call(f"call {call}", batch)
        s.use.backward(f"call {call}", None, 1.0)
    for method in kept:
        s.use.evaluate(method, "b")
    s.same("the {} of an earlier call", before, s.use.read("first"))
    for method, value in kept.items():
        s.same("the {} of an earlier call", {method: value}, s.use.read(method))


@rule()
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


@rule()
def new_values_in_the_same_tensors_count(s: CallSession) -> None:
    """A batch written over in place is a new batch."""
    s.called("x", "a")
    s.use.refill("a", *s.batches["b"])
    s.batches["a"] = s.batches["b"]
    s.called("y", "a")
    s.differentiated("y", "a")


@rule()
def new_labels_for_the_same_input_count(s: CallSession) -> None:
    """The same hidden states with the labels of other rows."""
    s.called("x", "a")
    hidden, target = s.batches["a"]
    s.batches["a"] = hidden, target[::-1].copy()
    s.use.refill("a", *s.batches["a"])
    s.called("y", "a")
    s.differentiated("y", "a")


@rule(large=True)
def a_new_batch_may_lie_where_an_old_one_lay(s: CallSession) -> None:
    """As an allocator places it, once the old one is gone: the same addresses, shapes and version counters."""
    hidden, target = s.batches["a"]
    s.batches |= {"new": s.batches["b"], "mixed": (hidden, target[::-1].copy())}
    before = "a"
    for batch in ("new", "mixed", "b"):
        for method in ("log_prob", "predict"):
            s.use.evaluate(method, before)
        s.called("x", before)
        s.use.backward("x", None, 1.0)
        s.use.batch(batch, *s.batches[batch], over=before)
        s.called("y", batch)
        s.differentiated("y", batch)
        s.judge_methods(batch)
        before = batch


@rule()
def a_result_is_a_plain_tensor_in_the_graph(s: CallSession) -> None:
    """Of the input's dtype, differentiable where it is recorded, no subclass that computes when it is read."""
    for mode in ("no_grad", "record"):
        s.use.call(mode, "a", mode)
        if (fault := s.use.form(mode)) is not None:
            s.fail(fault)


@rule()
def batches_may_have_gaps(s: CallSession) -> None:
    """An input whose numbers, or rows, are those of a wider tensor, and one that lies column by column.

    Input and targets that lie behind others, as where labels are shifted; one target, expanded to all rows.
    """
    kinds: tuple[Gaps, ...] = ("columns", "rows", "turned", "before", "once")
    for gaps in kinds:
        if gaps == "once":
            hidden, target = s.batches["a"]
            s.batches["a"] = hidden, np.full_like(target, target.max())
        s.use.batch("a", *s.batches["a"], gaps=gaps)
        s.called("x", "a")
        s.differentiated("x", "a")
        s.judge_methods()


@rule(optional=True)
def one_row_is_a_batch_of_one(s: CallSession) -> None:
    """A hidden state [d] with a target [], as torch.nn takes them; its neighbours in the batch do not count."""
    for row in range(3):
        results = s.use.call("one", "a", row=row)
        if results["output"].shape != ():
            s.fail(f"output has shape {results['output'].shape} for one row")
            return
        hidden, target = s.batches["a"]
        s.batches["one"] = hidden[row : row + 1], target[row : row + 1]
        s.judge({**results, "output": results["output"].reshape(1)}, "one")
        s.use.clear()
        s.use.backward("one", None, 1.0)
        s.judge_gradients("a", [("one", None, 1.0)])
        of_input = s.use.gradients("a")["grad.input"][row : row + 1]
        s.judge_tensor(s.truth("one"), "grad.input", of_input)


@rule()
def a_call_without_gradients_is_the_same_function(s: CallSession) -> None:
    """Under no_grad, and between a call and its backward."""
    s.called("x", "a")
    s.called("y", "b", "no_grad")
    s.called("z", "a", "no_grad")
    s.differentiated("x", "a")
    s.called("w", "b")
    s.differentiated("w", "b")


@rule()
def a_call_in_inference_mode_is_the_same_function(s: CallSession) -> None:
    """As the first one of all, before training, and between a call and its backward."""
    s.called("x", "a", "inference")
    s.called("y", "b")
    s.called("z", "b", "inference")
    s.differentiated("y", "b")


@rule()
def a_call_under_other_defaults_is_right(s: CallSession) -> None:
    """The dtype and device of what torch makes where none is given are no concern of input and weights."""
    s.called("x", "a", "default")
    s.differentiated("x", "a")
    s.called("y", "a")


@rule()
def a_call_in_another_thread_is_right(s: CallSession) -> None:
    """As where replicas or a server's workers make it: between two calls of this thread, and its backward here."""
    s.called("x", "a")
    s.called("y", "b", "thread")
    s.differentiated("x", "a")
    s.differentiated("y", "b")
    s.called("z", "a")


@rule(large=True)
def evaluation_mode_is_the_same_function(s: CallSession) -> None:
    """And training mode after it."""
    s.use.mode(False)
    s.called("x", "a")
    s.differentiated("x", "a")
    s.judge_methods()
    s.use.mode(True)
    s.called("y", "b")
    s.differentiated("y", "b")


@rule(large=True)
def evaluation_without_gradients_follows_the_weights(s: CallSession) -> None:
    """Under no_grad and in inference mode, before and after the weights have changed, as between two epochs."""
    for weights in (s.weights, s.other_weights()):
        s.use.write(weights)
        s.weights = weights
        s.use.mode(False)
        s.called("x", "a", "no_grad")
        s.called("y", "b", "inference")
        s.use.mode(True)


@rule()
def other_methods_leave_a_call_alone(s: CallSession) -> None:
    """`log_prob` and `predict` between a call and its backward."""
    s.called("x", "a")
    s.use.evaluate("log_prob", "b")
    s.use.evaluate("predict", "a")
    s.differentiated("x", "a")


@rule(large=True)
def log_prob_and_predict_follow_the_weights(s: CallSession) -> None:
    """Once more after the weights have changed, in training mode and while evaluating, as averages are tried."""
    own, others = s.weights, s.other_weights()
    for weights in (own, others):
        s.use.write(weights)
        s.weights = weights
        s.judge_methods()
    s.use.mode(False)
    for weights in (own, others):
        s.use.write(weights)
        s.weights = weights
        s.judge_methods()
        s.called("x", "a", "no_grad")


@rule(optional=True, dtypes=("float32",))
def autocast_keeps_to_its_precision(s: CallSession) -> None:
    """Under autocast to bfloat16 a result is as exact as rounded weights and input allow, or more; in each mode."""
    for training in (True, False):
        s.use.mode(training)
        results = s.use.call("x", "a", "autocast")
        s.use.clear()
        s.use.backward("x", None, 1.0)
        s.judge_autocast(results, "a")
    s.use.mode(True)
    s.called("y", "b")
    s.use.clear()
    s.differentiated("y", "b")


@rule(optional=True, dtypes=("float32",))
def log_prob_and_predict_keep_to_the_precision_of_autocast(s: CallSession) -> None:
    """Under it in each mode, and as exact as ever after it."""
    for training in (True, False):
        s.use.mode(training)
        s.judge_methods_under_autocast("a")
    s.judge_methods()
