"""Rules of what surrounds a call: wrong targets, and the state of the process."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from zipfmax_reference.contestants import surroundings
from zipfmax_reference.contestants.use import CallMode
from zipfmax_reference.runs.arrays import Array, Labels
from zipfmax_reference.truth.rules import rule
from zipfmax_reference.truth.session import CallSession

OTHER_KINDS = ("int32", "int16", "uint8", "float32", "bool")


@rule(devices=("cpu",))
def a_target_out_of_range_raises(s: CallSession) -> None:
    """Wherever it stands, whether gradients are recorded or not, in each mode; and the next call is right."""
    n_classes = s.case.n_classes
    before = s.use.traits("a")
    modes: tuple[CallMode, ...] = ("record", "no_grad", "inference")
    for wrong in (-1, -2, -100, -n_classes, n_classes, n_classes + 1, 2**31, 2**32, -(2**63)):
        for training in (True, False):
            s.use.mode(training)
            for row in (0, len(s.batches["a"][1]) // 2, -1):
                hidden, labels = _with_target(s, row, wrong)
                s.use.batch("wrong", hidden, labels)
                for mode in modes:
                    if _takes(s, "wrong", mode):
                        s.fail(f"a target of {wrong} is taken without an error, {_when(mode, training)}")
            if not training or s.use.traits("a") == before:
                continue
            s.fail("a target that is refused changes the module, as its mode or its parameters")
    s.use.mode(True)
    s.called("x", "a")
    s.differentiated("x", "a")


def _with_target(s: CallSession, row: int, wrong: int) -> tuple[Array, Labels]:
    hidden, target = s.batches["a"]
    labels = target.copy()
    labels[row] = wrong
    return hidden, labels


def _takes(s: CallSession, batch: str, mode: CallMode = "record") -> bool:
    try:
        s.use.call(batch, batch, mode)
    except Exception:  # what the layer raises refuses them
        return False
    return True


def _when(mode: CallMode, training: bool) -> str:
    recorded = {"record": "with gradients", "no_grad": "under no_grad", "inference": "in inference mode"}
    return f"{recorded[mode]} in {'training' if training else 'evaluation'} mode"


@rule(devices=("cpu",))
def targets_of_other_kinds_are_right_or_refused(s: CallSession) -> None:
    """Other dtypes, targets in a column, one too few and one too many. torch.nn refuses them.

    The next call is right.
    """
    hidden, target = s.batches["a"]
    few = np.minimum(target, 1)
    for kind in OTHER_KINDS:
        s.batches["kind"] = hidden, few if kind == "bool" else target
        s.use.batch("kind", *s.batches["kind"], labels=kind)
        if _takes(s, "kind"):
            s.judge(s.use.read("kind"), "kind")
    s.use.batch("column", hidden, target, column=True)
    if _takes(s, "column"):
        s.judge(s.use.read("column"), "a")
    for n_rows in (len(target) - 1, 1, 0):
        s.use.batch("few", hidden, target[:n_rows])
        s.use.batch("many", hidden[:n_rows], target)
        for batch in ("few", "many"):
            if _takes(s, batch):
                s.fail(f"{n_rows} and {len(target)} rows of input and target are taken together")
    s.called("x", "a")
    s.differentiated("x", "a")


def _seeds_nothing(s: CallSession) -> None:
    """A constructor may draw numbers, but may not leave a generator where it left it the time before."""
    left = []
    for _ in range(2):
        s.use.surroundings(stirred=True)
        if s.use.make_again():
            s.fail("a layer is held for good once it was made")
        left.append(s.use.surroundings())
    for name, state in left[0].items():
        if name.startswith(surroundings.RANDOM) and left[1][name] == state:
            s.fail(f"making the layer seeds {name}")


@rule(devices=("cpu",))
def inputs_of_other_shapes_are_right_or_refused(s: CallSession) -> None:
    """A feature too many, one too few, and sequences [B, T, d], all of which torch.nn refuses; and the next call."""
    (hidden, target), (other, labels) = s.batches["a"], s.batches["b"]
    for n_features in (hidden.shape[1] - 1, hidden.shape[1] + 1):
        s.use.batch("features", np.resize(hidden, (len(hidden), n_features)), target)
        if _takes(s, "features"):
            s.fail(f"{n_features} features are taken for {hidden.shape[1]}")
    s.use.batch("sequences", np.stack([hidden, other]), np.stack([target, labels]))
    if _takes(s, "sequences"):
        found = s.use.read("sequences")
        s.batches["rows"] = np.concatenate([hidden, other]), np.concatenate([target, labels])
        s.judge({**found, "output": found["output"].reshape(-1)}, "rows")
    s.called("x", "a")
    s.differentiated("x", "a")


@rule(devices=("cpu",), dtypes=("float32",))
def an_input_of_another_dtype_is_right_or_refused(s: CallSession) -> None:
    """Of 64 bits, of the same numbers. torch.nn refuses it; the next call is right."""
    truth = s.truth("a")
    s.use.batch("a", *s.batches["a"], dtype="float64")
    if _takes(s, "a"):
        for name, value in s.use.read("a").items():
            s.judge_tensor(truth, name, value)
    s.use.batch("a", *s.batches["a"])
    s.called("x", "a")
    s.differentiated("x", "a")


@rule()
def the_surroundings_stay(s: CallSession) -> None:
    """Modes, defaults, threads, random numbers and the rest of the process are the caller's.

    A first call may import modules, which may set filters of warnings and the like: then the step is done again.
    """
    made = s.use.surroundings_before()
    before = s.use.surroundings()
    s.unchanged("making the layer changes {}", made, before, but=surroundings.RANDOM)
    _seeds_nothing(s)
    if on_cpu := s.case.device == "cpu":
        s.use.batch("wrong", *_with_target(s, 0, s.case.n_classes))
    steps: dict[str, Callable[[], object]] = {
        "a call": lambda: s.use.call("x", "a"),
        "backward": lambda: s.use.backward("x", None, 1.0),
        "a call under no_grad": lambda: s.use.call("y", "a", "no_grad"),
        "log_prob": lambda: s.use.evaluate("log_prob", "a"),
        "predict": lambda: s.use.evaluate("predict", "a"),
        **({"a wrong target": lambda: _takes(s, "wrong")} if on_cpu else {}),
    }
    for mode in (True, False):
        s.use.mode(mode)
        before = s.use.surroundings(stirred=True)
        for name, step in steps.items():
            step()
            after = s.use.surroundings()
            s.unchanged(f"{name} changes {{}}", before, after)
            if after[surroundings.IMPORTED] != before[surroundings.IMPORTED]:
                before = s.use.surroundings(stirred=True)
                if name == "backward":  # whose graph is gone
                    steps["a call"]()
                step()
                s.unchanged(f"{name} changes {{}}", before, s.use.surroundings())
