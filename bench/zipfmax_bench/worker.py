"""A worker process: it holds one implementation and times one run of it whenever the engine asks.

What the worker itself needs, its clocks among it, is imported and bound before the implementation is.

Started by `zipfmax_bench.executors` with its thread count already in the environment. It draws weights and
batches itself from the case's seed, so all workers see the same numbers and nothing large is sent.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from zipfmax import timers
from zipfmax.errors import one_line
from zipfmax_bench import messages
from zipfmax_bench.judging import ResultJudge
from zipfmax_bench.snapshot import Snapshot, snapshots
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.implementation import Implementation, Runner, build_for_timing, settings_of
from zipfmax_reference.contestants.served import requests_and_answers, serve
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_batch, draw_inputs
from zipfmax_reference.runs.machine import Throttle
from zipfmax_reference.truth.oracle import WHOLE

_get_num_threads = torch.get_num_threads

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "resourceexhausted",
    "bad_alloc",
)


class WorkerState:
    """What a worker keeps between requests: the implementation, and the runner of the last case."""

    def __init__(self, name: str) -> None:
        self._threads = _get_num_threads()
        self._judge = ResultJudge() if name == messages.CHECKER else None
        self._implementation = None if self._judge else _implementation(name)
        self._held: Case | None = None  # what the runner's weights are for
        self._case: Case | None = None
        self._runner: Runner | None = None
        self._weighed: messages.Work | None = None
        self._run_s = math.inf  # the shortest run of this case so far
        self._refuses_capture = False
        self._run: Callable[[], None] | None = None  # what is timed: the runner's, or a graph's replay
        self._seen: Mapping[str, Snapshot] = {}
        self._ran = False

    def answer(self, request: messages.Request) -> messages.Reply:
        """Do what the request asks; on a GPU only tensors in use outlive it, no memory cached for later.

        The workers share the GPU: what one keeps in its allocator would be missing to another, which then
        seems to need more than there is.
        """
        reply = self._answer(request)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
        return reply

    def _answer(self, request: messages.Request) -> messages.Reply:
        match request:
            case messages.PrepareCase(case, fastest):
                return self._prepare(case, fastest)
            case messages.WarmUp():
                return self._warm_up()
            case messages.Load(batch, warm, replay):
                return self._begin(batch, warm, replay)
            case messages.TakeSample(empty):
                return self._sample(empty)
            case messages.Keep(folder):
                return self._keep(Path(folder))
            case messages.Forget():
                self._runner = self._held = self._weighed = self._run = None
                self._seen = {}
                gc.collect()
                return messages.Kept()
            case messages.Weigh():
                return self._weigh()
            case messages.Split(budget_s, replay):
                return self._split(budget_s, replay)
            case messages.Judge():
                assert self._judge is not None, "this process runs an implementation"
                return messages.Compared(tuple(self._judge.lines(request)))

    def _prepare(self, case: Case, fastest: bool) -> messages.Reply:
        assert self._implementation is not None, "the judge holds no implementation"
        reason = self._implementation.unsupported_reason(case)
        if reason is not None:
            return messages.Lacking(reason)
        held = case.without_labels
        if held != self._held:
            # Let go of the old weights before the new ones are drawn: both need not fit.
            self._runner = self._held = self._weighed = self._run = None
            self._seen = {}
            gc.collect()
            build = partial(build_for_timing, self._implementation) if fastest else self._implementation.build
            self._runner = build(case, draw_inputs(case))
            self._held = held
            gc.collect()
        self._case = case
        self._run_s = math.inf
        self._refuses_capture = self._ran = False
        self._run = self._runner.run if self._runner is not None else None
        self._timer = timers.timer_for(case.device)
        self._throttle = Throttle.of(torch.device(case.device))
        assert self._runner is not None
        return messages.Prepared(settings_of(self._runner))

    def _warm_up(self) -> messages.Timed:
        assert self._runner is not None, "Prepare comes first"
        self._load(0)
        seconds, wall_s = self._timer(self._runner.run)
        self._run_s = min(self._run_s, wall_s)
        return messages.Timed(seconds, wall_s)

    def _begin(self, batch: int, warm: int | None, replay: bool) -> messages.Loaded:
        assert self._runner is not None, "Prepare comes first"
        self._seen = {}
        if warm is not None:
            self._load(warm)
            self._run = self._runner.run
            if self._run_s < timers.WARM_RUN_S or self._on_gpu:  # there the allocator starts empty
                self._run()
        if getattr(self._runner, "captured_for_each_batch", False):
            rows = self._load(batch)
            captured = self._captured() if replay else None
            self._run = captured or self._runner.run
            return messages.Loaded(rows, captured is not None)
        if warm is not None and replay:
            self._run = self._captured() or self._runner.run
        replayed = self._run != self._runner.run
        return messages.Loaded(self._load(batch, refill=replayed), replayed)

    def _sample(self, empty: bool) -> messages.Timed:
        assert self._run is not None, "Prepare comes first"
        if empty:
            empty_times = self._timer(_nothing)
            snapshots(self._runner)  # as after a run
            return messages.Timed(*empty_times, self._throttle.state())
        seconds, wall_s = self._timer(self._run)
        self._seen = snapshots(self._runner)  # at once: nothing may be filled in later
        self._ran = True
        return messages.Timed(seconds, wall_s, self._throttle.state())

    def _keep(self, folder: Path) -> messages.Kept:
        """Save the last run's results. Nothing computed here is trusted: it is what is judged."""
        assert self._runner is not None, "Prepare comes first"
        if not self._ran:
            self._load(0)
            self._runner.run()
        results, wrong = self._runner.results(), dict(self._runner.mismatches())
        for name, values in results.items():
            np.save(folder / f"{name}.npy", np.ascontiguousarray(values).reshape(values.shape))
        for name, snapshot in self._seen.items():
            if name in results and not snapshot.holds(results[name]):
                wrong[name] = "it was still being computed when the clock stopped"
        changed = self._runner.changed() if hasattr(self._runner, "changed") else None
        if changed is not None:
            wrong[WHOLE] = changed
        if _get_num_threads() != self._threads:
            wrong[WHOLE] = f"it set the number of threads to {_get_num_threads()}, not {self._threads}"
        return messages.Kept(tuple(wrong.items()))

    def _captured(self) -> Callable[[], None] | None:
        """The loaded batch's run as a CUDA graph, or None where there is no GPU or it cannot be captured."""
        assert self._runner is not None
        if self._refuses_capture or not self._on_gpu:
            return None
        if not hasattr(self._runner, "refill") and not hasattr(self._runner, "captured_for_each_batch"):
            return None  # a replay reads the tensors that were captured
        from zipfmax_bench import work

        # Twice: a run that captures a graph of its own, as ours does once a shape recurs, waits for that alone.
        if work.waits(self._runner.run) and work.waits(self._runner.run):
            # Not tried: a broken capture leaves the process's random generator unusable.
            self._refuses_capture = True
            return None
        try:
            return timers.replayed(self._runner.run)
        except RuntimeError:
            traceback.print_exc()  # to the workers' log: a peer that synchronises is timed as it is
            self._refuses_capture = True
            return None

    @property
    def _on_gpu(self) -> bool:
        assert self._case is not None
        return torch.device(self._case.device).type == "cuda"

    def _weigh(self) -> messages.Work:
        from zipfmax_bench import work

        assert self._runner is not None, "Prepare comes first"
        assert self._case is not None
        assert self._implementation is not None
        if self._implementation.family == "full" and self._weighed is not None:
            return self._weighed  # full softmax does the same work whatever the labels are
        self._load(0)  # the same batch whatever rounds there were
        self._weighed = work.count(self._runner.run, self._case.device)
        return self._weighed

    def _split(self, budget_s: float, replay: bool) -> messages.PartTimes:
        from zipfmax_bench.split import split

        assert self._runner is not None, "Prepare comes first"
        assert self._case is not None
        return split(self._runner, self._case, self._timer, budget_s, self._captured if replay else None)

    def _load(self, number: int, refill: bool = False) -> tuple[int, ...]:
        assert self._case is not None
        assert self._runner is not None
        hidden, target = draw_batch(self._case, number)
        layout = self._case.layout
        rows = np.bincount(layout.parts(target), minlength=1 + layout.n_clusters).tolist()
        (self._runner.refill if refill else self._runner.load)(hidden, target)  # type: ignore[attr-defined]
        return tuple(rows)


def _nothing() -> None:
    """What an empty sample times."""


class Served:
    """What a worker answers with. An implementation that raises is reported, not fatal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._session: WorkerState | None = None

    def answer(self, request: messages.Request) -> messages.Encoded:
        """The reply to a request."""
        self._session = self._session or WorkerState(self._name)
        return messages.encoded(self._session.answer(request))

    def failure(self, error: Exception) -> messages.Encoded:
        """What was raised, which the log keeps whole."""
        traceback.print_exception(error)
        return messages.encoded(failure(error))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the process: `python -m zipfmax_bench.worker --name torch --threads 2`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args(arguments)
    pipes = requests_and_answers()
    live_and_die_with_the_starter()
    torch.set_num_threads(options.threads)
    gc.freeze()  # a collection before every case, which need not look through what is imported
    served = Served(options.name)
    serve(*pipes, served.answer, served.failure)


def _implementation(name: str) -> Implementation:
    if name == messages.LIMIT:
        from zipfmax_bench.limit import Limit

        return Limit()
    return registry.implementation(name)


def failure(error: Exception) -> messages.Failure:
    """What an implementation raised, as an answer: the error in one line, and whether memory ran out."""
    text = f"{type(error).__name__}: {error}".lower()
    ran_out = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        sign in text for sign in _OUT_OF_MEMORY
    )
    return messages.Failure("out_of_memory" if ran_out else "failed", one_line(error))


def live_and_die_with_the_starter() -> None:
    """On Linux: be the first that the kernel kills for memory, and end with the process that started it."""
    if not sys.platform.startswith("linux"):
        return
    Path("/proc/self/oom_score_adj").write_text("1000")
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() == 1:
        sys.exit("the process that started this one is gone")


if __name__ == "__main__":
    main()
