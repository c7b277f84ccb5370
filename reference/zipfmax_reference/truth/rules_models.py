"""Rules of a layer that is a part of a model: in a checkpoint, with computed weights, under its user's settings."""

from __future__ import annotations

import numpy as np

from zipfmax_reference.contestants.use import Setting
from zipfmax_reference.truth.rules import rule
from zipfmax_reference.truth.session import CallSession


@rule(large=True)
def settings_of_the_process_change_no_result(s: CallSession) -> None:
    """Several threads, the search for anomalies, and algorithms that have to be deterministic.

    With the last, torch fills memory that nobody has written to with NaN.
    """
    settings: tuple[Setting, ...] = ("threads", "anomaly", "deterministic")
    for setting in settings:
        s.use.setting(setting)
        s.called("x", "a")
        s.differentiated("x", "a", s.upstream("a"), 0.5)
        s.judge_methods()


@rule(dtypes=("float32",))
def products_of_lower_precision_are_within_it(s: CallSession) -> None:
    """As under autocast: rounded weights and input, where a user lets products round them, and exact after it."""
    s.use.setting("coarse")
    results = s.use.call("x", "a")
    s.use.clear()
    s.use.backward("x", None, 1.0)
    s.judge_autocast(results, "a")
    s.judge_methods_under_autocast("a", mode="no_grad")
    s.use.setting("exact")
    s.called("y", "a")
    s.differentiated("y", "a")
    s.judge_methods()


@rule(large=True)
def a_checkpointed_call_is_right(s: CallSession) -> None:
    """It is made again in backward, and broken off there once all that is needed is known; and the next call."""
    for call, batch in enumerate("aba"):
        s.called(f"call {call}", batch, "checkpoint")
        s.differentiated(f"call {call}", batch, s.upstream(batch), 0.5)
    s.called("x", "a")
    s.differentiated("x", "a")
    s.judge_methods()


@rule(optional=True)
def weights_may_be_computed(s: CallSession) -> None:
    """By torch.func.functional_call, as where they are parametrised or shared: gradients reach the parameters."""
    for weights in (s.weights, s.other_weights()):
        s.use.write(weights)
        s.weights = weights
        s.called("x", "a", "computed")
        s.differentiated("x", "a", s.upstream("a"), 0.5)
    s.called("y", "b")
    s.differentiated("y", "b")


@rule()
def the_input_may_be_a_parameter(s: CallSession) -> None:
    """As a learned prompt or table of embeddings is."""
    s.called("x", "a", "parameter")
    s.differentiated("x", "a")


@rule()
def hooks_of_tensors_run(s: CallSession) -> None:
    """On gradients of input and weights, once each; what they return counts. Optimizers and DDP live on them.

    In a batch of the shortlist only, too, where those of tails have no gradient to run with.
    """
    for batch in "ac":
        s.called("x", batch)
        s.use.hook_gradients(batch)
        for call in "yz":
            s.called(call, batch)
        s.use.clear()
        s.use.backward("y", None, 1.0)
        if (fault := s.use.unhook_gradients()) is not None:
            s.fail(fault)
        s.judge_gradients(batch, [(batch, None, 2.0)])
        s.differentiated("z", batch)


@rule()
def every_number_of_rows_is_a_batch(s: CallSession) -> None:
    """One more each time, and then as many as before: more shapes than a cache of plans may hold."""
    hidden, target = s.batches["a"]
    for n_rows in (*range(1, len(target)), 1, len(target)):
        s.batches["rows"] = hidden[:n_rows], target[:n_rows]
        s.use.batch("rows", *s.batches["rows"])
        s.called("x", "rows")
        s.differentiated("x", "rows")


@rule()
def a_batch_may_be_larger_than_all_before(s: CallSession) -> None:
    """In value: a thousandth, and then all of it; no result depends on the largest magnitude so far."""
    hidden, target = s.batches["a"]
    for name, factor in (("little", 2.0**-10), ("all", 1.0), ("much", 2.0**4)):
        s.batches[name] = (hidden * factor).astype(hidden.dtype), target
        s.use.batch(name, *s.batches[name])
        s.called("x", name)
        s.differentiated("x", name)
        s.judge_methods(name)


@rule()
def a_bias_may_rule_out_classes(s: CallSession) -> None:
    """A class of the shortlist, and the last cluster, by minus infinity: as probable as by a number far below."""
    if "head.bias" not in s.weights:
        return
    layout, bias = s.case.layout, s.weights["head.bias"]
    last = layout.tails[-1]
    hidden, target = s.batches["a"]
    for slot, ruled_out in ((0, slice(0, 1)), (last.slot, slice(last.start, last.stop))):
        left = np.delete(np.arange(layout.n_classes), ruled_out)
        s.batches["a"] = hidden, left[target % len(left)]
        s.use.batch("a", *s.batches["a"])
        infinite, finite = bias.copy(), bias.copy()
        infinite[slot], finite[slot] = -np.inf, FAR_BELOW
        s.use.write(s.weights | {"head.bias": infinite})
        s.weights = s.weights | {"head.bias": finite}
        s.called("x", "a")
        s.differentiated("x", "a")
        _judge_without(s, ruled_out)


FAR_BELOW = -10_000.0
"""A logit of which no dtype knows a probability."""


def _judge_without(s: CallSession, ruled_out: slice) -> None:
    """Judge `predict`, and `log_prob` but for these classes, which have to have minus infinity."""
    truth = s.truth_of_methods("a")
    s.judge_tensor(truth, "predict", s.use.evaluate("predict", "a"))
    log_prob = s.use.evaluate("log_prob", "a")
    if not np.isneginf(log_prob[:, ruled_out]).all():
        s.fail("log_prob of a class that a bias of minus infinity rules out is not minus infinity")
    log_prob[:, ruled_out] = truth.values["log_prob"][:, ruled_out]
    s.judge_tensor(truth, "log_prob", log_prob)


@rule(dtypes=("float32", "float64"))
def logits_may_all_be_far_below_zero(s: CallSession) -> None:
    """Of the head and of each tail: a part that all classes share, and of which no probability depends."""
    weights = {}
    for name, weight in s.weights.items():
        weights[name] = weight
        if name == "head.weight" or name.endswith(".1.weight"):
            shared = weight[:1]
            shared = shared * (-FAR_BELOW / max(np.abs(shared).mean(), 1.0) if shared.size else 0.0)
            weights[name] = (weight + shared).astype(weight.dtype)
    s.use.write(weights)
    s.weights = weights
    s.called("x", "a")
    s.differentiated("x", "a")
    s.judge_methods()
