"""One timed run: a monotonic clock on a CPU, events after an L2 flush on a GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

# Below this a run is repeated untimed before it is timed: after the other workers' turns its weights have
# left the caches and its threads sleep, which costs some milliseconds that a training loop does not pay.
SHORT_RUN_S = 0.2


class Timer(Protocol):
    """Times one run of a function on a device."""

    def __call__(self, run: Callable[[], None]) -> tuple[float, float]:
        """(seconds on the device, seconds on the wall) of one run."""


class CpuTimer:
    """Wall time by the monotonic clock, with garbage collection held off."""

    def __call__(self, run: Callable[[], None]) -> tuple[float, float]:
        """Device and wall time are one here."""
        with _no_garbage_collection():
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
        return seconds, seconds


class CudaTimer:
    """Time between two events on the stream, after a write over the whole L2 cache.

    The flush evicts what the previous run left behind, and while it lasts the host runs ahead, so that the
    first launches are not timed as gaps.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(max(2 * l2_bytes, 1 << 26), dtype=torch.int8, device=device)

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
