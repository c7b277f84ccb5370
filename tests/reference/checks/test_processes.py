import os

import torch

from zipfmax_reference.checks import processes
from zipfmax_reference.runs.case import Case

CASE = Case(60, 8, 16, (10, 30))
_begun = []


def begin(word):
    _begun.append(word)


def told(number):
    return number, _begun, torch.get_num_threads(), os.environ["OPENBLAS_NUM_THREADS"]


def test_a_few_cases_and_a_gpu_have_one_process_and_many_cases_one_for_each_core(monkeypatch):
    monkeypatch.setattr(processes, "usable_cores", lambda: 3)
    many = [CASE] * (processes.FEW + 1)
    assert processes.worth(many, "cpu") == 3
    assert processes.worth(many[1:], "cpu") == processes.worth(many, "cuda") == 1


def test_each_process_begins_computes_with_one_thread_and_the_callers_environment_stays(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    before = dict(os.environ)
    with processes.sharing(1, begin, "here") as pool:
        assert dict(os.environ) == before
        assert list(pool.imap(told, [3, 1])) == [(3, ["here"], 1, "1"), (1, ["here"], 1, "1")]
