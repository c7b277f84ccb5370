"""Replaces the module `time`, and the clock that the worker's timer has bound, when it is imported."""

from __future__ import annotations

import sys
import time
import types

from zipfmax import timing
from zipfmax_bench.cheats.honest import Plain

_clock = time.perf_counter
_fake = types.ModuleType("time")
_fake.__dict__.update(time.__dict__)
for _name in ("perf_counter", "monotonic"):
    setattr(_fake, _name, lambda: _clock() / 1000.0)
sys.modules["time"] = _fake
setattr(timing, "_now", _fake.perf_counter)  # noqa: B010 - private to the timer


class OwnClock(Plain):
    """torch.nn's layer, by a clock of its own."""
