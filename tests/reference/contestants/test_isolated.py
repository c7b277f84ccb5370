"""A user's class harms nothing but its own verdict, whatever it does at import, in its constructor or in a call."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from zipfmax.errors import UsageError
from zipfmax_reference.checks import verify
from zipfmax_reference.contestants import isolated, registry
from zipfmax_reference.contestants.child import ChildError, _of
from zipfmax_reference.runs.case import PROTOCOL, Case
from zipfmax_reference.truth import judgement, protocol
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
RIGHT = """
import os, torch
import beside
from dataclasses import dataclass
with open(__file__ + ".pids", "a") as file:
    print(os.getpid(), file=file)

class Right(torch.nn.AdaptiveLogSoftmaxWithLoss):
    def forward(self, hidden, target):
        print("what a layer prints must not reach the answers")
        return super().forward(hidden, target)
"""
DIES = """
import os, time, torch

if os.fork() == 0:  # holds the pipes when its parent is gone
    time.sleep(600)

class Dies(torch.nn.AdaptiveLogSoftmaxWithLoss):
    def forward(self, hidden, target):
        result, backwards = super().forward(hidden, target), []
        result.loss.register_hook(lambda gradient: os._exit(7) if backwards else backwards.append(1))
        return result
"""
NO_ARGUMENTS = """
import torch

class NoArguments(torch.nn.AdaptiveLogSoftmaxWithLoss):
    def __init__(self):
        pass
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


def test_a_right_layer_passes_in_a_process_of_its_own_the_protocol_too_and_as_a_reference(
    place, tmp_path, monkeypatch
):
    name = place(RIGHT, "Right")
    (tmp_path / "beside.py").touch()
    (tmp_path / "queue.py").write_text("import sys; sys.exit('this is no queue of the standard library')")
    monkeypatch.chdir(tmp_path)
    layer = isolated.implementation(name)
    assert {r["status"] for r in records(layer)} == {"pass"}
    in_use = records(layer, Case(60, 12, 9, (7, 20), 2.0, labels="uniform", task=PROTOCOL))
    unlike = {r["tensor"]: r["status"] for r in in_use if r["status"] != "pass"}
    assert unlike == {"protocol.autocast-keeps-to-its-precision": "skipped"}
    of_torch = Oracle(CASE, (layer,)).check(registry.implementation("torch"))
    assert {(r["against"], r["status"]) for r in of_torch} == {(name, "pass")}
    (pid,) = Path(name.removesuffix(":Right") + ".pids").read_text().split()
    assert int(pid) != os.getpid()


def test_a_reference_of_a_users_is_imported_by_no_judge(place, tmp_path, monkeypatch):
    (tmp_path / "beside.py").touch()
    monkeypatch.setattr(registry, "_users_class", pytest.fail)
    asked = []
    monkeypatch.setattr(isolated.IsolatedLayer, "build", lambda self, *_: asked.append(self.name) or 1 / 0)
    name = place(RIGHT, "Right")
    options = verify.Options(impl=("torch",), against=("definition", name), cells="V60-*-div4-bias-float32")
    assert verify.run(options) == 0
    assert set(asked) == {name}


def test_a_process_that_dies_in_a_rule_breaks_it(place):
    layer, case = isolated.implementation(place(DIES, "Dies")), Case(40, 12, 9, (7, 20), task=PROTOCOL)
    (verdict,) = protocol.check(
        case, partial(layer.use, case), ["a-graph-that-is-kept-can-be-used-twice"]
    ).values()
    assert (verdict.status, verdict.reason) == ("fail", "its process died with status 7")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import sys; sys.exit(0)", "its process died with status 0"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("class L(:", r"SyntaxError: invalid syntax \(layer.py, line 1\)"),
    ],
)
def test_a_file_that_cannot_be_imported_is_wrong_use_in_its_own_words(place, text, reason):
    with pytest.raises(UsageError, match=rf"layer\.py.* cannot be imported: {reason}") as raised:
        isolated.implementation(place(text, "L"))
    assert str(raised.value).count("cannot be imported") == 1


def test_an_import_that_hangs_is_ended(place, monkeypatch):
    monkeypatch.setattr(isolated, "LIMIT", 0.3)
    with pytest.raises(UsageError, match=r"cannot be imported: gave no answer within 0\.3 s"):
        isolated.implementation(place("import time; time.sleep(600)", "L"))


def test_a_constructor_that_cannot_be_called_is_one_finding_also_where_the_run_is_resumed(
    place, tmp_path, capsys
):
    options = verify.Options(impl=(place(NO_ARGUMENTS, "NoArguments"),), against=("definition",), cells="V60")
    for resume in (False, True):
        assert verify.run(options, tmp_path / "run", resume) == 1
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
        assert len(lines) == 1
        assert "raised TypeError: NoArguments.__init__() got an unexpected keyword argument" in lines[0]
        assert lines[0].endswith("(3 cells; it was not tried in others)")


def test_a_class_that_is_not_there_is_refused(place):
    for name, told in (
        ("nothing.py:Layer", r"no such file: nothing\.py"),
        (place("", ""), r"layer\.py: names no class"),
        (place("", "Nothing"), r"layer\.py has no class 'Nothing'"),
        ("nosuch.module:Layer", r"no such module: nosuch\.module"),
    ):
        with pytest.raises(UsageError, match=told):
            isolated.implementation(name)


def test_an_answer_that_cannot_be_is_one_finding(place, monkeypatch):
    monkeypatch.setattr(isolated, "largest_answer", lambda case, inputs: 200)
    (record,) = records(isolated.implementation(place(RIGHT.replace("import beside", ""), "Right")))
    assert record["tensor"] == "*"
    assert "gave an answer that cannot be read: it has " in record["reason"]
    with pytest.raises(ChildError, match="another kind"):
        _of(float, {"output": "wide"})


def test_names_of_this_project_stay_in_this_process():
    assert type(isolated.implementation("torch")) is type(registry.implementation("torch"))
