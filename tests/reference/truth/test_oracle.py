import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.settings import Setting
from zipfmax_reference.contestants.torch_nn import users_layer
from zipfmax_reference.runs import grid as grids
from zipfmax_reference.runs.case import DTYPES, PROTOCOL, TASKS, Case
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.truth.oracle import WHOLE, Oracle, assert_parity, check

CASE = Case(203, 24, 33, (7, 30, 202), 2.0, True)


pytest_plugins = ["pytester"]


class Layer(torch.nn.AdaptiveLogSoftmaxWithLoss):
    """torch.nn's, to be broken."""


def statuses(records):
    return {(record["against"], record["tensor"]): record["status"] for record in records}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_torch_agrees_with_the_definition_on_any_partition(data):
    n_classes = data.draw(st.integers(2, 300))
    cutoffs = data.draw(st.sets(st.integers(1, n_classes - 1), min_size=1, max_size=5))
    case = Case(
        n_classes,
        data.draw(st.integers(1, 40)),
        data.draw(st.integers(0, 70)),
        tuple(sorted(cutoffs)),
        data.draw(st.sampled_from([1.0, 1.5, 2.0, 4.0, 1000.0])),
        data.draw(st.booleans()),
        data.draw(st.sampled_from(DTYPES)),
        labels=data.draw(st.sampled_from(["uniform", "zipf:1.0", "zipf:2.0"])),
        task=data.draw(st.sampled_from(TASKS)),
        seed=data.draw(st.integers(0, 1000)),
    )
    failed = [r for r in check(case, "torch", ("definition", "torch")) if r["status"] == "fail"]
    assert not failed


def test_every_tensor_of_the_contract_is_compared_with_every_reference():
    weights = draw_inputs(CASE).weights
    expected = {
        "train": {"output", "loss", "grad.input", *(f"grad.{name}" for name in weights)},
        "forward": {"output", "loss"},
        "log_prob": {"log_prob"},
        "predict": {"predict"},
        "topk": {"topk.values", "topk.classes"},
    }
    for task, tensors in expected.items():
        found = statuses(check(replace(CASE, task=task), "zipfmax:eager", ("definition", "torch")))
        assert found == {(a, t): "pass" for a in ("definition", "torch") for t in tensors}


@pytest.mark.parametrize(
    "case",
    [
        Case(60, 16, 33, (7, 20, 45), head_bias=True, dtype="float64", task="topk"),
        Case(203, 17, 9, (1, 2, 202), 1.5, task="topk", labels="uniform"),
        Case(7, 5, 4, (2, 5), 1000.0, task="topk"),  # fewer classes than are asked for, and uniform tails
        Case(500, 24, 1, (499,), dtype="bfloat16", task="topk"),
        Case(60, 16, 8, (7, 20), task="topk", hidden="nan-rows"),
    ],
    ids=lambda case: case.id,
)
def test_the_best_classes_are_the_definitions_for_layers_with_and_without_a_topk(case):
    for name in ("zipfmax:eager", "zipfmax", "torch", "full"):
        records = check(case, name, ("definition", "full" if name == "full" else "torch"))
        assert {record["status"] for record in records} == {"pass"}, (name, records)
        assert {record["tensor"] for record in records} == {"topk.values", "topk.classes"}


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        (lambda values, classes: (values, classes.flip(1)), {"topk.classes"}),
        (lambda values, classes: (values, classes[:, :1].expand_as(classes)), {"topk.classes"}),
        (lambda values, classes: (values * (1 + 1e-4), classes), {"topk.values"}),
        (lambda values, classes: (values[:, :-1], classes), {"topk.values"}),
    ],
    ids=["order", "one class again and again", "values", "one too few"],
)
def test_a_wrong_topk_fails_the_tensor_that_is_wrong(fault, wrong):
    class Wrong(Layer):
        def topk(self, hidden, k):
            return fault(*self.log_prob(hidden).topk(k))

    records = Oracle(replace(CASE, task="topk"), ("definition",)).check(users_layer("wrong", Wrong))
    assert {record["tensor"] for record in records if record["status"] == "fail"} == wrong


def test_a_wrong_gradient_of_one_weight_fails_that_tensor_alone():
    class Wrong(Layer):
        def forward(self, hidden, target):
            if hidden.requires_grad:
                self.tail[1][1].weight.register_hook(lambda gradient: gradient * (1 + 1e-4))
            return super().forward(hidden, target)

    found = statuses(Oracle(CASE, ("definition", "torch")).check(users_layer("wrong", Wrong)))
    assert {tensor for (_, tensor), status in found.items() if status == "fail"} == {"grad.tail.1.1.weight"}


def test_one_nan_among_many_values_fails():
    class Wrong(Layer):
        def log_prob(self, hidden):
            right = super().log_prob(hidden)
            right[-1, -1] = torch.nan
            return right

    case = replace(CASE, task="log_prob")
    records = Oracle(case, ("definition", "torch")).check(users_layer("wrong", Wrong))
    assert set(statuses(records).values()) == {"fail"}


def test_a_layer_that_raises_is_a_finding_with_its_message():
    class Raises(Layer):
        def forward(self, hidden, target):
            raise ValueError("no such luck")

    (record,) = Oracle(CASE, ("definition",)).check(users_layer("raises", Raises))
    assert (record["status"], record["tensor"]) == ("fail", WHOLE)
    assert record["reason"] == "raised ValueError: no such luck"


def test_a_layer_that_cannot_be_built_is_a_finding_with_its_message():
    class Picky(Layer):
        def __init__(self, in_features, n_classes, cutoffs):
            super().__init__(in_features, n_classes, cutoffs)

    (record,) = Oracle(CASE, ("definition",)).check(users_layer("picky", Picky))
    assert record["status"] == "fail"
    assert "unexpected keyword argument" in record["reason"]


def test_a_weight_of_another_shape_is_a_finding_under_its_name():
    class Wide(Layer):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **{**keywords, "div_value": 1.0})

    (record,) = Oracle(CASE, ("definition",)).check(users_layer("wide", Wide))
    assert (record["status"], record["tensor"]) == ("fail", "tail.0.0.weight")


def test_memory_that_runs_out_is_no_finding_about_numbers():
    class Hungry(Layer):
        def forward(self, hidden, target):
            raise torch.OutOfMemoryError("too much")

    with pytest.raises(torch.OutOfMemoryError):
        Oracle(CASE, ("definition",)).check(users_layer("hungry", Hungry))


def test_what_an_implementation_lacks_is_recorded_as_skipped_with_its_reason():
    case = replace(CASE, device="cuda")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    records = check(case, "torch", ("definition", "torch"))
    assert [(r["against"], r["status"]) for r in records] == [("definition", "skipped"), ("torch", "skipped")]
    assert "no CUDA" in records[0]["reason"]


def test_labels_that_this_machine_lacks_are_recorded_as_skipped(monkeypatch):
    from zipfmax_reference.runs import labels

    monkeypatch.setitem(sys.modules, "wordfreq", None)
    labels._word_frequencies.cache_clear()
    (record,) = check(replace(CASE, labels="wordfreq:fr"), "torch", ("definition",))
    assert (record["status"], record["tensor"]) == ("skipped", WHOLE)
    assert "wordfreq, which is not installed" in record["reason"]


def test_a_reference_that_lacks_the_case_is_recorded_as_skipped_with_its_reason():
    case = replace(CASE, dtype="bfloat16")
    found = {r["against"]: r for r in check(case, "torch", ("definition", "paddle"))}
    assert found["paddle"]["status"] == "skipped"
    assert "addle" in found["paddle"]["reason"]
    assert found["definition"]["status"] == "pass"


def test_full_softmax_is_judged_by_its_own_definition():
    records = check(CASE, "full", ("definition", "torch"))
    assert {(r["against"], r["tensor"], r["status"]) for r in records} == {
        ("definition", "loss", "pass"),
        ("definition", "grad.input", "pass"),
        ("definition", "grad.full.weight", "pass"),
        ("torch", WHOLE, "skipped"),
    }


def test_full_and_adaptive_softmax_are_judged_side_by_side():
    oracle = Oracle(CASE, ("definition",))
    for name in ("full", "torch", "full", "zipfmax:eager"):
        assert set(statuses(oracle.check(registry.implementation(name))).values()) == {"pass"}, name


def test_a_wrong_full_softmax_fails():
    def wrong(hidden, weight, target, bias):
        return torch.nn.functional.cross_entropy(hidden @ weight.T, (target + 1) % len(weight))

    full = registry.implementation("full")
    full.settings = lambda case: [Setting("", lambda: wrong)]
    assert "fail" in statuses(Oracle(CASE, ("definition",)).check(full)).values()


@pytest.mark.parametrize("hidden", ["nan-rows", "inf-rows"])
def test_rows_beside_a_spoilt_row_must_be_right(hidden):
    class Spreads(Layer):
        def log_prob(self, values):
            right = super().log_prob(values)
            return right + 0 * right.sum()

    case = replace(CASE, task="log_prob", hidden=hidden)
    assert set(statuses(check(case, "torch", ("definition",))).values()) == {"pass"}
    (record,) = Oracle(case, ("definition",)).check(users_layer("spreads", Spreads))
    assert record["status"] == "fail"


def test_a_right_class_and_a_right_module_hold():
    assert_parity(torch.nn.AdaptiveLogSoftmaxWithLoss, grids.matching(grids.small(), "div4-bias"))
    assert_parity(Layer(24, 60, [7, 20, 45], dtype=torch.float64, head_bias=True))


def test_a_module_is_not_changed_by_the_check():
    layer = Layer(24, 60, [7, 20, 45])
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert_parity(layer, against=("definition",))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_callers_modes_and_a_modules_frozen_weights_do_not_count():
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        layer = Layer(24, 203, [7, 30, 202], 2.0, head_bias=True).requires_grad_(False)
        assert_parity(layer, [CASE])
        assert torch.is_inference_mode_enabled()
    assert not any(weight.requires_grad for weight in layer.parameters())


def test_a_class_that_freezes_its_weights_is_told_so():
    def frozen(*arguments, **keywords):
        return Layer(*arguments, **keywords).requires_grad_(False)

    with pytest.raises(AssertionError, match="requires_grad is False"):
        assert_parity(frozen, [CASE], ("definition",))


def test_nothing_to_compare_is_wrong_use():
    for empty in ({"cases": []}, {"against": ()}):
        with pytest.raises(ValueError, match="is empty"):
            assert_parity(Layer, **empty)


def test_a_layer_that_exits_fails():
    class Exits(Layer):
        def forward(self, hidden, target):
            sys.exit(0)

    for case in (CASE, replace(CASE, task=PROTOCOL)):
        with pytest.raises(AssertionError, match="raised SystemExit: 0"):
            assert_parity(Exits, [case], ("definition",))


def test_a_wrong_layer_is_told_by_tensor_reference_and_case():
    class Wrong(Layer):
        def predict(self, hidden):
            return super().predict(hidden).clamp(max=3)

    cases = grids.matching(grids.small(), "predict-V60-*-div4-bias")
    with pytest.raises(
        AssertionError, match=r"Wrong does not match the reference:\npredict against definition"
    ):
        assert_parity(Wrong, cases)
    with pytest.raises(AssertionError, match="predict against torch"):
        assert_parity(Wrong(24, 60, [7, 20, 45]))


def test_a_class_that_cannot_be_made_is_one_finding():
    class NoArguments(Layer):
        def __init__(self):
            super().__init__(8, 20, [4])

    with pytest.raises(AssertionError, match="NoArguments cannot be used: raised TypeError") as raised:
        assert_parity(NoArguments)
    assert len(str(raised.value).splitlines()) == 1


def test_a_layer_that_raises_in_some_cases_only_is_told_case_by_case():
    class NoPredict(Layer):
        def predict(self, hidden):
            raise ValueError("no such luck")

    with pytest.raises(AssertionError, match="raised ValueError: no such luck, in predict-V60"):
        assert_parity(NoPredict, grids.matching(grids.small(), "V60-*-div4-bias"), ("definition",))


def test_parity_is_a_fixture_of_pytest(pytester):
    pytester.makepyfile(
        """
        import torch

        class Half(torch.nn.AdaptiveLogSoftmaxWithLoss):
            def log_prob(self, hidden):
                return super().log_prob(hidden) / 2

        def test_right(assert_parity):
            assert_parity(torch.nn.AdaptiveLogSoftmaxWithLoss(8, 20, [4, 9]))

        def test_wrong(assert_parity):
            assert_parity(Half(8, 20, [4, 9]))
        """
    )
    result = pytester.runpytest_inprocess("-p", "zipfmax_reference.fixtures")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*log_prob against definition*"])
