"""The coordinator keeps its workers apart, in step, and alive."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from zipfmax_bench import protocol
from zipfmax_bench.coordinator import Coordinator, Effort, Worker, worker_environment
from zipfmax_bench.records import timing_line
from zipfmax_reference.runs.case import Case

FAULTY = Path(__file__).parent / "faulty.py"
CASE = Case(60, 8, 16, (10, 30), labels="zipf:1.0", task="train")
EFFORT = Effort(rounds=3, budget_s=30.0)


def faulty(name: str) -> str:
    return f"{FAULTY}:{name}"


def measure(coordinator: Coordinator, names: list[str], case: Case = CASE, effort: Effort = EFFORT):
    found = coordinator.prepare(case, names, effort)
    coordinator.sample(found, effort)
    return found


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("Raises", "failed", "ValueError: this layer always raises"),
        ("RunsOutOfMemory", "out_of_memory", "RuntimeError"),
        ("KillsItself", "out_of_memory", "killed by SIGKILL, as the kernel does when memory runs out"),
    ],
)
def test_a_worker_in_trouble_costs_its_own_cell_and_is_replaced(name, status, reason):
    with Coordinator(["torch", faulty(name)], threads=1) as coordinator:
        for _ in range(2):  # the second time a new process serves
            found = measure(coordinator, ["torch", faulty(name)])
            assert found["torch"].ok
            assert len(found["torch"].samples) == 3
            assert found[faulty(name)].status == status
            assert found[faulty(name)].reason.startswith(reason)
            assert found[faulty(name)].samples == []


def test_a_worker_that_dies_between_samples_ends_its_cell_and_serves_the_next():
    name = faulty("DiesAtTheThirdRun")  # two warm-ups, then the untimed run of the first round
    with Coordinator([name, "torch"], threads=1) as coordinator:
        found = measure(coordinator, [name, "torch"])
        assert found[name].status == "failed"
        assert found[name].reason == "ended with exit status 7"
        assert len(found["torch"].samples) == 3
        again = coordinator.prepare(CASE, [name], EFFORT)
        assert again[name].ok


def test_a_first_run_past_the_budget_is_broken_off():
    name = faulty("Hangs")
    effort = Effort(rounds=2, budget_s=2.0)
    with Coordinator([name], threads=1) as coordinator:
        started = time.monotonic()
        found = measure(coordinator, [name], effort=effort)
        assert found[name].status == "over_budget"
        assert "no answer within 1 s" in found[name].reason
        assert time.monotonic() - started < 60  # it would sleep for ten minutes


class Noted:
    """In a worker's place: answers each request as told, and notes how long it might have taken."""

    def __init__(self) -> None:
        self.limits = []

    def ask(self, request, timeout_s):
        if isinstance(request, protocol.Prepare):
            return protocol.Prepared()
        self.limits.append(timeout_s)
        return protocol.Timed(30.0 / len(self.limits), 30.0 / len(self.limits), ())


@pytest.mark.parametrize(("device", "slack"), [("cpu", [0]), ("cuda", [100, 0])])
def test_only_on_a_gpu_a_first_run_may_take_as_long_as_compiling_does(device, slack):
    worker = Noted()
    coordinator = Coordinator.borrowing({"torch": [worker]}, threads=1, order=random.Random(0))
    found = coordinator.prepare(replace(CASE, device=device), ["torch"], Effort(least=5, budget_s=60.0))
    assert [limit >= 12 + more for limit, more in zip(worker.limits, slack, strict=True)] == [True] * len(
        slack
    )
    assert worker.limits[-1] == 12
    assert found["torch"].run_s == 30.0 / len(slack)


def test_rounds_are_complete_paired_and_drawn_from_the_same_labels():
    names = ["torch", "zipfmax:eager", "full"]
    with Coordinator(names, threads=1, processes=2) as coordinator:
        found = measure(coordinator, names, effort=Effort(rounds=4))
    for name in names:
        assert [(s.process, s.round) for s in found[name].samples] == [(0, 0), (1, 1), (0, 2), (1, 3)]
        assert found[name].rows == found["torch"].rows
        assert all(sum(rows) == CASE.batch_size for rows in found[name].rows)
    assert len(set(found["torch"].rows)) > 1, "labels are fresh in each round"


def test_a_slow_implementation_leaves_the_rounds_before_a_fast_one():
    names = ["torch", faulty("Slow")]
    effort = Effort(seconds=0.3, least=2, most=12)
    with Coordinator(names, threads=1) as coordinator:
        found = measure(coordinator, names, effort=effort)
    assert len(found["torch"].samples) == 12
    assert 2 <= len(found[faulty("Slow")].samples) < 12


class Throttled(Noted):
    """One whose samples come with the given states of the GPU."""

    def __init__(self, *states) -> None:
        super().__init__()
        self.states = list(states)

    def ask(self, request, timeout_s):
        if isinstance(request, protocol.Prepare):
            return protocol.Prepared("chunk_size=4")
        state = self.states.pop(0) if isinstance(request, protocol.Sample) else None
        return protocol.Timed(1.0, 1.0, (16, 0, 0), state)


@pytest.mark.parametrize(
    ("states", "expected", "left_out"),
    [
        ([False, False], False, 0),
        ([False, None], None, 0),
        ([None, None], None, 0),
        ([True, False], True, 1),
        ([True, None], True, 1),
        ([True, True], True, 2),
    ],
)
def test_throttling_is_recorded_as_true_false_or_unknown_and_its_samples_are_left_out(
    states, expected, left_out
):
    coordinator = Coordinator.borrowing({"full": [Throttled(*states)]}, threads=1, order=random.Random(0))
    found = coordinator.prepare(CASE, ["full"], EFFORT)
    coordinator.sample(found, Effort(rounds=2), count_work=False)
    line = timing_line(CASE, "full", found, None, threads=1)
    assert line["throttled"] is expected
    assert line["throttled_samples"] == left_out
    assert len(line["samples_s"]) == 2 - left_out


def test_a_line_holds_what_was_set_and_whether_gradients_are_exact():
    workers = {"full:cce": [Throttled(False)], "full": [Noted()]}
    coordinator = Coordinator.borrowing(workers, threads=1, order=random.Random(0))
    found = coordinator.prepare(CASE, list(workers), EFFORT)
    inexact, exact = (timing_line(CASE, name, found, None, threads=1) for name in workers)
    assert (inexact["settings"], exact["settings"]) == ("chunk_size=4", None)
    assert (inexact["exact"], exact["exact"]) == (False, True)
    assert "filter_eps" in inexact["exact_why"]


def test_a_cold_first_run_does_not_decide_how_a_short_one_is_sampled():
    name = faulty("Cold")
    with Coordinator([name, "torch"], threads=1) as coordinator:
        found = measure(coordinator, [name, "torch"])
    assert found[name].warm_up_s >= 0.1
    assert found[name].runs_per_sample == found["torch"].runs_per_sample > 1


def test_a_case_that_an_implementation_lacks_is_skipped_with_the_reason():
    case = Case(60, 8, 16, (10, 30), task="predict")
    with Coordinator(["full:chunked"], threads=1) as coordinator:
        found = measure(coordinator, ["full:chunked"], case=case)
    assert found["full:chunked"].status == "skipped"
    assert "predict" in found["full:chunked"].reason


def test_every_framework_gets_the_same_thread_count():
    environment = worker_environment(3)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["PATH"] == os.environ["PATH"]


def test_workers_end_when_the_coordinator_is_killed(tmp_path):
    script = (
        "import time\n"
        "from zipfmax_bench.coordinator import Worker\n"
        "from zipfmax_bench import protocol\n"
        "from zipfmax_reference.runs.case import Case\n"
        f"worker = Worker({faulty('Hangs')!r}, 1)\n"
        "worker.ask(protocol.Prepare(Case(60, 8, 16, (10, 30))))\n"
        "print(worker.pid, flush=True)\n"
        "worker.ask(protocol.WarmUp())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    os.kill(worker, 0)  # alive
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while _alive(worker):
        assert time.monotonic() < deadline, "the worker outlives its coordinator"
        time.sleep(0.05)


def test_a_worker_counts_the_work_of_a_run():
    worker = Worker("full", threads=1)
    try:
        assert isinstance(worker.ask(protocol.Prepare(CASE)), protocol.Prepared)
        work = worker.ask(protocol.Weigh())
    finally:
        worker.close()
    assert isinstance(work, protocol.Work)
    assert work.flops == 3 * 2 * CASE.batch_size * CASE.in_features * CASE.n_classes


@pytest.mark.parametrize("count_work", [True, False])
def test_work_is_counted_only_where_it_is_wanted(count_work):
    with Coordinator(["torch"], threads=1) as coordinator:
        found = coordinator.prepare(CASE, ["torch"], EFFORT)
        coordinator.sample(found, EFFORT, count_work=count_work)
    assert (found["torch"].work.flops is not None) == count_work
    assert len(found["torch"].samples) == EFFORT.rounds


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
