"""Budgets hold for right layers in any order of summation, and see a fault in one rare class."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zipfmax_reference.contestants import registry
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.truth import budgets, judgement
from zipfmax_reference.truth.causes import Causes
from zipfmax_reference.truth.judgement import Truth
from zipfmax_reference.truth.rounding import ROUNDING

LARGE = Case(50_000, 128, 256, (2_000, 10_000))
SMALL = Case(60, 12, 33, (7, 20, 45), 2.0, True)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def large(request):
    """(truth, torch.nn's results) at 50,000 classes."""
    case = replace(LARGE, dtype=request.param)
    inputs = draw_inputs(case)
    runner = registry.implementation("torch").build(case, inputs)
    runner.run()
    return Truth.of(case, inputs), runner.results()


def test_torchs_own_layer_holds_at_50000_classes_with_a_margin(large):
    truth, results = large
    for tensor, verdict in truth.verdicts(results).items():
        assert verdict.status == "pass", (tensor, verdict)
        assert verdict.share < 0.8, (tensor, verdict)


def rows_of(truth, kind):
    """Rows of the last tail's weight: of absent classes, of targets, or of the last one of either."""
    tail = truth.case.layout.tails[-1]
    present = np.isin(np.arange(tail.start, tail.stop), truth.target)
    absent = np.flatnonzero(~present)
    targets = np.flatnonzero(present)
    return {
        "absent": absent,
        "one absent": absent[-1:],
        "targets": targets,
        "one target": targets[-1:],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "fault", "where"),
    [
        ("one absent", lambda dw: -dw, "absent from the batch"),
        ("one target", lambda dw: -dw, "a target"),
        ("absent", lambda dw: 1.1 * dw, "absent"),
        ("absent", lambda dw: np.where(np.abs(dw) < 1e-3 * np.abs(dw).max(), 0, dw), "absent"),
        ("absent", lambda dw: 0 * dw, "absent"),
        ("targets", lambda dw: 1.1 * dw, "target"),
    ],
    ids=[
        "wrong sign of one",
        "wrong sign of a target",
        "10 % too large",
        "small ones dropped",
        "all dropped",
        "targets too large",
    ],
)
def test_a_fault_in_rare_classes_is_seen_and_located(large, kind, fault, where):
    truth, results = large
    wrong = results["grad.tail.1.1.weight"].copy()
    rows = rows_of(truth, kind)
    wrong[rows] = fault(wrong[rows])
    verdict = truth.judge("grad.tail.1.1.weight", wrong)
    assert verdict.status == "fail"
    over = {part.name for part in verdict.parts if part.share > 1}
    assert where in verdict.where or any(where in name for name in over), verdict
    assert not any("absent" in name for name in over) or "target" not in kind


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_torchs_layer_and_ours_hold_on_any_partition_in_any_order_of_rows(data):
    n_classes = data.draw(st.integers(2, 70))
    cutoffs = data.draw(st.sets(st.integers(1, n_classes - 1), min_size=1, max_size=4))
    case = Case(
        n_classes,
        data.draw(st.integers(1, 17)),
        data.draw(st.integers(1, 40)),
        tuple(sorted(cutoffs)),
        data.draw(st.sampled_from([1.0, 2.0, 4.0])),
        data.draw(st.booleans()),
        data.draw(st.sampled_from(["float64", "float32", "bfloat16", "float16"])),
        seed=data.draw(st.integers(0, 9)),
    )
    inputs = draw_inputs(case)
    order = np.random.default_rng(case.seed).permutation(case.batch_size)
    inputs = replace(inputs, hidden=inputs.hidden[order], target=inputs.target[order])
    truth = Truth.of(case, inputs)
    for name in ("torch", "zipfmax"):
        runner = registry.implementation(name).build(case, inputs)
        runner.run()
        for tensor, verdict in truth.verdicts(runner.results()).items():
            assert verdict.status == "pass", (name, tensor, verdict)


def test_deviations_are_as_large_as_the_errors_of_float32_with_random_roundings():
    """The model against Monte Carlo arithmetic: errors over deviations are near 1 at most, never far above."""
    case = replace(SMALL, dtype="bfloat16")
    inputs = draw_inputs(case)
    truth = Truth.of(case, inputs)
    rng = np.random.default_rng(0)
    head, hidden = (inputs.weights["head.weight"].astype(float), inputs.hidden.astype(float))
    logits = hidden @ head.T + inputs.weights["head.bias"]
    row = case.layout.parts(inputs.target) == 0
    errors = []
    for _ in range(200):
        moved = logits * (1 + ROUNDING["bfloat16"].unit * rng.uniform(-1, 1, logits.shape))
        log_p = moved - np.log(np.exp(moved).sum(axis=1, keepdims=True))
        errors.append(log_p[row, inputs.target[row]] - truth.values["output"][row])
    spread = np.sqrt(np.mean(np.square(errors), axis=0))
    share = spread / truth.deviations["output"][row]
    assert share.max() < 1
    assert share.max() > 0.1


@pytest.mark.parametrize("row_weight", ["output", "both"])
def test_upstream_gradients_of_output_and_loss_are_judged_by_row_weights(row_weight):
    inputs = draw_inputs(SMALL)
    layer = torch.nn.AdaptiveLogSoftmaxWithLoss(12, 60, [7, 20, 45], 2.0, head_bias=True)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(torch.from_numpy(inputs.weights[name]))
    hidden = torch.from_numpy(inputs.hidden).requires_grad_()
    output, loss = layer(hidden, torch.from_numpy(inputs.target))
    upstream = torch.randn(len(output), generator=torch.Generator().manual_seed(0))
    total = (upstream * output).sum() + (0.7 * loss if row_weight == "both" else 0.0)
    total.backward()
    weights = upstream.double().numpy() - (0.7 / len(output) if row_weight == "both" else 0.0)
    truth = Truth.of(SMALL, inputs, row_weight=weights)
    assert truth.judge("grad.input", hidden.grad.numpy()).status == "pass"
    for name, parameter in layer.named_parameters():
        assert truth.judge(f"grad.{name}", parameter.grad.numpy()).status == "pass", name
    assert Truth.of(SMALL, inputs).judge("grad.input", hidden.grad.numpy()).status == "fail"


@pytest.mark.parametrize(
    ("mistake", "cause"),
    [
        ("reversed", "cluster slots are in reverse order"),
        ("bias", "the head's bias is missing"),
        ("transposed", "tail.0.0.weight is transposed"),
    ],
)
def test_the_usual_mistakes_are_named(mistake, cause):
    case = replace(SMALL, div_value=1.0)
    inputs = draw_inputs(case)
    weights = dict(inputs.weights)
    if mistake == "reversed":
        for name in ("head.weight", "head.bias"):
            weights[name] = np.concatenate([weights[name][:7], weights[name][7:][::-1]])
    elif mistake == "bias":
        weights["head.bias"] = np.zeros_like(weights["head.bias"])
    else:
        weights["tail.0.0.weight"] = weights["tail.0.0.weight"].T.copy()
    runner = registry.implementation("torch").build(case, replace(inputs, weights=weights))
    runner.run()
    wrong = runner.results()["output"]
    truth = Truth.of(case, inputs)
    assert truth.judge("output", wrong).status == "fail"
    assert Causes(case, inputs, truth).of("output", wrong) == cause


def test_a_wrong_output_fails_where_its_exponential_underflows():
    case = replace(SMALL, hidden="scale:1000")
    inputs = draw_inputs(case)
    truth = Truth.of(case, inputs)
    assert truth.values["output"].min() < -800  # exp of it is 0 in float64
    right = truth.values["output"].astype(np.float32)
    assert truth.judge("output", right).status == "pass"
    assert truth.judge("output", 2 * right).status == "fail"
    assert truth.judge("loss", np.float32(-2 * right.mean())).status == "fail"


@pytest.mark.parametrize(("times", "status"), [(1, "pass"), (10, "fail")])
def test_what_a_long_sum_drops_in_every_row_alike_holds_and_ten_times_that_fails(times, status):
    case = Case(40_000, 8, 200, (100,), 1.0, labels="uniform")
    truth = Truth.of(case, draw_inputs(case))
    tail = case.layout.tails[0]
    absent = ~np.isin(np.arange(tail.start, tail.stop), truth.target)
    # The sum of exponentials too small by sqrt(C) roundings in each row: probabilities too large by as much.
    moved = truth.values["grad.tail.0.1.weight"].copy()
    moved[absent] *= 1 + times * np.sqrt(tail.size) * ROUNDING["float32"].summed
    assert truth.judge("grad.tail.0.1.weight", moved).status == status


@pytest.mark.parametrize(
    "case",
    [
        Case(97, 13, 128, (10, 11, 12), 1.0, True, "float16", labels="zipf:2.0", task="log_prob"),
        Case(300, 13, 33, (20, 60, 61, 150, 299), 1.0, dtype="float16", labels="only:59", seed=2),
    ],
    ids=["log_prob", "train"],
)
def test_what_float16_cannot_hold_may_become_infinite(case):
    case = replace(case, hidden="scale:10000")
    inputs = draw_inputs(case)
    truth = Truth.of(case, inputs)
    runner = registry.implementation("torch").build(case, inputs)
    runner.run()
    results = runner.results()
    assert not all(np.isfinite(values).all() for values in results.values())
    for tensor, verdict in truth.verdicts(results).items():
        assert verdict.status == "pass", (tensor, verdict)


def test_a_value_that_is_not_finite_fails_where_the_truth_is_and_the_other_way_round():
    inputs = draw_inputs(SMALL)
    truth = Truth.of(SMALL, inputs)
    wrong = truth.values["output"].astype(np.float32)
    wrong[3] = np.inf
    assert truth.judge("output", wrong).reason == "not finite where the truth is"
    spoilt = replace(truth, values={"output": np.full_like(wrong, np.nan)})
    assert "finite values where the truth is not" in spoilt.judge("output", np.zeros_like(wrong)).reason


def test_equal_rows_make_equal_errors_and_one_row_has_no_average():
    expanded = replace(SMALL, hidden="expanded", dtype="bfloat16", batch_size=200)
    one, many = (
        Truth.of(case, draw_inputs(case)) for case in (replace(expanded, batch_size=1, seed=3), expanded)
    )
    assert one.different_rows == many.different_rows == 1
    assert judgement.ROW_SPREAD > 0
    for name in ("torch", "zipfmax"):
        runner = registry.implementation(name).build(expanded, draw_inputs(expanded))
        runner.run()
        assert {v.status for v in many.verdicts(runner.results()).values()} == {"pass"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "case",
    [
        Case(20_000, 64, 256, (1_000, 5_000, 10_000)),
        Case(10_000, 64, 256, (100, 101, 9_999), 8.0, labels="uniform"),
        Case(5_000, 64, 64, (500,), 64.0, labels="uniform"),
    ],
    ids=["widths 16, 4, 1", "tails of one class", "one tail of width 1"],
)
def test_tails_of_one_column_or_one_class_hold(case, dtype):
    """All classes share one number of each row there; its rounding and the target's term are in the budget."""
    case = replace(case, dtype=dtype)
    assert any(tail.projection_size == 1 or tail.size == 1 for tail in case.layout)
    inputs = draw_inputs(case)
    truth = Truth.of(case, inputs)
    for name in ("torch", "zipfmax:tiled", "zipfmax:eager"):
        runner = registry.implementation(name).build(case, inputs)
        runner.run()
        for tensor, verdict in truth.verdicts(runner.results()).items():
            assert verdict.status == "pass", (name, tensor, verdict)


def test_a_fault_in_a_tail_of_one_column_is_seen():
    case = Case(5_000, 64, 64, (500,), 64.0, labels="uniform", dtype="bfloat16")
    truth = Truth.of(case, draw_inputs(case))
    for tensor in ("grad.tail.0.0.weight", "grad.tail.0.1.weight", "grad.input"):
        assert truth.judge(tensor, truth.values[tensor].astype(np.float32)).status == "pass"
        assert truth.judge(tensor, (1.1 * truth.values[tensor]).astype(np.float32)).status == "fail"


@pytest.mark.parametrize("classes", [2_000, 65_902])
def test_one_running_sum_over_classes_stays_within_the_budget_of_a_narrow_product(classes):
    # Torch's products of two columns keep one; the target's term makes it large enough to lose thousands of terms.
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((classes, 2)).astype(np.float32)
    weight[1] = -8.0, -0.3
    hidden = np.array([[2.0, -0.06]], dtype=np.float32)
    target, row_weight = np.array([1]), np.ones(1)
    deviations = budgets.full(weight, hidden, target, row_weight, ROUNDING["float32"], gradients=True)
    logits = hidden.astype(np.float64) @ weight.T.astype(np.float64)
    gradient = np.exp(logits - np.logaddexp.reduce(logits[0]))[0]
    gradient[1] -= 1
    terms = gradient[:, None] * weight
    error = np.cumsum(terms, axis=0, dtype=np.float32)[-1] - terms.sum(axis=0)
    share = abs(error) / deviations["grad.input"][0]
    assert share.max() < judgement.ELEMENT
    if classes > 10_000:  # and the random part would not allow for it
        random = np.sqrt(classes) * ROUNDING["float32"].summed * abs(terms).sum(axis=0)
        assert abs(error[0]) > judgement.ELEMENT * random[0]


@pytest.mark.parametrize("family", ["adaptive", "full"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_truth_without_the_weights_gradients_is_the_same_for_the_rest(family, bias):
    case = Case(60, 17, 24, (10, 30), task="train", head_bias=bias, dtype="bfloat16")
    inputs = draw_inputs(case, full=True)
    whole, rest = (Truth.of(case, inputs, family, of_weights=wanted) for wanted in (True, False))
    assert rest.values.keys() == whole.values.keys() & {"output", "loss", "grad.input"}
    assert rest.deviations.keys() == rest.values.keys()
    for name, values in rest.values.items():
        np.testing.assert_array_equal(values, whole.values[name])
        np.testing.assert_array_equal(rest.deviations[name], whole.deviations[name])
