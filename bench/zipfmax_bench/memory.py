"""Peak temporary memory of a call: bytes of tensors held at a time that are given back by its end.

Allocations are counted, not the resident set, which also holds what the C library has not returned to the
system and lacks pages that nobody has touched.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from zipfmax.backends import tiled
from zipfmax.backends.triton.captured import graphs

_CPU_DEVICE_TYPE = 0  # of c10::DeviceType, as traces hold it


def peak_temporary_bytes(function: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes of temporary tensors that `function` holds at any time, in this thread or in autograd's.

    What outlives the call, such as gradients, does not count. zipfmax's workspace, which does outlive it, is
    released before and after, and its captured steps are not used, so that both count as the temporary memory
    that they are. On a CPU every allocation is followed from the profiler's record; on a GPU the caching
    allocator's peak is set against what was allocated before or after, whichever is more.
    """
    tiled.release_workspace()
    if torch.device(device).type == "cpu":
        return _peak_of_trace(_memory_events(function))
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with graphs.paused():
        function()
    torch.cuda.synchronize(device)
    after = torch.cuda.memory_allocated(device)
    return int(torch.cuda.max_memory_allocated(device) - max(before, after))


def _memory_events(function: Callable[[], object]) -> list[Mapping[str, Any]]:
    """What torch's CPU allocator gave and took back, in order: the trace's own fields."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
        tiled.release_workspace()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
    taken = [event for event in events if event["name"] == "[memory]"]
    taken.sort(key=lambda event: float(event["ts"]))
    return [event["args"] for event in taken if event["args"]["Device Type"] == _CPU_DEVICE_TYPE]


def _peak_of_trace(events: Iterable[Mapping[str, Any]]) -> int:
    """Most bytes alive at a time of blocks that are freed before the trace ends."""
    changes: list[int] = []
    alive: dict[int, int] = {}  # address -> where in `changes` it was allocated
    for event in events:
        size, address = int(event["Bytes"]), int(event["Addr"])
        if size > 0:
            alive[address] = len(changes)
        elif alive.pop(address, None) is None:
            size = 0  # it was there before, as the last run's gradients are
        changes.append(size)
    for survivor in alive.values():
        changes[survivor] = 0
    held = peak = 0
    for change in changes:
        held += change
        peak = max(peak, held)
    return peak
