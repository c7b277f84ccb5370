"""Rules of unusual batches and weights, and of what becomes of the tensors that go in and come out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from zipfmax_reference.contestants.use import NotPromisedError
from zipfmax_reference.truth.rules import rule
from zipfmax_reference.truth.session import CallSession

BATCHES, MOST_ALIVE = 6, 2
"""Batches that are called and dropped, and of how many a layer may still hold a tensor or a result."""


@rule()
def any_mix_of_labels_is_right(s: CallSession) -> None:
    """One label; sorted ones, up and down; those of one cluster alone; and rows of zeros."""
    hidden, target = s.batches["a"]
    layout, numbers = s.case.layout, np.arange(len(target))
    spread = np.unique(np.linspace(0, layout.n_classes - 1, len(target)).astype(np.int64))
    mixes = {"one": np.full_like(target, target[-1]), "up": spread, "down": spread[::-1].copy()}
    mixes["shortlist"] = numbers % layout.shortlist_size
    mixes |= {f"tail {tail.index}": tail.start + numbers % tail.size for tail in layout}
    s.batches |= {name: (hidden[: len(labels)], labels) for name, labels in mixes.items()}
    s.batches["zeros"] = np.where(numbers[:, None] % 3 == 1, 0, hidden).astype(hidden.dtype), target
    for name in (*mixes, "zeros"):
        s.use.batch(name, *s.batches[name])
        s.called(name, name)
        s.differentiated(name, name)
    s.judge_methods("zeros")


@rule()
def a_batch_of_no_rows_is_a_batch(s: CallSession) -> None:
    """Its loss is not a number, as in torch.nn, and the next call is right."""
    hidden, target = s.batches["a"]
    s.batches["none"] = hidden[:0], target[:0]
    s.use.batch("none", *s.batches["none"])
    s.called("none", "none")
    s.judge_methods("none")
    s.called("x", "a")
    s.differentiated("x", "a")


@rule()
def a_batch_of_one_row_is_a_batch(s: CallSession) -> None:
    """Of a label of the shortlist, and of each tail; every method."""
    hidden, _ = s.batches["a"]
    layout = s.case.layout
    labels = (0, layout.n_classes - 1, *(tail.start for tail in layout))
    for row, label in enumerate(labels[: len(hidden)]):
        s.batches["row"] = hidden[row : row + 1], np.array([label])
        s.use.batch("row", *s.batches["row"])
        s.called("x", "row")
        s.differentiated("x", "row", s.upstream("row"), 1.0)
        s.judge_methods("row")


@rule()
def weights_of_zeros_are_weights(s: CallSession) -> None:
    """Of each tail's output, as they may begin, and of everything."""
    for kind in (".1.weight", ""):
        weights = {name: w * 0 if name.endswith(kind) else w for name, w in s.weights.items()}
        s.use.write(weights)
        s.weights = weights
        s.called("x", "a")
        s.differentiated("x", "a")
        s.judge_methods()


@rule()
def log_prob_and_predict_are_the_same_in_inference_mode(s: CallSession) -> None:
    """In training and in evaluation mode."""
    truth = s.truth_of_methods("a")
    for training in (True, False):
        s.use.mode(training)
        for method in ("log_prob", "predict"):
            s.judge_tensor(truth, method, s.use.evaluate(method, "a", mode="inference"))


@rule()
def a_call_leaves_the_module_and_its_inputs_as_they_are(s: CallSession) -> None:
    """Modes, parameters, names, flags and hooks stay; and of batches that are dropped only the last are held."""
    for leaf in (True, False):
        s.use.batch("a", *s.batches["a"], leaf=leaf)
        for training in (True, False):
            s.use.mode(training)
            before = s.use.traits("a")
            s.use.call("x", "a")
            s.use.backward("x", None, 1.0)
            s.use.call("y", "a", "no_grad")
            for method in ("log_prob", "predict"):
                s.use.evaluate(method, "a")
            after = s.use.traits("a")
            for name in before.keys() | after.keys():
                if before.get(name) != after.get(name):
                    s.fail(f"a call changes {name}")
    for _ in range(BATCHES):
        s.use.batch("new", *s.batches["b"])
        s.use.call("x", "new")
        s.use.backward("x", None, 1.0)
        for method in ("log_prob", "predict"):
            s.use.evaluate(method, "new", method)
        s.use.drop("new")
    if (alive := s.use.alive()) > MOST_ALIVE:
        s.fail(f"inputs or results of {alive} of {BATCHES} batches are held for good")


@rule()
def hooks_of_modules_run(s: CallSession) -> None:
    """Before and after a call and its backward; and what they return counts."""
    _hooks_run(s, of_all=False)


@rule(optional=True)
def hooks_of_all_modules_run(s: CallSession) -> None:
    """As profilers enter them. A layer that calls no submodule may refuse them."""
    _hooks_run(s, of_all=True)


@rule()
def methods_of_modules_are_kept(s: CallSession) -> None:
    """train, eval, parameters, state_dict with a prefix, zero_grad: what a larger model and its loop call."""
    if (fault := s.use.methods_fault("a")) is not None:
        s.fail(fault)
    s.called("x", "a")
    s.differentiated("x", "a")


def _hooks_run(s: CallSession, of_all: bool) -> None:
    if (fault := s.use.hooks_fault("a", of_all)) is not None:
        s.fail(fault)
    s.called("x", "a")
    s.differentiated("x", "a")


@rule()
def a_result_is_its_callers(s: CallSession) -> None:
    """What a caller writes into it shows nowhere else."""
    for _ in range(2):
        for method in ("log_prob", "predict"):
            s.use.evaluate(method, "a", method)
            s.use.scribble(method)
        s.judge_methods()
        s.called("x", "a", "no_grad")
        s.use.scribble("x")
        s.called("y", "a")
        s.differentiated("y", "a")
        s.use.scribble("y")


@rule()
def what_changes_before_backward_is_refused_or_does_not_count(s: CallSession) -> None:
    """Weights, input or targets that are written in place between a call and its backward. torch.nn raises."""
    truth, weights = s.truth("a"), dict(s.weights)
    hidden, target = s.batches["a"]
    changes: dict[str, Callable[[], None]] = {
        "weights": lambda: s.use.write(s.other_weights()),
        "input": lambda: s.use.refill("a", s.batches["b"][0], target),
        "targets": lambda: s.use.refill("a", hidden, target[::-1].copy()),
    }
    for name, change in changes.items():
        s.use.write(weights)
        s.use.batch("a", hidden, target)
        s.use.call(name, "a")
        change()
        s.use.clear()
        try:
            s.use.backward(name, None, 1.0)
        except Exception:  # what is raised refuses it
            continue
        for tensor, value in s.use.gradients("a").items():
            s.judge_tensor(truth, tensor, value)
    s.use.write(weights)
    s.use.batch("a", hidden, target)
    s.called("x", "a")
    s.differentiated("x", "a")


@rule()
def results_changed_in_place_are_refused_or_right(s: CallSession) -> None:
    """A loss that is divided in place, and an output that is cleared before the loss's backward."""
    changes: dict[str, tuple[Callable[[str], None], float]] = {
        "halved": (s.use.halve_loss, 0.5),
        "cleared": (s.use.clear_output, 1.0),
    }
    for name, (change, factor) in changes.items():
        s.called(name, "a")
        s.use.clear()
        try:
            change(name)
            s.use.backward(name, None, 1.0)
        except NotPromisedError:
            raise
        except Exception:  # what is raised refuses it
            continue
        s.judge_gradients("a", [("a", None, factor)])


@rule()
def a_graph_is_used_once_or_right(s: CallSession) -> None:
    """A second backward of a graph that was not kept raises, as torch's do, or gives the gradients again."""
    s.called("x", "a")
    s.differentiated("x", "a")
    s.use.clear()
    try:
        s.use.backward("x", None, 1.0)
    except Exception:  # what is raised refuses it
        return
    s.judge_gradients("a", [("a", None, 1.0)])
