"""Rules of many calls: at the same time, hundreds one after another, and of values whose change little shows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from zipfmax_reference.runs.arrays import Array, Results
from zipfmax_reference.truth.rules import rule
from zipfmax_reference.truth.session import CallSession

T = TypeVar("T", bound=np.ndarray[Any, Any])

ROUNDS = 8
"""Calls of each thread."""
STEPS, MOST_BYTES = 28, 128
"""Training steps between two looks at the memory; bytes of each that may be left. One kept tensor has more."""
CALLS = 180
"""Calls without gradients that follow them."""
FINE = 64
"""Parts of one in which values are whole numbers where their sums have to be exact."""


@rule()
def calls_at_the_same_time_are_right(s: CallSession) -> None:
    """As by a server's workers: two threads, each with its own batch, as interleaved as can be."""
    for batch, found in s.use.together("ab", ROUNDS).items():
        _judge_each(s, batch, found)
    s.called("x", "a")
    s.differentiated("x", "a")


def _judge_each(s: CallSession, batch: str, found: Sequence[Results]) -> None:
    """Results of steps with other methods."""
    truths = s.truth(batch), s.truth_of_methods(batch)
    for results in found:
        s.judge(results, batch)
        for name, value in results.items():
            if name not in ("output", "loss"):
                s.judge_tensor(truths[not name.startswith("grad.")], name, value)


@rule()
def hundreds_of_steps_leave_nothing_behind(s: CallSession) -> None:
    """Neither a wrong result nor memory: of the steps, of their graphs or of other methods' results."""
    for collected in (False, True):
        held = [s.use.repeat("c", STEPS, collected) for _ in range(3)]
        each = min(after - before for before, after in pairwise(held)) / STEPS
        if each <= MOST_BYTES:
            break
    else:
        s.fail(f"{each:,.0f} bytes of every step are held for good")
    _judge_each(s, "c", s.use.repeated())
    results = [s.use.call("many", "c", "no_grad") for _ in range(CALLS)]
    for unlike in {
        b"".join(value.tobytes() for value in found.values()): found for found in results
    }.values():
        s.judge(unlike, "c")
    s.called("x", "a")
    s.differentiated("x", "a")
    s.judge_methods()


@rule(large=True)
def a_change_counts_however_little_shows_it(s: CallSession) -> None:
    """Of input, targets and each weight: two values change places, where autograd sees no write.

    Address, version, shape, sum, norm, extremes, and the first and last values stay what they were.
    """
    hidden, target = s.batches["a"]
    s.batches["a"] = _fine(hidden), target
    s.weights = {name: _fine(weight) for name, weight in s.weights.items()}
    s.use.refill("a", *s.batches["a"])
    s.use.write(s.weights)
    _stepped(s)
    s.batches["a"] = _alike(s.batches["a"][0]), target
    s.use.refill("a", *s.batches["a"], seen=False)
    _stepped(s)
    s.batches["a"] = s.batches["a"][0], _alike(target)
    s.use.refill("a", *s.batches["a"], seen=False)
    _stepped(s)
    for name, weight in s.weights.items():
        s.weights = s.weights | {name: _alike(weight)}
        s.use.write(s.weights, "data")
        _stepped(s)


def _stepped(s: CallSession) -> None:
    """A step in training, and a call and other methods in evaluation."""
    s.called("x", "a")
    s.differentiated("x", "a")
    s.use.mode(False)
    s.called("y", "a", "no_grad")
    s.judge_methods()
    s.use.mode(True)


def _fine(values: Array) -> Array:
    """Multiples of a small power of two within -2 and 2, of which sums and squares round nowhere."""
    return (np.clip(np.round(values.astype(np.float64) * FINE), -2 * FINE, 2 * FINE) / FINE).astype(
        values.dtype
    )


def _alike(values: T) -> T:
    """The same numbers, of which the largest and the smallest of the middle row have changed places.

    Those of all rows where a row is one number. The first and the last number stay.
    """
    changed = values.copy()
    inner = changed.reshape(-1)[1:-1]
    if len(inner) > 1:
        row = slice(0, len(inner))
        if values.ndim == 2 and len(values) > 2 and values.shape[1] > 1:
            start = len(values) // 2 * values.shape[1] - 1
            row = slice(start, start + values.shape[1])
        low, high = row.start + inner[row].argmin(), row.start + inner[row].argmax()
        inner[[low, high]] = inner[[high, low]]
    return changed
