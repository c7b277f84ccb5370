"""A worker answers, and leaves what it shares with others as it found it."""

from __future__ import annotations

import pytest
import torch

from zipfmax_bench import messages
from zipfmax_bench.worker import WorkerState
from zipfmax_reference.runs.case import Case

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
REQUESTS = [messages.WarmUp(), messages.Load(1, warm=2), messages.TakeSample(), messages.Weigh()]


def test_cached_memory_of_a_gpu_is_given_back_after_every_answer(monkeypatch):
    session = WorkerState("torch")
    given_back = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(True))
    for request in [messages.PrepareCase(Case(60, 8, 16, (10, 30), task="train")), *REQUESTS]:
        session.answer(request)
        assert len(given_back) == 1, request
        given_back.clear()


@needs_gpu
@pytest.mark.parametrize("name", ["torch", "full", "limit"])
def test_on_a_gpu_a_worker_keeps_no_memory_for_later_between_requests(name):
    case = Case(50_000, 64, 2048, (5_000, 20_000), task="train", device="cuda", labels="zipf:1.0")
    session = WorkerState(name)
    session.answer(messages.PrepareCase(case))
    needed_bytes = session.answer(messages.Weigh()).peak_bytes
    held_bytes = torch.cuda.memory_allocated()
    for request in REQUESTS:
        session.answer(request)
        assert torch.cuda.memory_reserved() < held_bytes + needed_bytes / 2, request


@needs_gpu
def test_on_a_gpu_a_sample_is_timed_with_its_memory_at_hand():
    case = Case(50_000, 64, 2048, (5_000, 20_000), task="train", device="cuda", labels="zipf:1.0")
    session = WorkerState("full")
    session.answer(messages.PrepareCase(case))
    session.answer(messages.WarmUp())
    session._run_s = 1.0  # as if it were too long to be repeated for its own sake
    taken = []
    timer = session._timer

    class Watching:
        def __call__(self, run):
            before = torch.cuda.memory_stats()["num_device_alloc"]
            times = timer(run)
            taken.append(torch.cuda.memory_stats()["num_device_alloc"] - before)
            return times

        def throttled(self):
            return False

    session._timer = Watching()
    session.answer(messages.Load(1, warm=2))
    session.answer(messages.TakeSample())
    assert taken == [0]


def test_a_worker_times_the_fastest_setting_and_says_which_it_is():
    case = Case(999, 8, 300, (10, 30), task="train")
    prepared = WorkerState("full:chunked").answer(messages.PrepareCase(case))
    assert "fastest of 6 that are exact" in prepared.settings
    assert WorkerState("full").answer(messages.PrepareCase(case)).settings is None
    assert WorkerState("torch").answer(messages.PrepareCase(case)).settings is None
