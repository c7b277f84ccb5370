import sys

import pytest
import torch

from zipfmax.errors import UsageError
from zipfmax_reference.checks import conformance, probes, stability
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.torch_nn import users_layer
from zipfmax_reference.records import Conformance, RunDirectory, Stability
from zipfmax_reference.runs.case import Case


def test_an_agreement_is_told_with_its_margin_and_a_difference_with_its_tensor(monkeypatch):
    class Halved(torch.nn.AdaptiveLogSoftmaxWithLoss):
        def log_prob(self, hidden):
            return super().log_prob(hidden) / 2

    assert probes.parity()("torch").verdict == "agrees"
    monkeypatch.setattr(registry, "implementation", lambda name: users_layer(name, Halved))
    found = probes.parity()("halved")
    assert found.verdict == "differs"
    assert found.detail.startswith("log_prob: tail 1 is off by")


@pytest.mark.parametrize("name", ["zipfmax", "torch"])
def test_a_class_that_float32_does_not_hold_comes_back_right(name):
    assert probes.class_above_float32(name).verdict == "agrees"


def test_paddles_class_that_float32_does_not_hold_comes_back_wrong():
    pytest.importorskip("paddle")
    found = probes.class_above_float32("paddle")
    assert found.verdict == "differs"
    assert str(2**24) in found.detail
    assert "float32" in found.detail


def test_paddles_parameters_lack_its_tails():
    pytest.importorskip("paddle")
    assert probes.parameters_hold_every_weight("paddle").detail.startswith("parameters() holds 2 of 6")
    assert probes.parameters_hold_every_weight("torch").verdict == "agrees"


def test_the_synchronisations_of_torch_are_counted_by_kind():
    found = probes.synchronisations("torch")
    # One nonzero a cluster, the shortlist among them, and a boolean index for each of its labels.
    assert found.verdict == "differs"
    assert found.detail == "8: 4 boolean index, 4 nonzero"


def test_what_torch_lacks_zipfmax_takes():
    probe = probes.keyword("ignore_index", 1)
    assert (probe("zipfmax").verdict, probe("torch").verdict) == ("agrees", "cannot")


def test_a_checkpoint_of_torch_loads():
    assert probes.loads_torch_checkpoint("zipfmax").verdict == "agrees"


def test_a_layer_that_raises_what_no_probe_expects_is_a_finding():
    def probe(name):
        raise OSError("no such luck")

    assert conformance.probed(probe, "torch") == probes.ProbeResult("cannot", "raised OSError: no such luck")


def test_what_is_not_installed_is_not_run(monkeypatch):
    monkeypatch.setattr(probes.importlib.util, "find_spec", lambda name: None)
    found = conformance.probed(probes.parity(), "paddle")
    assert found == probes.ProbeResult("not run", "paddle is not installed")


def test_the_table_is_left_in_the_run_directory_and_a_gap_of_ours_gives_status_1(tmp_path, monkeypatch):
    features = {"right": probes.parity("forward"), "gap": lambda name: probes.ProbeResult("cannot", "no")}
    monkeypatch.setattr(conformance, "FEATURES", features)
    monkeypatch.setattr(conformance, "IMPLEMENTATIONS", ("zipfmax", "torch"))
    assert conformance.run(tmp_path / "run") == 1
    directory = RunDirectory(tmp_path / "run")
    entries = {(r["feature"], r["impl"]): r["verdict"] for r in directory.rows(Conformance)}
    assert entries["right", "torch"] == "agrees"
    assert entries["gap", "zipfmax"] == "cannot"
    assert entries[conformance.CALLABLE, "R torch"] == "not run"
    assert {r["change"] for r in directory.rows(Stability)} == {
        "again",
        "rows permuted",
        "in two halves",
    }
    assert conformance.run(tmp_path / "run", resume=True) == 1
    assert len(directory.rows(Conformance)) == len(entries)
    del features["gap"]
    assert conformance.run(tmp_path / "again") == 0


SMALL = Case(203, 24, 33, (7, 30, 202), 2.0, True)


def test_a_layer_that_adds_noise_is_not_stable():
    class Noisy(torch.nn.AdaptiveLogSoftmaxWithLoss):
        def forward(self, hidden, target):
            output, loss = super().forward(hidden, target)
            return output + 1e-3 * torch.rand_like(output), loss

    found = {(s.change, s.tensor): s.verdict for s in stability.examine(users_layer("noisy", Noisy), SMALL)}
    assert found["again", "output"] == stability.BEYOND
    assert found["again", "loss"] == stability.BITWISE


def test_a_layer_that_depends_on_its_neighbours_is_not_stable():
    class Neighbourly(torch.nn.AdaptiveLogSoftmaxWithLoss):
        def forward(self, hidden, target):
            output, loss = super().forward(hidden, target)
            return output + 1e-3 * output.mean(), loss

    layer = users_layer("neighbourly", Neighbourly)
    found = {(s.change, s.tensor): s.verdict for s in stability.examine(layer, SMALL)}
    assert found["in two halves", "output"] == stability.BEYOND
    assert found["again", "output"] == stability.BITWISE


@pytest.mark.parametrize("name", ["zipfmax", "zipfmax:eager", "torch"])
def test_ours_and_torchs_are_stable(name):
    verdicts = {s.verdict for s in stability.examine(registry.implementation(name), SMALL)}
    assert stability.BEYOND not in verdicts
    again = [s for s in stability.examine(registry.implementation(name), SMALL) if s.change == "again"]
    assert {s.verdict for s in again} == {stability.BITWISE}


OWN = """import torch


class Mine(torch.nn.AdaptiveLogSoftmaxWithLoss):
    def log_prob(self, hidden):
        return super().log_prob(hidden) * 1.01
"""


def test_a_layer_of_one_s_own_is_probed_in_processes_of_its_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(OWN)
    chosen = (conformance.CALLABLE, "one log_prob", "loads a checkpoint of torch.nn", "ignore_index")
    features = {**conformance.FEATURES, "one log_prob": probes.parity("log_prob")}
    monkeypatch.setattr(conformance, "FEATURES", {name: features[name] for name in chosen})
    monkeypatch.setattr(stability, "examine", lambda implementation: [])
    name = f"{tmp_path}/mine.py:Mine"
    assert conformance.run(tmp_path / "run", own=(name,)) == 1
    found = {(one.feature, one.impl): one for one in RunDirectory(tmp_path / "run").read(Conformance)}
    assert {impl for _, impl in found} == {name, "torch"}
    verdicts = [found[feature, name].verdict for feature in chosen]
    assert verdicts == ["agrees", "differs", "agrees", "cannot"]
    told = capsys.readouterr().out
    assert f"FAILED {name}: one log_prob: differs" in told
    assert "ignore_index" not in told.partition("FAILED")[2]  # torch.nn's has none either
    assert "mine" not in sys.modules


def test_a_built_in_name_is_no_layer_of_one_s_own():
    with pytest.raises(UsageError, match="torch is one"):
        conformance.run(own=("torch",))
