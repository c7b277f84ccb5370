"""A forked worker is as a started one: it computes the same, dies alone, and does not outlive its starter."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zipfmax_bench import messages
from zipfmax_bench.executors import WorkerProcess
from zipfmax_bench.fork_server import ForkServer, can_fork
from zipfmax_reference.runs.case import Case

FAULTY = Path(__file__).parent / "faulty.py"
CASE = Case(60, 8, 16, (10, 30), labels="zipf:1.0", task="train")

pytestmark = pytest.mark.skipif(not can_fork(), reason="workers are forked on Linux")


@pytest.fixture(scope="module")
def server():
    with ForkServer(1) as started:
        yield started


def worker(server: ForkServer, name: str) -> WorkerProcess:
    return WorkerProcess(name, 1, None, sys.executable, server)


def test_forks_are_apart_from_each_other_and_end_by_themselves(server):
    one, other = (worker(server, name) for name in ("torch", f"{FAULTY}:DiesAtTheThirdRun"))
    for each in (one, other):
        assert isinstance(each.ask(messages.PrepareCase(CASE)), messages.Prepared)
    assert one.pid != other.pid
    for _ in range(2):
        assert isinstance(other.ask(messages.WarmUp()), messages.Timed)
    died = other.ask(messages.WarmUp())
    assert died == messages.Failure("failed", "ended with exit status 7")
    assert isinstance(one.ask(messages.WarmUp()), messages.Timed)
    killed = worker(server, f"{FAULTY}:KillsItself")
    killed.ask(messages.PrepareCase(CASE))
    assert killed.ask(messages.WarmUp()).status == "out_of_memory"
    one.close()
    assert one.pid is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_fork_computes_on_the_gpu_that_its_starter_uses(server):
    torch.zeros(1, device="cuda")
    one = worker(server, "zipfmax")
    assert isinstance(one.ask(messages.PrepareCase(replace(CASE, device="cuda"))), messages.Prepared)
    assert isinstance(one.ask(messages.WarmUp()), messages.Timed)
    one.close()


def test_one_that_hangs_is_ended_in_time(server):
    slow = worker(server, f"{FAULTY}:Hangs")
    slow.ask(messages.PrepareCase(CASE))
    pid = slow.pid
    assert slow.ask(messages.WarmUp(), 0.5).status == "over_budget"
    assert not Path(f"/proc/{pid}").exists()


@pytest.fixture
def told(server, tmp_path):
    """What a forked layer prints of its process: threads, and where a new tensor lies."""
    (tmp_path / "tells.py").write_text(
        "import os, torch\n"
        "class Tells(torch.nn.AdaptiveLogSoftmaxWithLoss):\n"
        "    def forward(self, input, target):\n"
        "        place = torch.empty(100_000).data_ptr()\n"
        "        print(torch.get_num_threads(), os.environ['OMP_NUM_THREADS'], place, flush=True)\n"
        "        return super().forward(input, target)\n"
    )

    def ask():
        log = tmp_path / "log"
        with log.open("wb") as stream:
            one = WorkerProcess(f"{tmp_path}/tells.py:Tells", 1, stream, sys.executable, server)
            one.ask(messages.PrepareCase(CASE))
            one.ask(messages.WarmUp())
            one.close()
        return log.read_text().split()

    return ask


def test_a_fork_has_the_threads_the_environment_and_the_log_of_a_started_worker(told):
    assert told()[:2] == ["1", "1"]


def test_forks_of_one_server_hold_their_tensors_in_different_places(told):
    assert len({told()[2] for _ in range(3)}) > 1


def test_a_server_takes_its_workers_with_it_and_a_new_one_starts():
    server = ForkServer(1)
    one = worker(server, "torch")
    one.ask(messages.PrepareCase(CASE))
    pid = one.pid
    server.close()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
    one.close()
    server.close()
