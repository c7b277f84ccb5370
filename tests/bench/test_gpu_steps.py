"""Rounds of steps are taken while the seconds last, not while one sample would."""

from __future__ import annotations

from zipfmax_bench import gpu_steps


class Timer:
    def __init__(self, device):
        pass

    def __call__(self, run):
        run()
        return 1e-9, 1e-9

    def throttled(self):
        return False


def test_a_fast_step_gets_every_round(monkeypatch):
    monkeypatch.setattr(gpu_steps, "CudaTimer", Timer)
    monkeypatch.setattr(gpu_steps, "temporaries", lambda run: 0)
    (found,) = gpu_steps.measured({"step": lambda: None}, {"case": "c"}, rounds=7, seconds=60.0)
    assert found["samples_s"] == [1e-9] * 7


def test_no_round_follows_the_last_second(monkeypatch):
    monkeypatch.setattr(gpu_steps, "CudaTimer", Timer)
    monkeypatch.setattr(gpu_steps, "temporaries", lambda run: 0)
    (found,) = gpu_steps.measured({"step": lambda: None}, {"case": "c"}, rounds=7, seconds=0.0)
    assert len(found["samples_s"]) == 1
