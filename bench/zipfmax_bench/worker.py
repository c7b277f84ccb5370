"""A worker process: it holds one implementation and times one run of it whenever the coordinator asks.

Started by `zipfmax_bench.coordinator` with its thread count already in the environment. It draws weights and
batches itself from the case's seed, so all workers see the same numbers and nothing large is sent.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import os
import signal
import statistics
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zipfmax_bench import protocol, timing
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.implementation import (
    Family,
    Implementation,
    Runner,
    build_for_timing,
    settings_of,
)
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.inputs import draw_batch, draw_inputs

REFERENCES: Mapping[Family, tuple[str, ...]] = {
    "adaptive": ("definition", "torch"),
    "full": ("definition", "full"),
}

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "resourceexhausted",
    "bad_alloc",
)


class Session:
    """What a worker keeps between requests: the implementation, and the runner of the last case."""

    def __init__(self, name: str) -> None:
        self._implementation = _implementation(name)
        self._held: Case | None = None  # what the runner's weights are for
        self._case: Case | None = None
        self._runner: Runner | None = None
        self._weighed: protocol.Work | None = None
        self._run_s = math.inf  # the shortest run of this case so far
        self._refuses_capture = False
        self._oracle: Any = None
        self._judging: tuple[Case, tuple[str, ...]] | None = None

    def answer(self, request: protocol.Request) -> protocol.Reply:
        """Do what the request asks; on a GPU only tensors in use outlive it, no memory cached for later.

        The workers share the GPU: what one keeps in its allocator would be missing to another, which then
        seems to need more than there is.
        """
        reply = self._answer(request)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
        return reply

    def _answer(self, request: protocol.Request) -> protocol.Reply:
        match request:
            case protocol.Prepare(case):
                return self._prepare(case)
            case protocol.WarmUp():
                return self._warm_up()
            case protocol.Sample(round, runs, replay):
                return self._sample(round, runs, replay)
            case protocol.Weigh():
                return self._weigh()
            case protocol.Split(budget_s, replay):
                return self._split(budget_s, replay)
            case protocol.CheckParity(name, case):
                return self._check_parity(name, case)

    def _prepare(self, case: Case) -> protocol.Reply:
        assert self._implementation is not None, "a checker holds no implementation"
        reason = self._implementation.lacks(case)
        if reason is not None:
            return protocol.Lacking(reason)
        held = case.without_labels
        if held != self._held:
            # Let go of the old weights before the new ones are drawn: both need not fit.
            self._runner = self._held = self._weighed = None
            gc.collect()
            self._runner = build_for_timing(self._implementation, case, draw_inputs(case))
            self._held = held
            gc.collect()
        self._case = case
        self._run_s = math.inf
        self._refuses_capture = False
        self._timer = timing.timer_for(case.device)
        assert self._runner is not None
        return protocol.Prepared(settings_of(self._runner))

    def _warm_up(self) -> protocol.Timed:
        assert self._runner is not None, "Prepare comes first"
        occupancy = self._load(0)
        seconds, wall_s = self._timer(self._runner.run)
        self._run_s = min(self._run_s, wall_s)
        return protocol.Timed(seconds, wall_s, occupancy)

    def _sample(self, round: int, runs: int, replay: bool) -> protocol.Timed:
        assert self._runner is not None, "Prepare comes first"
        occupancy = self._load(round)
        if self._run_s < timing.SHORT_RUN_S or self._on_gpu:  # there the allocator starts empty
            self._runner.run()
        captured = self._captured() if replay else None
        times = [self._timer(captured or self._runner.run) for _ in range(runs)]
        throttled = self._timer.throttled()
        seconds, wall_s = (statistics.median(column) for column in zip(*times, strict=True))
        return protocol.Timed(seconds, wall_s, occupancy, throttled, captured is not None)

    def _captured(self) -> Callable[[], None] | None:
        """The loaded batch's run as a CUDA graph, or None where there is no GPU or it cannot be captured."""
        assert self._runner is not None
        if self._refuses_capture or not self._on_gpu:
            return None
        from zipfmax_bench import work

        if work.waits(self._runner.run):
            # Not tried: a broken capture leaves the process's random generator unusable.
            self._refuses_capture = True
            return None
        try:
            return timing.replayed(self._runner.run)
        except RuntimeError:
            traceback.print_exc()  # to the workers' log: a peer that synchronises is timed as it is
            self._refuses_capture = True
            return None

    @property
    def _on_gpu(self) -> bool:
        assert self._case is not None
        return torch.device(self._case.device).type == "cuda"

    def _weigh(self) -> protocol.Work:
        from zipfmax_bench import work

        assert self._runner is not None, "Prepare comes first"
        assert self._case is not None
        assert self._implementation is not None
        if self._implementation.family == "full" and self._weighed is not None:
            return self._weighed  # full softmax does the same work whatever the labels are
        self._load(0)  # the same batch whatever rounds there were
        self._weighed = work.count(self._runner.run, self._case.device)
        return self._weighed

    def _split(self, budget_s: float, replay: bool) -> protocol.PartTimes:
        from zipfmax_bench.split import split

        assert self._runner is not None, "Prepare comes first"
        assert self._case is not None
        return split(self._runner, self._case, self._timer, budget_s, self._captured if replay else None)

    def _check_parity(self, name: str, case: Case) -> protocol.Reply:
        from zipfmax_reference.truth.parity import Oracle

        implementation = registry.implementation(name)
        reason = implementation.lacks(case)
        if reason is not None:
            return protocol.Lacking(reason)
        references = REFERENCES[implementation.family]
        if self._judging != (case, references):
            self._oracle = None  # frees the last case's truth first
            self._oracle = Oracle(case, references)
            self._judging = (case, references)
        return protocol.Parity(tuple(self._oracle.check(implementation)))

    def _load(self, round: int) -> tuple[int, ...]:
        assert self._case is not None
        assert self._runner is not None
        hidden, target = draw_batch(self._case, round)
        self._runner.load(hidden, target)
        layout = self._case.layout
        return tuple(np.bincount(layout.parts(target), minlength=1 + layout.n_clusters).tolist())


def serve(connection: Connection, name: str) -> None:
    """Answer requests until the coordinator is gone. An implementation that raises is reported, not fatal."""
    session = Session(name)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            reply = session.answer(request)
        except Exception as error:
            traceback.print_exc()
            reply = _failure(error)
        connection.send(reply)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the process: `python -m zipfmax_bench.worker --name torch --threads 2 --fd 5`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--fd", type=int, required=True)
    options = parser.parse_args(arguments)
    _live_and_die_with_the_coordinator()
    torch.set_num_threads(options.threads)
    serve(Connection(options.fd), options.name)


def _implementation(name: str) -> Implementation | None:
    if name == protocol.CHECKER:
        return None
    if name == protocol.LIMIT:
        from zipfmax_bench.limit import Limit

        return Limit()
    return registry.implementation(name)


def _failure(error: Exception) -> protocol.Failure:
    text = f"{type(error).__name__}: {error}".strip()
    first_line = text.splitlines()[0][:300]
    ran_out = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        sign in text.lower() for sign in _OUT_OF_MEMORY
    )
    return protocol.Failure("out_of_memory" if ran_out else "failed", first_line)


def _live_and_die_with_the_coordinator() -> None:
    """On Linux: be the first that the kernel kills for memory, and do not outlive a killed coordinator."""
    if not sys.platform.startswith("linux"):
        return
    Path("/proc/self/oom_score_adj").write_text("1000")
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() == 1:
        sys.exit("the coordinator is gone")


if __name__ == "__main__":
    main()
