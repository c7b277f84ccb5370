import re

import pytest

from zipfmax.errors import UsageError
from zipfmax_reference.checks import faults_forward, faults_results, mutants
from zipfmax_reference.checks.faults import FAULTS, IN_USE, Control
from zipfmax_reference.records import Mutant, RunDirectory
from zipfmax_reference.runs import grid as grids
from zipfmax_reference.runs.case import PROTOCOL

# Cells of the quick grid in which every fault shows, all but a few of them twice; `zipfmax mutants` takes the grid.
SHOWING = (
    "train-V60-d17-N64-*-div2-bias-float64-*-strided",
    "train-V60-d48-N64-*-div1.5-bias-float32-*",
    "predict-V60-d48-N33-*-div4-nobias-float32-*-nan-rows",
    "log_prob-V60-d48-N33-*-div4-nobias-float32-*-nan-rows",
    "predict-V60-d32-N64-*-div1-nobias-float32-*",
    "log_prob-V60-d17-N33-*-div1-nobias-float64-*",
    "train-V60-d32-N1-*-div4-nobias-float64-*-expanded",
    "train-V60-d48-N1-*-div1-bias-float32-*",
    "forward-V60-d32-N64-*-div1-nobias-float32-*",
    "forward-V60-d32-N24-*-div2-bias-float32-*-scale:100",
    "train-V60-d32-N24-*-div2-bias-float32-*-scale:100",
    "forward-V60-d17-N64-*-div2-bias-float64-*-strided",
    "V5021-",
    "V31-d3-N66001-",
    "V31-d3-N8209-",
    "train-V500-d17-N7-*-div2-bias-float32-*",
    "V500-d512-",
    "V40004-",
)
SLICE = [case for pattern in SHOWING for case in grids.matching(grids.grid("quick"), pattern)]


@pytest.fixture(scope="module")
def outcomes():
    with pytest.MonkeyPatch.context() as patch:  # what was found wrong once is not asked again
        patch.setattr(mutants.processes, "FEW", 1)
        found = mutants.examine(SLICE, {mutants.CONTROL: Control, **FAULTS})
    return {outcome.mutant: outcome for outcome in found}


def test_there_are_at_least_forty_faults_and_each_is_said_in_its_own_words():
    assert len(FAULTS) >= 40
    assert len({cls.fault for cls in FAULTS.values()}) == len(FAULTS)
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in FAULTS)


@pytest.mark.slow
def test_processes_that_share_the_cases_find_what_one_finds():
    few = {mutants.CONTROL: Control, **{name: FAULTS[name] for name in list(FAULTS)[:3]}}
    assert mutants.examine(SLICE, few, n_processes=2) == mutants.examine(SLICE, few)


def test_a_mutant_that_was_caught_is_left_out_and_the_control_is_not(monkeypatch):
    monkeypatch.setattr(mutants.processes, "FEW", 1)
    cases = grids.matching(grids.grid("quick"), "forward-V60-*-bias-float64")
    caught = "weight-stored-transposed"
    control, mutant = mutants.examine(cases, {mutants.CONTROL: Control, caught: FAULTS[caught]})
    assert (control.cells, control.cells_failed) == (len(cases), 0)
    assert 0 < mutant.cells < len(cases)
    assert mutant.cells_failed == mutant.cells


@pytest.mark.parametrize("name", FAULTS)
def test_the_planted_fault_is_caught(outcomes, name):
    outcome = outcomes[name]
    assert outcome.caught, outcome.fault
    assert outcome.tensor not in (None, "*"), outcome.reason


def test_the_control_passes(outcomes):
    control = outcomes[mutants.CONTROL]
    assert (control.cells, control.cells_failed) == (len(SLICE), 0)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("head-gradient-scaled", "grad.head.weight"),
        ("bias-gradient-missing", "grad.head.bias"),
        ("loss-summed", "loss"),
        ("output-negated", "output"),
        ("input-gradient-lacks-tails", "grad.input"),
        ("predict-greedy", "predict"),
        ("log-prob-zero", "log_prob"),
        ("sizes-at-least-one", "tail.2.0.weight"),
    ],
)
def test_a_fault_is_given_away_by_the_tensor_it_spoils(outcomes, name, tensor):
    assert outcomes[name].tensor == tensor


def test_a_fault_in_use_is_judged_by_the_rule_that_it_breaks_where_that_is_asked():
    names = ("first-call-only", "many-classes-kept", "autocast-coarse")
    cases = [case for case in grids.grid("quick") if case.task == PROTOCOL]
    found = mutants.examine(cases, {name: IN_USE[name] for name in names})
    assert [(o.tensor, o.cells, o.cells_failed) for o in found] == [
        ("protocol.later-calls-are-right", 4, 4),
        ("protocol.later-calls-are-right", 1, 1),
        ("protocol.autocast-keeps-to-its-precision", 2, 2),
    ]


def test_a_mutant_that_survives_gives_status_1(monkeypatch, capsys):
    monkeypatch.setattr(mutants, "FAULTS", {"harmless": type("Harmless", (Control,), {"fault": "none"})})
    assert mutants.run(cells="predict-V60-*-div4-bias") == 1
    assert "not caught: harmless" in capsys.readouterr().out


def test_a_control_that_is_found_wrong_gives_status_1(monkeypatch, capsys):
    monkeypatch.setattr(mutants, "FAULTS", {"p": faults_results.PredictSmallest})
    monkeypatch.setattr(mutants, "Control", faults_forward.BiasDropped)
    assert mutants.run(cells="V60-*-div4-bias") == 1
    assert "the control" in capsys.readouterr().out


def test_mutants_that_cannot_be_judged_here_are_no_success(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="nothing was judged: no CUDA"):
        mutants.run(cells="predict-V60-*-div4-bias", device="cuda")


def test_the_outcomes_are_left_in_the_run_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "FAULTS", {"predict-smallest": faults_results.PredictSmallest})
    assert mutants.run(cells="predict-V60-*-div4-bias", out=tmp_path / "run") == 0
    monkeypatch.setattr(mutants, "examine", pytest.fail)
    assert mutants.run(cells="predict-V60-*-div4-bias", out=tmp_path / "run", resume=True) == 0
    control, caught = RunDirectory(tmp_path / "run").rows(Mutant)
    assert (control["mutant"], control["caught"]) == ("control", False)
    assert caught["caught"]
    assert caught["tensor"] == "predict"
    assert caught["cells_failed"] == caught["cells"] == 2
