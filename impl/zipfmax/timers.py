"""How runs are timed, written once: the clock of a device, one sample, and rounds in random order.

Everything that measures is made of these: the calibration of the planner, the sweep's workers, tile tuning.
So what `plan` predicts and what `sweep` measures are the same quantity.

The clocks are bound when this module is imported, which a worker does before any user's code: replacing
`time.perf_counter` or a method of `torch.cuda.Event` later changes nothing here.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter as _now
from typing import NamedTuple, Protocol, TypeVar

import torch

_Event = torch.cuda.Event
_new_event = _Event.__new__
_record, _wait, _elapsed_ms = _Event.record, _Event.synchronize, _Event.elapsed_time
_synchronize = torch.cuda.synchronize
_gc_is_enabled, _gc_enable, _gc_disable = gc.isenabled, gc.enable, gc.disable
_median = statistics.median

K = TypeVar("K")
Run = Callable[[], None]

# Below this a run is repeated untimed before it is timed: after the other workers' turns its weights have
# left the caches and its threads sleep, which costs some milliseconds that a training loop does not pay.
WARM_RUN_S = 0.2
# Several runs are one sample where a run is so short that a neighbour's blink shows.
SHORT_RUN_S = 0.02
RUNS_OF_A_SHORT_SAMPLE = 5


class Seconds(NamedTuple):
    """Time of one run, or the median of several."""

    device_s: float
    """Between two events on a GPU's stream; on a CPU the same as `wall_s`."""
    wall_s: float


class Timer(Protocol):
    """Times one run of a function on a device."""

    def __call__(self, run: Run) -> Seconds:
        """Seconds of one run."""


class CpuTimer:
    """Wall time by the monotonic clock, with garbage collection held off."""

    def __call__(self, run: Run) -> Seconds:
        """Device and wall time are one here."""
        with _no_garbage_collection():
            start = _now()
            run()
            seconds = _now() - start
        return Seconds(seconds, seconds)


class CudaTimer:
    """Time between two events on the stream, after a write over the whole L2 cache.

    The flush evicts what the previous run left behind, and while it lasts the host runs ahead, so that the
    first launches are not timed as gaps.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(max(2 * l2_bytes, 1 << 26), dtype=torch.int8, device=device)

    def __call__(self, run: Run) -> Seconds:
        """Device seconds between the events, and wall seconds until the device was done."""
        start = _new_event(_Event, enable_timing=True)  # type: ignore[no-untyped-call]
        stop = _new_event(_Event, enable_timing=True)  # type: ignore[no-untyped-call]
        with torch.cuda.device(self._device), _no_garbage_collection():
            _synchronize()
            self._flush.zero_()
            begun = _now()
            _record(start)
            run()
            _record(stop)
            _wait(stop)
            wall_s = _now() - begun
        return Seconds(_elapsed_ms(start, stop) / 1e3, wall_s)


def replayed(run: Run) -> Run:
    """The run captured in a CUDA graph, on the buffers it uses now: a replay costs the host one launch.

    Raises:
        RuntimeError: the run synchronises, or does something else that cannot be captured.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def timer_for(device: str | torch.device) -> Timer:
    """The timer of a torch device, "cpu" or "cuda"."""
    kind = torch.device(device)
    return CudaTimer(kind) if kind.type == "cuda" else CpuTimer()


def runs_per_sample(run_s: float) -> int:
    """Runs whose median is one sample, for a run that takes about `run_s` seconds when warm."""
    return RUNS_OF_A_SHORT_SAMPLE if run_s < SHORT_RUN_S else 1


def sample(run: Run, timer: Timer, runs: int) -> Seconds:
    """Median of some runs, one after the other."""
    times = [timer(run) for _ in range(runs)]
    return Seconds(*(_median(column) for column in zip(*times, strict=True)))


def rounds(active: Callable[[int], Sequence[K]], order: random.Random) -> Iterator[tuple[int, K]]:
    """(round, subject) for every turn: each subject that is active takes one turn a round, in random order.

    So a drift of the machine meets all subjects alike.

    Args:
        active: asked before each round for the subjects that take part; none ends it.
        order: of the turns.
    """
    done = 0
    while subjects := active(done):
        for subject in order.sample(list(subjects), len(subjects)):
            yield done, subject
        done += 1


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = _gc_is_enabled()
    _gc_disable()
    try:
        yield
    finally:
        if enabled:
            _gc_enable()
