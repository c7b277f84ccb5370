"""The protocol of calls: right layers keep every rule, and each fault in use passes one call and breaks a rule."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from zipfmax_reference.checks import faults_backward, mutants  # noqa: F401 - plants all faults
from zipfmax_reference.checks.faults import IN_USE, Control
from zipfmax_reference.contestants import registry, surroundings
from zipfmax_reference.contestants.torch_nn import torch_layer, users_layer, zipfmax_layer
from zipfmax_reference.contestants.use import NotPromisedError
from zipfmax_reference.runs import grid
from zipfmax_reference.runs.case import PROTOCOL, Case
from zipfmax_reference.truth import protocol
from zipfmax_reference.truth.oracle import Oracle

CASE = Case(60, 12, 33, (7, 20, 45), 2.0, True, labels="uniform", task=PROTOCOL)
(LARGE,) = [case for case in grid.grid("quick") if case.task == PROTOCOL and protocol.is_large(case)]
ONE_CALL = [
    Oracle(replace(CASE, task=task), ("definition",), explain=False)
    for task in ("train", "log_prob", "predict")
]
REFUSED = {("torch", "protocol.autocast-keeps-to-its-precision")}


LAYERS = (torch_layer(), zipfmax_layer(), zipfmax_layer("eager"))
QUICK = {("zipfmax", "float32"), ("zipfmax", "bfloat16"), ("zipfmax:eager", "float32"), ("torch", "float16")}


@pytest.mark.parametrize(
    ("layer", "dtype"),
    [
        pytest.param(
            layer,
            dtype,
            id=f"{layer.name}-{dtype}",
            marks=() if (layer.name, dtype) in QUICK else pytest.mark.slow,
        )
        for layer in LAYERS
        for dtype in ("float64", "float32", "bfloat16", "float16")
    ],
)
def test_a_right_layer_keeps_every_rule(layer, dtype):
    one_class_clusters = replace(CASE, n_classes=40, cutoffs=(1, 39), head_bias=False, batch_size=7)
    for case in (CASE, one_class_clusters, LARGE) if dtype == "float32" else (CASE,):
        case = replace(case, dtype=dtype)
        records = Oracle(case, ("definition",)).check(layer)
        assert len(records) == len(protocol.names(case))
        unlike = {record["tensor"]: record["reason"] for record in records if record["status"] != "pass"}
        assert {(layer.name, tensor) for tensor in unlike} <= REFUSED, unlike
    assert all(reason.startswith("not promised") for reason in unlike.values())


def broken(layer, rule, case=CASE):
    (verdict,) = protocol.check(case, partial(layer.use, case), [rule]).values()
    return verdict.status == "fail"


def test_there_are_at_least_forty_faults_in_use_each_in_its_own_words():
    assert len(IN_USE) >= 40
    assert len({cls.fault for cls in IN_USE.values()}) == len(IN_USE)


@pytest.mark.parametrize("name", IN_USE)
def test_the_fault_passes_one_call_and_breaks_its_rule(name):
    layer = users_layer(name, IN_USE[name])
    for oracle in ONE_CALL:
        assert [r for r in oracle.check(layer) if r["status"] != "pass"] == []
    (shown,) = [case for case in (CASE, LARGE) if IN_USE[name].large == protocol.is_large(case)]
    assert broken(layer, IN_USE[name].breaks, shown)


def test_every_rule_is_broken_by_a_fault():
    assert {cls.breaks for cls in IN_USE.values()} == protocol.RULES.keys()


def test_what_a_layer_does_not_promise_is_skipped_and_said():
    layer = users_layer("early", faults_backward.Early)
    (verdict,) = protocol.check(CASE, partial(layer.use, CASE), ["a-second-derivative-is-right"]).values()
    assert verdict.status == "skipped"
    assert verdict.reason.startswith("not promised: ")


def test_a_layer_may_refuse_only_what_is_optional():
    class Refusing(Control):
        def forward(self, hidden, target):
            raise NotPromisedError("not today")

        def log_prob(self, hidden):
            raise NotPromisedError("not today")

    layer = users_layer("refusing", Refusing)
    found = protocol.check(CASE, partial(layer.use, CASE))
    skipped = {name for name, verdict in found.items() if verdict.status == "skipped"}
    assert skipped == {f"protocol.{name}" for name, rule in protocol.RULES.items() if rule.optional}
    refused = found["protocol.later-calls-are-right"]
    assert (refused.status, refused.reason.partition(",")[0]) == ("fail", "refused")


def test_a_layer_that_raises_breaks_the_rule_by_its_words():
    class Refusing(Control):
        def predict(self, hidden):
            raise NotImplementedError("no predict yet")

    layer = users_layer("refusing", Refusing)
    (verdict,) = protocol.check(CASE, partial(layer.use, CASE), ["other-methods-leave-a-call-alone"]).values()
    assert (verdict.status, verdict.reason) == ("fail", "raised NotImplementedError: no predict yet")


def test_what_a_layer_changes_of_the_process_is_put_back():
    before = surroundings.read()
    for fault in IN_USE.values():
        if fault.breaks == "the-surroundings-stay":
            assert broken(users_layer("fault", fault), fault.breaks)
    assert surroundings.read() == before


def test_what_was_wrong_before_a_layer_refused_is_still_wrong():
    class Refusing(Control):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

        def loss(self, output, target):
            return super().loss(output, target) + 1

    layer = users_layer("refusing", Refusing)
    (verdict,) = protocol.check(CASE, partial(layer.use, CASE), ["a-copy-is-a-layer-of-its-own"]).values()
    assert verdict.status == "fail"
    assert verdict.where.startswith("loss")


@pytest.mark.parametrize(("change", "tensor"), [("more", "scale"), ("less", "head.bias"), ("raise", "*")])
def test_a_layer_that_cannot_be_made_is_told_once(change, tensor):
    class Unlike(Control):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            if change == "raise":
                raise OSError("no licence")
            if change == "more":
                self.scale = torch.nn.Parameter(torch.ones(()))
            else:
                self.head.bias = None

    (record,) = Oracle(CASE, ("definition",)).check(users_layer("unlike", Unlike))
    assert (record["status"], record["tensor"]) == ("fail", tensor)


def test_paddle_is_asked_what_its_framework_has_and_breaks_what_its_faults_break():
    layer = registry.implementation("paddle")
    if (reason := layer.unsupported_reason(CASE)) is not None:
        pytest.skip(reason)
    found = {record["tensor"]: record for record in Oracle(CASE, ("definition",)).check(layer)}
    broken = {name.removeprefix("protocol.") for name, record in found.items() if record["status"] == "fail"}
    passed = {name.removeprefix("protocol.") for name, record in found.items() if record["status"] == "pass"}
    assert {"an-optimizer-step-counts", "loaded-weights-count"} <= broken  # parameters() lacks the tails
    assert "log-prob-and-predict-follow-the-weights" in broken  # predict gives floats
    assert {"later-calls-are-right", "gradients-accumulate", "weights-written-in-place-count"} <= passed
    assert found["protocol.batches-may-have-gaps"]["reason"].startswith("does not apply: ")


def test_an_implementation_without_calls_is_skipped_with_its_reason():
    class Function:
        name, family = "function", "adaptive"

        def unsupported_reason(self, case):
            return None

    (record,) = Oracle(CASE, ("definition",)).check(Function())
    assert (record["status"], record["reason"]) == ("skipped", "its adapter does one task at a time")
