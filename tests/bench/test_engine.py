"""The engine keeps its executors apart, in step, and alive."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from zipfmax_bench import messages
from zipfmax_bench.engine import Engine, SamplingPolicy
from zipfmax_bench.executors import WorkerProcess
from zipfmax_bench.threads import default_threads, worker_environment
from zipfmax_bench.timings import timing_of
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.machine import usable_cores

FAULTY = Path(__file__).parent / "faulty.py"
CASE = Case(60, 8, 16, (10, 30), labels="zipf:1.0", task="train")
POLICY = SamplingPolicy(rounds=3, budget_s=30.0)


def faulty(name: str) -> str:
    return f"{FAULTY}:{name}"


def measure(engine: Engine, names: list[str], case: Case = CASE, policy: SamplingPolicy = POLICY):
    return engine.measure(dict.fromkeys(names, case), policy)


TROUBLE = {
    "Raises": ("failed", "ValueError: this layer always raises"),
    "RunsOutOfMemory": ("out_of_memory", "RuntimeError"),
    "KillsItself": ("out_of_memory", "killed by SIGKILL, as the kernel does when memory runs out"),
    "DiesAtTheThirdRun": ("failed", "ended with exit status 7"),  # after two warm-ups, in the first round
}


def test_a_worker_in_trouble_costs_its_own_cell_and_a_new_one_serves_the_next():
    names = ["torch", *map(faulty, TROUBLE)]
    with Engine.of_processes(names, threads=1) as engine:
        found = measure(engine, names)
        assert found["torch"].ok
        assert len(found["torch"].samples) == 3
        for name, (status, reason) in TROUBLE.items():
            cell = found[faulty(name)]
            assert cell.status == status, name
            assert cell.reason.startswith(reason), name
            assert cell.samples == [], name
        last = names[-1]
        again = engine.prepare({last: CASE}, POLICY)
        assert again[last].ok


def test_a_first_run_past_the_budget_is_broken_off():
    name = faulty("Hangs")
    policy = SamplingPolicy(rounds=2, budget_s=2.0)
    with Engine.of_processes([name], threads=1) as engine:
        started = time.monotonic()
        found = measure(engine, [name], policy=policy)
        assert found[name].status == "over_budget"
        assert "no answer within 1 s" in found[name].reason
        assert time.monotonic() - started < 60  # it would sleep for ten minutes


class Noted:
    """In an executor's place: answers each request as told, and notes how long it might have taken."""

    def __init__(self) -> None:
        self.limits = []

    def ask(self, request, timeout_s):
        if isinstance(request, messages.PrepareCase):
            return messages.Prepared()
        self.limits.append(timeout_s)
        return messages.Timed(30.0 / len(self.limits), 30.0 / len(self.limits))


class Clock:
    """Seconds that pass only while a `Scripted` executor runs."""

    now = 0.0

    def __call__(self):
        return self.now


class Scripted(Noted):
    """Runs that take the given seconds, and the last of them from then on."""

    def __init__(self, clock, *seconds) -> None:
        super().__init__()
        self.clock, self.seconds = clock, list(seconds)

    def ask(self, request, timeout_s):
        if isinstance(request, messages.PrepareCase):
            return messages.Prepared()
        if isinstance(request, messages.Load):
            return messages.Loaded((16, 0, 0))
        seconds = self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        self.clock.now += seconds
        return messages.Timed(seconds, seconds)


@pytest.mark.parametrize(("device", "slack"), [("cpu", [0]), ("cuda", [100, 0])])
def test_only_on_a_gpu_a_first_run_may_take_as_long_as_compiling_does(device, slack):
    worker = Noted()
    engine = Engine({"torch": [worker]})
    found = engine.prepare({"torch": replace(CASE, device=device)}, SamplingPolicy(least=5, budget_s=60.0))
    assert [limit >= 12 + more for limit, more in zip(worker.limits, slack, strict=True)] == [True] * len(
        slack
    )
    assert worker.limits[-1] == 12
    assert found["torch"].run_s == 30.0 / len(slack)


def test_rounds_are_complete_paired_and_drawn_from_the_same_labels(in_process):
    names = ["torch", "zipfmax:eager", "full"]
    with Engine.of_processes(names, threads=1, processes=2) as engine:
        found = measure(engine, names, policy=SamplingPolicy(rounds=4))
    for name in names:
        assert [(s.process, s.round) for s in found[name].samples] == [(0, 0), (1, 1), (0, 2), (1, 3)]
        assert found[name].rows == found["torch"].rows
        assert all(sum(rows) == CASE.batch_size * found[name].runs_per_sample for rows in found[name].rows)
    assert len(set(found["torch"].rows)) > 1, "labels are fresh in each round"


def test_a_slow_implementation_leaves_the_rounds_before_a_fast_one():
    clock = Clock()
    engine = Engine({"fast": [Scripted(clock, 0.003)], "slow": [Scripted(clock, 0.1)]}, clock=clock)
    policy = SamplingPolicy(seconds=0.25, least=2, most=12)
    found = engine.measure(dict.fromkeys(("fast", "slow"), CASE), policy, count_work=False)
    assert len(found["fast"].samples) == 12
    assert len(found["slow"].samples) == 3


class Throttled(Noted):
    """One whose samples come with the given states of the GPU."""

    def __init__(self, *states) -> None:
        super().__init__()
        self.states = list(states)

    def ask(self, request, timeout_s):
        if isinstance(request, messages.PrepareCase):
            return messages.Prepared("chunk_size=4")
        if isinstance(request, messages.Load):
            return messages.Loaded((16, 0, 0))
        state = self.states.pop(0) if isinstance(request, messages.TakeSample) else None
        return messages.Timed(1.0, 1.0, state)


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
    engine = Engine({"full": [Throttled(*states)]})
    found = engine.prepare({"full": CASE}, POLICY)
    engine.sample(found, SamplingPolicy(rounds=2), count_work=False)
    line = timing_of(CASE, "full", found, None, threads=1)
    assert line.throttled is expected
    assert line.throttled_samples == left_out
    assert len(line.samples_s) == 2 - left_out


def test_a_line_holds_what_was_set_and_whether_gradients_are_exact():
    workers = {"full:cce": [Throttled(False)], "full": [Noted()]}
    engine = Engine(workers)
    found = engine.prepare(dict.fromkeys(workers, CASE), POLICY)
    inexact, exact = (timing_of(CASE, name, found, None, threads=1) for name in workers)
    assert (inexact.settings, exact.settings) == ("chunk_size=4", None)
    assert (inexact.exact, exact.exact) == (False, True)
    assert "filter_eps" in inexact.exact_why


@pytest.mark.parametrize(("seconds", "runs"), [((0.1, 0.001), 5), ((0.1, 0.05), 1)])
def test_a_cold_first_run_does_not_decide_how_a_short_one_is_sampled(seconds, runs):
    found = Engine({"torch": [Scripted(Clock(), *seconds)]}).prepare({"torch": CASE}, POLICY)
    assert found["torch"].warm_up_s == 0.1
    assert found["torch"].runs_per_sample == runs


def test_a_case_that_an_implementation_lacks_is_skipped_with_the_reason(in_process):
    case = Case(60, 8, 16, (10, 30), task="predict")
    with Engine.of_processes(["full:chunked"], threads=1) as engine:
        found = measure(engine, ["full:chunked"], case=case)
    assert found["full:chunked"].status == "skipped"
    assert "predict" in found["full:chunked"].reason


def test_every_framework_gets_the_same_thread_count():
    environment = worker_environment(3)
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert environment["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("given", "threads"), [("3", 3), ("2,4", 2), ("", None), ("none", None), ("0", None)]
)
def test_threads_are_those_of_the_environment_where_it_says_so(given, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert default_threads() == (threads or usable_cores())


def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path):
    script = (
        "import time\n"
        "from zipfmax_bench.executors import WorkerProcess\n"
        "from zipfmax_bench import messages\n"
        "from zipfmax_reference.runs.case import Case\n"
        f"worker = WorkerProcess({faulty('Hangs')!r}, 1)\n"
        "worker.ask(messages.PrepareCase(Case(60, 8, 16, (10, 30))))\n"
        "print(worker.pid, flush=True)\n"
        "worker.ask(messages.WarmUp())\n"
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
        assert time.monotonic() < deadline, "the worker outlives the process that started it"
        time.sleep(0.05)


def test_a_worker_counts_the_work_of_a_run():
    worker = WorkerProcess("full", threads=1)
    try:
        assert isinstance(worker.ask(messages.PrepareCase(CASE)), messages.Prepared)
        work = worker.ask(messages.Weigh())
    finally:
        worker.close()
    assert isinstance(work, messages.Work)
    assert work.flops == 3 * 2 * CASE.batch_size * CASE.in_features * CASE.n_classes


@pytest.mark.parametrize("count_work", [True, False])
def test_work_is_counted_only_where_it_is_wanted(count_work, in_process):
    with Engine.of_processes(["torch"], threads=1) as engine:
        found = engine.measure({"torch": CASE}, POLICY, count_work=count_work)
    assert (found["torch"].work.flops is not None) == count_work
    assert len(found["torch"].samples) == POLICY.rounds


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
