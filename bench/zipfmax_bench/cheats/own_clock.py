"""Replaces the module `time`, and the clock that the worker's timer has bound, when it is imported."""

from __future__ import annotations

import sys
import time
import types
from typing import Any

from torch import Tensor

from zipfmax import timers
from zipfmax_bench.cheats.honest import Plain

_clock = time.perf_counter
_fake = types.ModuleType("time")
_fake.__dict__.update(time.__dict__)
for _name in ("perf_counter", "monotonic"):
    setattr(_fake, _name, lambda: _clock() / 1000.0)
sys.modules["time"] = _fake
setattr(timers, "_now", _fake.perf_counter)  # noqa: B010 - private to the timer


class OwnClock(Plain):
    """torch.nn's layer, slower by 10 ms, so that any other clock sees that time passed."""

    def forward(self, input: Tensor, target: Tensor) -> Any:
        """As torch.nn's."""
        time.sleep(0.01)
        return super().forward(input, target)
