"""Rounds of steps are taken while the seconds last, not while one sample would."""

from __future__ import annotations

import pytest

from zipfmax import timers
from zipfmax_bench import gpu_steps


@pytest.fixture(autouse=True)
def _a_gpu_on_which_a_run_takes_a_nanosecond(monkeypatch):
    def timer(run):
        run()
        return timers.Seconds(1e-9, 1e-9)

    monkeypatch.setattr(timers, "timer_for", lambda device: timer)
    monkeypatch.setattr(gpu_steps, "temporaries", lambda run: 12)


def test_a_fast_step_gets_every_round():
    (found,) = gpu_steps.measured({"step": lambda: None}, {"case": "c"}, rounds=7, seconds=60.0)
    assert found["samples_s"] == [1e-9] * 7
    assert found["temporary_bytes"] == 12


def test_no_round_follows_the_last_second():
    (found,) = gpu_steps.measured({"step": lambda: None}, {"case": "c"}, rounds=7, seconds=0.0)
    assert len(found["samples_s"]) == 1


def test_a_run_that_raises_is_recorded_with_its_reason_beside_the_others():
    def broken():
        raise RuntimeError("no kernel image")

    found = {one["impl"]: one for one in gpu_steps.measured({"a": broken, "b": lambda: None}, {}, rounds=2)}
    assert (found["a"]["status"], found["a"]["reason"]) == ("failed", "RuntimeError: no kernel image")
    assert len(found["b"]["samples_s"]) == 2
