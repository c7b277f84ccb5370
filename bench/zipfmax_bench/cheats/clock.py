"""Makes every clock of its process a thousand times slower when it is imported."""

from __future__ import annotations

import time
from collections.abc import Callable

from zipfmax_bench.cheats.honest import Plain

_SLOWER = 1000.0


def _slowed(clock: Callable[[], float]) -> Callable[[], float]:
    return lambda: clock() / _SLOWER


for _name in ("perf_counter", "monotonic", "process_time", "time"):
    setattr(time, _name, _slowed(getattr(time, _name)))


class SlowClock(Plain):
    """torch.nn's layer, by a slower clock."""
