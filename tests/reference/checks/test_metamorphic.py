import pytest
import torch

from zipfmax_reference.checks import metamorphic
from zipfmax_reference.checks.faults import FAULTS
from zipfmax_reference.checks.mutants import CONTROL  # importing it plants the faults
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.torch_nn import users_layer
from zipfmax_reference.records import Metamorphic, RunDirectory
from zipfmax_reference.runs.case import Case

CASES = [Case(20_000, 24, 6, (200, 3000), 4.0, True, dtype) for dtype in ("float32", "float64")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.dtype)
@pytest.mark.parametrize("name", ["zipfmax", "zipfmax:eager", "torch", "definition"])
def test_every_relation_holds(case, name):
    if name == "definition" and case.dtype == "float32":
        pytest.skip("it answers in float64")
    found = {r.relation: r.status for r in metamorphic.check(case, registry.implementation(name))}
    assert found == dict.fromkeys(metamorphic.RELATIONS, "pass")


@pytest.mark.parametrize(
    ("fault", "relation"),
    [
        ("prior-forgotten", "probabilities sum to 1"),
        ("last-class-not-summed", "probabilities sum to 1"),
        ("local-labels-from-one", "output is gathered log_prob"),
        ("bias-of-shortlist-alone", "a shift of the logits changes nothing"),
        ("rows-grouped", "rows may be permuted"),
        ("half-the-batch", "the batch may be split"),
        ("input-gradient-lacks-tails", "the gradient is the loss's slope"),
        ("gradient-negated", "the gradient is the loss's slope"),
    ],
)
def test_a_planted_fault_breaks_its_relation(fault, relation):
    assert CONTROL not in FAULTS
    layer = users_layer(fault, FAULTS[fault])
    found = {r.relation: r.status for r in metamorphic.check(CASES[1], layer)}
    assert found[relation] == "fail"


def test_what_is_lacking_is_skipped_with_its_reason():
    case = Case(20_000, 24, 6, (200, 3000), 1000.0, True)
    found = list(metamorphic.check(case, registry.implementation("tensorflow")))
    assert {r.status for r in found} == {"skipped"}
    assert all(r.reason for r in found)


def test_a_layer_that_raises_is_a_finding():
    class Raises(torch.nn.AdaptiveLogSoftmaxWithLoss):
        def log_prob(self, hidden):
            raise ValueError("no such luck")

    found = {r.relation: r for r in metamorphic.check(CASES[0], users_layer("raises", Raises))}
    assert found["probabilities sum to 1"].reason == "raised ValueError: no such luck"
    assert found["rows may be permuted"].status == "pass"


def test_relations_are_left_in_the_run_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(metamorphic, "CASES", CASES[:1])
    assert metamorphic.run(("torch",), out=tmp_path / "run") == 0
    records = RunDirectory(tmp_path / "run").rows(Metamorphic)
    assert {r["relation"] for r in records} == set(metamorphic.RELATIONS)
