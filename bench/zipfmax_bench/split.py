"""How a step's time divides among head and tails, measured from outside any adaptive implementation.

The step is timed on the batch with every tail's label replaced by one of the shortlist: that is the head, and
whatever a step does once. It is timed with the labels of one tail left as they were: what it takes longer is
that tail. Parts that run apart need not add up to the whole step, which is timed beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from zipfmax.clusters import ClusterLayout
from zipfmax.timers import Timer
from zipfmax_bench.limit import LimitRunner
from zipfmax_bench.messages import PartTimes
from zipfmax_reference.contestants.implementation import Runner
from zipfmax_reference.runs.arrays import Array, Labels
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_batch

TASKS = ("forward", "train")
"""The tasks in which the labels decide which tails are computed."""

LEAST_PASSES, MOST_PASSES = 3, 9


Run = Callable[[], None]
Capture = Callable[[], Run | None]


def split(
    runner: Runner, case: Case, timer: Timer, budget_s: float, capture: Capture | None = None
) -> PartTimes:
    """Seconds of the whole step, of its head and of each tail, on the case's first batch.

    Every pass times all of them, so that a drift of the machine meets them alike. The fastest of the passes
    counts, because a difference of two times has the noise of both.

    Args:
        runner: holds the case's weights; afterwards, the case's first batch.
        case: its task is one of `TASKS`.
        timer: of the case's device.
        budget_s: no pass beyond the least number of them begins later than this.
        capture: makes a CUDA graph of the loaded batch's run, where the samples were replays of one.
    """
    hidden, target = draw_batch(case, 0)
    rows = np.bincount(case.layout.parts(target), minlength=1 + case.layout.n_clusters)
    used = [tail for tail, n in enumerate(rows[1:]) if n]
    runner.load(hidden, target)
    passes: list[list[float]] = []
    began = time.perf_counter()
    while len(passes) < LEAST_PASSES or (
        len(passes) < MOST_PASSES and time.perf_counter() - began < budget_s
    ):
        if isinstance(runner, LimitRunner):
            seconds = [timer(run)[0] for run in runner.parts()]
            passes.append([sum(seconds), *seconds])
        else:
            passes.append(_steps(runner, case.layout, hidden, target, used, timer, capture))
    whole, head, *tails = np.min(passes, axis=0).tolist()
    if not isinstance(runner, LimitRunner):
        tails = [seconds - head for seconds in tails]
    by_tail = dict(zip(used, tails, strict=True))
    parts = (head, *(by_tail.get(tail, 0.0) for tail in range(case.layout.n_clusters)))
    return PartTimes(whole, parts, tuple(rows.tolist()), len(passes))


def keep_tail(layout: ClusterLayout, target: Labels, tail: int | None) -> Labels:
    """The labels, with those of every tail but one (or of all) moved into the shortlist."""
    parts = layout.parts(target)
    kept = (parts == 0) | (parts == (0 if tail is None else 1 + tail))
    return np.where(kept, target, target % layout.shortlist_size)


def _steps(
    runner: Runner,
    layout: ClusterLayout,
    hidden: Array,
    target: Labels,
    used: list[int],
    timer: Timer,
    capture: Capture | None,
) -> list[float]:
    """Seconds of the whole step, of only the head, and of the head with each tail in use."""
    seconds = []
    for labels in (*(keep_tail(layout, target, tail) for tail in (None, *used)), target):
        runner.load(hidden, labels)
        run = capture() if capture is not None else None
        seconds.append(timer(run or runner.run)[0])
    return [seconds[-1], *seconds[:-1]]
