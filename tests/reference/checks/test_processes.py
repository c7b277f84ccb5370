import os
import signal
import time
from dataclasses import replace
from multiprocessing import active_children
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch

from zipfmax.errors import UsageError
from zipfmax_reference.checks import processes
from zipfmax_reference.runs.case import Case

CASE = Case(60, 8, 16, (10, 30))
_begun = []


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """This module, by the processes that are started."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3])


def begin(word):
    _begun.append(word)


def told(number):
    return number, _begun, torch.get_num_threads(), os.environ["OPENBLAS_NUM_THREADS"]


def test_a_few_cases_have_one_process_and_many_one_for_each_core(monkeypatch):
    monkeypatch.setattr(processes, "usable_cores", lambda: 3)
    many = [CASE] * (processes.FEW + 1)
    assert processes.worth(many, "cpu") == processes.worth(many, "cuda:1") == 3
    assert processes.worth(many[1:], "cpu") == processes.worth(many[1:], "cuda") == 1


def test_a_gpu_is_shared_by_a_few_processes_and_by_none_for_large_cases(monkeypatch):
    monkeypatch.setattr(processes, "usable_cores", lambda: 100)
    many = [CASE] * (processes.FEW + 1)
    assert processes.worth(many, "cuda") == processes.MOST_ON_A_GPU
    large = [*many, replace(CASE, n_classes=processes.LARGE_ON_A_GPU)]
    assert (processes.worth(large, "cpu"), processes.worth(large, "cuda")) == (100, 1)


def test_each_process_begins_computes_with_one_thread_and_the_callers_environment_stays(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    before = dict(os.environ)
    with processes.sharing(1, begin, "here") as each:
        assert dict(os.environ) == before
        assert list(each(told, [3, 1])) == [(3, ["here"], 1, "1"), (1, ["here"], 1, "1")]


def ends(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_said_and_what_was_judged_stays():
    judged = []

    def judge():
        with processes.sharing(1) as each:
            judged.extend(each(told, [3]))
            judged.extend(each(ends, [2]))

    with pytest.raises(UsageError, match=r"ended before they were judged: .* --resume goes on"):
        judge()
    assert [number for number, *_ in judged] == [3]


def waits(seconds):
    time.sleep(seconds)


def test_what_ends_the_context_ends_its_processes_at_once():
    started = set(active_children())

    def interrupted():
        with processes.sharing(2) as each:
            next(each(waits, [0, 600, 600]))
            started.symmetric_difference_update(active_children())
            assert len(started) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    # Not by `join`: the pool's own thread collects a process's status too, and one of the two finds none.
    for process in started:
        assert wait([process.sentinel], 30)


def test_cases_are_handed_out_a_few_ahead(monkeypatch):
    monkeypatch.setattr(processes, "AHEAD", 2)
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    with processes.sharing(1) as each:
        results = each(told, items())
        assert next(results)[0] == 0
        assert taken == [0, 1, 2]
        assert [number for number, *_ in results] == list(range(1, 20))
