"""What a running sum loses, against running sums; and deviations that stay finite where a result is."""

from dataclasses import replace

import numpy as np
import pytest

from zipfmax_reference.contestants import registry
from zipfmax_reference.runs import grid
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.truth.judgement import ELEMENT, Truth
from zipfmax_reference.truth.rounding import LANES, ROUNDING, Rounding, Softmax

FLOAT32 = ROUNDING["float32"]
FLAT, WIDE = 1e-4, 4.0
"""Standard deviations of logits whose exponentials are nearly equal, and of which many are below a sum's spacing."""


def softmax_and_loss(n_classes: int, logit_std: float) -> tuple[Softmax, float]:
    """A softmax of float32 logits, and the relative error of its sum in as many running sums as are allowed."""
    logits = (np.random.default_rng(0).standard_normal((1, n_classes)) * logit_std).astype(np.float32)
    terms = np.exp((logits - logits.max()).astype(np.float64)).astype(np.float32)
    running = np.cumsum(terms.reshape(-1, LANES), axis=0, dtype=np.float32)[-1].astype(np.float64).sum()
    exact = terms.astype(np.float64).sum()
    return Softmax.of(FLOAT32, logits.astype(np.float64), np.zeros(logits.shape)), abs(running / exact - 1)


@pytest.mark.parametrize("logit_std", [FLAT, WIDE])
@pytest.mark.parametrize("n_classes", [200_000, 1_000_000])
def test_a_running_sum_loses_more_than_random_rounding_and_no_more_than_the_budget(n_classes, logit_std):
    softmax, lost = softmax_and_loss(n_classes, logit_std)
    assert lost > 2 * np.sqrt(n_classes) * FLOAT32.summed
    assert lost < softmax.stagnation.item()


@pytest.mark.parametrize("logit_std", [0.1, 1.0, 2.0])
def test_over_few_classes_what_is_lost_does_not_widen_the_budget(logit_std):
    n_classes = 2_000
    softmax, lost = softmax_and_loss(n_classes, logit_std)
    assert softmax.stagnation.item() < 0.5 * np.sqrt(n_classes) * FLOAT32.summed
    assert lost < ELEMENT * np.sqrt(softmax.row.item())


@pytest.mark.parametrize("scale", ["scale:30", "scale:10000"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_doubled_output_fails_where_exponentials_underflow(scale, dtype):
    case = Case(300, 13, 64, (20, 150), 2.0, dtype=dtype, hidden=scale)
    truth = Truth.of(case, draw_inputs(case))
    assert (np.exp(truth.values["output"]) == 0).any() == (scale == "scale:10000")
    assert truth.judge("output", truth.values["output"].astype(np.float32)).status == "pass"
    assert truth.judge("output", (2 * truth.values["output"]).astype(np.float32)).status == "fail"


OVERFLOWING = Case(
    203, 101, 128, (1, 2, 202), 1.0, dtype="float16", task="log_prob", hidden="scale:10000", seed=2
)


def test_float16_log_probabilities_beyond_its_largest_number_need_not_be_finite_but_others_must():
    inputs = draw_inputs(OVERFLOWING)
    truth = Truth.of(OVERFLOWING, inputs)
    runner = registry.implementation("torch").build(OVERFLOWING, inputs)
    runner.run()
    results = runner.results()["log_prob"]
    assert np.isinf(results[np.isfinite(truth.values["log_prob"])]).any()
    assert truth.judge("log_prob", results).status == "pass"
    wrong = results.copy()
    wrong[np.unravel_index(truth.values["log_prob"].argmax(), wrong.shape)] = -np.inf
    assert truth.judge("log_prob", wrong).reason == "not finite where the truth is"


def test_a_finite_result_is_held_to_a_finite_budget_even_where_it_might_overflow():
    case = replace(OVERFLOWING, task="forward")
    truth = Truth.of(case, draw_inputs(case))
    overflows = truth.overflows["output"]
    assert overflows.any()
    assert not overflows.all()
    right = np.clip(truth.values["output"], -65504, 65504).astype(np.float16)
    beyond = np.where(np.abs(truth.values["output"]) > 65504, -np.inf, right).astype(np.float16)
    assert truth.judge("output", beyond).status == "pass"
    assert truth.judge("output", np.where(overflows, 0, right).astype(np.float16)).status == "fail"


def test_deviations_are_finite_wherever_the_truth_is():
    awkward = [case for case in grid.full() if case.hidden.startswith("scale:1000")][::20]
    assert {case.dtype for case in awkward} == {"float64", "float32", "bfloat16", "float16"}
    for case in awkward:
        truth = Truth.of(case, draw_inputs(case))
        for tensor, deviation in truth.deviations.items():
            assert np.isfinite(deviation[np.isfinite(truth.values[tensor])]).all(), (case.id, tensor)


def test_gradients_below_float16s_smallest_number_are_lost_together_and_the_budget_says_how_much(monkeypatch):
    case = Case(50_000, 64, 256, (1_000, 5_000, 20_000), dtype="float16", labels="uniform")
    inputs = draw_inputs(case)
    runner = registry.implementation("torch").build(case, inputs)
    runner.run()
    results = runner.results()["grad.input"]
    assert Truth.of(case, inputs).judge("grad.input", results).status == "pass"
    monkeypatch.setattr(Rounding, "underflow", lambda self, values: np.zeros_like(values))
    independent = Truth.of(case, inputs).judge("grad.input", results)
    assert independent.status == "fail"
    assert independent.share > 3
