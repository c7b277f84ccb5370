"""The protocol of calls: right layers keep every rule, and each fault in use passes one call and breaks a rule."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from zipfmax_reference.checks import faults_backward, faults_calls
from zipfmax_reference.checks.faults import IN_USE, Control
from zipfmax_reference.contestants.torch_nn import torch_layer, users_layer, zipfmax_layer
from zipfmax_reference.runs.case import PROTOCOL, TASKS, Case
from zipfmax_reference.truth import protocol
from zipfmax_reference.truth.oracle import Oracle

CASE = Case(60, 12, 33, (7, 20, 45), 2.0, True, "float64", labels="uniform", task=PROTOCOL)
ONE_CALL = [Oracle(replace(CASE, task=task), ("definition",), explain=False) for task in TASKS]


def broken(layer, case=CASE):
    """Names of the rules that a layer breaks."""
    found = Oracle(case, ("definition",)).check(layer)
    return {r["tensor"].removeprefix("protocol.") for r in found if r["status"] == "fail"}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "layer", [torch_layer(), zipfmax_layer(), zipfmax_layer("eager")], ids=lambda layer: layer.name
)
def test_a_right_layer_keeps_every_rule(layer, dtype):
    for case in (
        CASE,
        replace(CASE, n_classes=40, cutoffs=(1, 39), div_value=4.0, head_bias=False, batch_size=7),
    ):
        records = Oracle(replace(case, dtype=dtype), ("definition",)).check(layer)
        assert {record["status"] for record in records} == {"pass"}
        assert len(records) == len(protocol.RULES) - (dtype not in protocol.CURVATURE_ERROR)


def test_there_are_at_least_forty_faults_in_use_each_in_its_own_words():
    assert len(IN_USE) >= 40
    assert len({cls.fault for cls in IN_USE.values()}) == len(IN_USE)


@pytest.mark.parametrize("name", IN_USE)
def test_the_fault_passes_one_call_and_breaks_a_rule(name):
    layer = users_layer(name, IN_USE[name])
    for oracle in ONE_CALL:
        assert [r for r in oracle.check(layer) if r["status"] != "pass"] == []
    assert broken(layer)


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (faults_calls.OutputInOneBuffer, "an-earlier-result-stays"),
        (faults_calls.TargetZeroed, "the-callers-tensors-stay"),
        (faults_calls.LazyResult, "a-result-is-a-plain-tensor-in-the-graph"),
        (faults_calls.EvaluationSoftens, "evaluation-mode-is-the-same-function"),
        (faults_calls.LogProbKeepsWeights, "log-prob-follows-the-weights"),
        (faults_calls.LoadingLeavesOut, "loaded-weights-count"),
        (faults_calls.SharedByTheClass, "two-layers-share-nothing"),
        (faults_calls.LargeTargetClamped, "a-target-out-of-range-raises"),
        (faults_calls.SeedLeaks, "the-surroundings-stay"),
        (faults_calls.DetachedInputStopsTheTails, "an-input-without-gradient-leaves-those-of-the-weights"),
        (faults_backward.IncomingIgnored, "the-incoming-gradient-counts"),
        (faults_backward.OutputGradientAveraged, "output-can-be-differentiated"),
        (faults_backward.LossTwice, "output-and-loss-can-be-differentiated-together"),
        (faults_backward.NoAccumulation, "gradients-accumulate"),
        (faults_backward.LastCallSaved, "backwards-may-come-later-and-in-any-order"),
        (faults_backward.KeptGraphScaledTwice, "a-graph-that-is-kept-can-be-used-twice"),
        (faults_backward.SecondDerivativeCut, "a-second-derivative-is-right"),
    ],
)
def test_a_fault_is_given_away_by_the_rule_that_it_breaks(fault, rule):
    assert rule in broken(users_layer("fault", fault))


def test_what_a_layer_does_not_promise_is_skipped_and_said():
    records = Oracle(CASE, ("definition",)).check(users_layer("early", faults_backward.Early))
    unlike = {record["tensor"]: record for record in records if record["status"] != "pass"}
    assert list(unlike) == ["protocol.a-second-derivative-is-right"]
    assert unlike["protocol.a-second-derivative-is-right"]["status"] == "skipped"
    assert unlike["protocol.a-second-derivative-is-right"]["reason"].startswith("not promised: ")


def test_a_layer_that_raises_breaks_the_rule_by_its_words():
    class Refusing(Control):
        def predict(self, hidden):
            raise NotImplementedError("no predict yet")

    records = Oracle(CASE, ("definition",)).check(users_layer("refusing", Refusing))
    failed = [record["reason"] for record in records if record["status"] == "fail"]
    assert "raised NotImplementedError: no predict yet" in failed


def test_what_a_layer_changes_of_the_process_is_put_back():
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state(), np.geterr()
    for fault in (
        faults_calls.DefaultDtypeLeaks,
        faults_calls.GradModeLeaks,
        faults_calls.SeedLeaks,
        faults_calls.NumpyErrorsLeak,
    ):
        assert broken(users_layer("fault", fault))
    after = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state(), np.geterr()
    assert torch.equal(before[2], after[2])
    assert (*before[:2], before[3]) == (*after[:2], after[3])


def test_an_implementation_without_calls_is_skipped_with_its_reason():
    class Function:
        name, family = "function", "adaptive"

        def unsupported_reason(self, case):
            return None

    (record,) = Oracle(CASE, ("definition",)).check(Function())
    assert (record["status"], record["reason"]) == ("skipped", "its adapter does one task at a time")
