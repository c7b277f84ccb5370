"""Rules of what surrounds a call: wrong targets, and the state of the process."""

from __future__ import annotations

from collections.abc import Callable

from zipfmax_reference.contestants import surroundings
from zipfmax_reference.truth.rules import rule
from zipfmax_reference.truth.session import CallSession


@rule(devices=("cpu",))
def a_target_out_of_range_raises(s: CallSession) -> None:
    """And the next call is right."""
    hidden, target = s.batches["a"]
    for wrong in (-1, -100, s.case.n_classes, s.case.n_classes + 1):
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


@rule(devices=("cpu",))
def targets_of_32_bits_are_right_or_refused(s: CallSession) -> None:
    """torch.nn refuses them. The next call is right."""
    s.use.batch("narrow", *s.batches["a"], narrow=True)
    try:
        results = s.use.call("narrow", "narrow")
    except Exception:  # what the layer raises refuses them
        pass
    else:
        s.judge(results, "a")
    s.called("x", "a")
    s.differentiated("x", "a")


@rule()
def the_surroundings_stay(s: CallSession) -> None:
    """Modes, defaults, threads and random numbers are the caller's."""
    made = s.use.surroundings_before()
    before = s.use.surroundings()
    s.unchanged("making the layer changes {}", made, before, but=surroundings.RANDOM)
    before = s.use.surroundings(stirred=True)
    steps: dict[str, Callable[[], object]] = {
        "a call": lambda: s.use.call("x", "a"),
        "backward": lambda: s.use.backward("x", None, 1.0),
        "a call under no_grad": lambda: s.use.call("y", "a", "no_grad"),
        "log_prob": lambda: s.use.evaluate("log_prob", "a"),
        "predict": lambda: s.use.evaluate("predict", "a"),
    }
    for mode in (True, False):
        s.use.mode(mode)
        for name, step in steps.items():
            step()
            s.unchanged(f"{name} changes {{}}", before, s.use.surroundings())
