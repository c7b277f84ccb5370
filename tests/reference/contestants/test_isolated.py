"""A user's class harms nothing but its own verdict, whatever it does at import, in its constructor or in a call."""

import numpy as np
import pytest
import torch

from zipfmax.errors import UsageError
from zipfmax_reference.checks import verify
from zipfmax_reference.contestants import isolated, registry
from zipfmax_reference.runs.case import PROTOCOL, Case
from zipfmax_reference.truth import judgement
from zipfmax_reference.truth.oracle import Oracle

CASE = Case(60, 12, 9, (7, 20), 2.0, True, labels="uniform")

HARMFUL = """
import sys, numpy as np, torch
import zipfmax_reference.truth.judgement as judgement
judgement.ELEMENT = judgement.ROW = judgement.GROUP = 1e9
np.seterr(all="raise")
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)

class Wrong(torch.nn.AdaptiveLogSoftmaxWithLoss):
    def forward(self, hidden, target):
        result = super().forward(hidden, target)
        return type(result)(result.output, 1.5 * result.loss)
"""
OTHERS = """
import os, sys, torch

class Right(torch.nn.AdaptiveLogSoftmaxWithLoss):
    def forward(self, hidden, target):
        print("what a layer prints must not reach the answers")
        return super().forward(hidden, target)

class NoArguments(torch.nn.AdaptiveLogSoftmaxWithLoss):
    def __init__(self):
        pass

class Dies(torch.nn.AdaptiveLogSoftmaxWithLoss):
    def forward(self, hidden, target):
        os._exit(3)

class Hangs(torch.nn.AdaptiveLogSoftmaxWithLoss):
    def forward(self, hidden, target):
        import time
        time.sleep(600)
"""


@pytest.fixture
def place(tmp_path):
    def write(text, name):
        file = tmp_path / "layer.py"
        file.write_text(text)
        return f"{file}:{name}"

    return write


def records(layer, case=CASE):
    return Oracle(case, ("definition",)).check(layer)


def test_a_file_that_patches_this_project_is_still_found_wrong(place):
    before = judgement.ELEMENT, np.geterr(), torch.get_default_dtype(), torch.is_grad_enabled()
    found = records(
        isolated.implementation(place(HARMFUL, "Wrong")), Case(60, 12, 9, (7, 20), task="forward")
    )
    assert {r["tensor"]: r["status"] for r in found} == {"output": "pass", "loss": "fail"}
    assert before == (judgement.ELEMENT, np.geterr(), torch.get_default_dtype(), torch.is_grad_enabled())


def test_a_right_layer_passes_in_a_process_of_its_own_the_protocol_too(place):
    layer = isolated.implementation(place(OTHERS, "Right"))
    for case in (CASE, Case(60, 12, 9, (7, 20), 2.0, labels="uniform", task=PROTOCOL)):
        assert {r["status"] for r in records(layer, case)} == {"pass"}


@pytest.mark.parametrize(
    ("text", "name", "reason"),
    [
        (
            OTHERS,
            "NoArguments",
            "raised TypeError: NoArguments.__init__() got an unexpected keyword argument",
        ),
        (OTHERS, "Dies", "its process died with status 3"),
        (OTHERS, "Missing", "has no class 'Missing'"),
        ("import sys; sys.exit(0)", "L", "its process died with status 0"),
        ("1 / 0", "L", "ZeroDivisionError: division by zero"),
    ],
)
def test_what_fails_is_a_finding_in_its_own_words(place, text, name, reason):
    (record,) = records(isolated.implementation(place(text, name)))
    assert (record["tensor"], record["status"]) == ("*", "fail")
    assert reason in record["reason"]


def test_a_call_that_hangs_is_ended(place, monkeypatch):
    monkeypatch.setattr(isolated, "LIMIT", 6.0)
    (record,) = records(isolated.implementation(place(OTHERS, "Hangs")))
    assert record["reason"] == "gave no answer within 6 s"


def test_a_class_that_dies_again_and_again_is_not_started_for_ever(place):
    layer = isolated.implementation(place("import sys; sys.exit(0)", "L"))
    reasons = [records(layer)[0]["reason"] for _ in range(6)]
    assert reasons[:5] == ["its process died with status 0"] * 5
    assert "not started again after 5 times" in reasons[5]


def test_a_constructor_that_cannot_be_called_is_one_finding(place, capsys):
    options = verify.Options(impl=(place(OTHERS, "NoArguments"),), against=("definition",), cells="V60")
    assert verify.run(options) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert len(lines) == 1
    assert lines[0].endswith("(3 cells; it was not tried in others)")


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"no such file: nothing\.py"):
        isolated.implementation("nothing.py:Layer")


def test_names_of_this_project_stay_in_this_process():
    assert type(isolated.implementation("torch")) is type(registry.implementation("torch"))
