"""Executors in the test's own process, under a clock that it sets: no outcome depends on the machine."""

from __future__ import annotations

import pytest

from zipfmax import timers
from zipfmax_bench import compare, engine, parity_guard, planning, plausibility, selftest, timing_faults
from zipfmax_bench.executors import InProcess


@pytest.fixture
def in_process(monkeypatch):
    """Implementations run in this process, and every run takes a millisecond by the clock."""

    def timer(run):
        run()
        return timers.Seconds(1e-3, 1e-3)

    monkeypatch.setattr(timers, "timer_for", lambda device: timer)
    # The engine's own clock is the machine's, which that millisecond disagrees with.
    monkeypatch.setattr(plausibility, "clock_fault", lambda own: None)
    for module in (compare, engine, parity_guard, planning, selftest, timing_faults):
        monkeypatch.setattr(module, "WorkerProcess", InProcess)
    for module in (engine, selftest):
        monkeypatch.setattr(module, "can_fork", lambda: False)  # no worker is forked: no server need start
