"""One timed run: a monotonic clock on a CPU, events after an L2 flush on a GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from zipfmax_reference.runs.machine import Throttle

# Below this a run is repeated untimed before it is timed: after the other workers' turns its weights have
# left the caches and its threads sleep, which costs some milliseconds that a training loop does not pay.
SHORT_RUN_S = 0.2


class Timer(Protocol):
    """Times one run of a function on a device."""

    def __call__(self, run: Callable[[], None]) -> tuple[float, float]:
        """(seconds on the device, seconds on the wall) of one run."""

    def throttled(self) -> bool | None:
        """Whether the device is being slowed down at this moment, so that what it timed does not count.

        None where that is unknown.
        """


class CpuTimer:
    """Wall time by the monotonic clock, with garbage collection held off."""

    def __call__(self, run: Callable[[], None]) -> tuple[float, float]:
        """Device and wall time are one here."""
        with _no_garbage_collection():
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
        return seconds, seconds

    def throttled(self) -> bool | None:
        """Unknown: a CPU does not say."""
        return None


class CudaTimer:
    """Time between two events on the stream, after a write over the whole L2 cache.

    The flush evicts what the previous run left behind, and while it lasts the host runs ahead, so that the
    first launches are not timed as gaps.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(max(2 * l2_bytes, 1 << 26), dtype=torch.int8, device=device)
        self._throttle = Throttle.of(device)

    def __call__(self, run: Callable[[], None]) -> tuple[float, float]:
        """Device seconds between the events, and wall seconds until the device was done."""
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        stop = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        with torch.cuda.device(self._device), _no_garbage_collection():
            torch.cuda.synchronize()
            self._flush.zero_()
            begun = time.perf_counter()
            start.record()
            run()
            stop.record()
            stop.synchronize()
            wall_s = time.perf_counter() - begun
        return start.elapsed_time(stop) / 1e3, wall_s

    def throttled(self) -> bool | None:
        """What the driver says; None where it cannot be asked."""
        return self._throttle.state()


def replayed(run: Callable[[], None]) -> Callable[[], None]:
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


def timer_for(device: str) -> Timer:
    """The timer of a torch device, "cpu" or "cuda"."""
    kind = torch.device(device)
    return CudaTimer(kind) if kind.type == "cuda" else CpuTimer()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
