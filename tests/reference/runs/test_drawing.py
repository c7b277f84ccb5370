from dataclasses import replace

import numpy as np
import pytest
import torch

from zipfmax_reference.runs.case import DTYPES, Case
from zipfmax_reference.runs.drawing import FULL_WEIGHT, draw_batch, draw_inputs
from zipfmax_reference.truth import definition

CASE = Case(203, 13, 37, (7, 30, 202), head_bias=True)
# Sums of the absolute weights of CASE, as recorded before cases had a logit_std.
MAGNITUDES = {
    "head.weight": 64.23078736104071,
    "head.bias": 3.9680612199008465,
    "tail.0.1.weight": 64.65061204368249,
    "full.weight": 1157.1135833268927,
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_of_the_case_holds_every_value_exactly(dtype):
    inputs = draw_inputs(replace(CASE, dtype=dtype), full=True)
    for values in (inputs.hidden, *inputs.weights.values()):
        there = torch.from_numpy(values).to(getattr(torch, dtype))
        assert np.array_equal(there.to(torch.float64).numpy(), values.astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_use_the_precision_of_the_dtype(dtype):
    hidden = draw_inputs(replace(CASE, dtype=dtype)).hidden
    coarser = {"float64": torch.float32, "float32": torch.float16, "bfloat16": torch.float8_e5m2}
    cut = torch.from_numpy(hidden).to(coarser.get(dtype, torch.bfloat16)).to(torch.float64).numpy()
    assert (cut != hidden).mean() > 0.5


def test_weights_have_the_names_and_shapes_of_torch():
    layer = torch.nn.AdaptiveLogSoftmaxWithLoss(13, 203, [7, 30, 202], 4.0, head_bias=True)
    expected = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert {name: w.shape for name, w in draw_inputs(CASE).weights.items()} == expected


def test_the_same_case_draws_the_same_bits_and_another_seed_others():
    first, again, other = (draw_inputs(replace(CASE, seed=seed), full=True) for seed in (0, 0, 1))
    assert np.array_equal(first.hidden, again.hidden)
    assert np.array_equal(first.target, again.target)
    for name, weight in first.weights.items():
        assert np.array_equal(weight, again.weights[name])
        assert weight.size == 0 or not np.array_equal(weight, other.weights[name])


def test_the_weight_of_full_softmax_is_drawn_only_when_asked_for():
    assert FULL_WEIGHT not in draw_inputs(CASE).weights
    assert draw_inputs(CASE, full=True).weights[FULL_WEIGHT].shape == (203, 13)


def test_rounds_are_fresh_and_the_first_is_the_inputs_own():
    inputs = draw_inputs(CASE)
    for round in range(3):
        hidden, target = draw_batch(CASE, round)
        assert np.array_equal(hidden, inputs.hidden) == (round == 0)
        assert np.array_equal(target, inputs.target) == (round == 0)


@pytest.mark.parametrize("in_features", [13, 16, 300])
def test_logits_are_neither_flat_nor_one_hot(in_features):
    case = Case(2000, in_features, 400, (500, 1000), div_value=1.0, dtype="float64")
    inputs = draw_inputs(case)
    hidden, w = inputs.hidden, inputs.weights
    head = hidden @ w["head.weight"].T
    tail = hidden @ w["tail.0.0.weight"].T @ w["tail.0.1.weight"].T
    assert 1 < head.std() < 3
    assert 1 < tail.std() < 3


def head_logits(inputs):
    logits = inputs.hidden @ inputs.weights["head.weight"].T
    return logits + inputs.weights.get("head.bias", 0.0)


@pytest.mark.parametrize("spread", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("head_bias", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_logits_of_head_tails_and_full_softmax_have_the_spread_of_the_case(spread, head_bias, dtype):
    case = Case(4000, 64, 500, (2000, 3000), 1.5, head_bias, dtype, logit_std=spread)
    inputs = draw_inputs(case, full=True)
    w, hidden = inputs.weights, inputs.hidden
    assert head_logits(inputs).std() == pytest.approx(spread, rel=0.03)
    assert (hidden @ w[FULL_WEIGHT].T).std() == pytest.approx(spread, rel=0.03)
    for tail in ("tail.0", "tail.1"):
        logits = hidden @ w[f"{tail}.0.weight"].T @ w[f"{tail}.1.weight"].T
        assert logits.std() == pytest.approx(spread, rel=0.06)


def test_a_logit_spread_changes_weights_by_a_factor_and_nothing_else():
    plain, spread = (draw_inputs(replace(CASE, logit_std=std), full=True) for std in (2.0, 4.0))
    assert np.array_equal(plain.hidden, spread.hidden)
    assert np.array_equal(plain.target, spread.target)
    for name, weight in plain.weights.items():
        factor = 1 if name.endswith(".0.weight") else 2  # of projections, whose outputs are no logits
        assert spread.weights[name] == pytest.approx(factor * weight, rel=1e-6), name


def test_a_case_without_a_spread_draws_the_bits_that_it_always_drew():
    w = draw_inputs(CASE, full=True).weights
    found = {name: float(np.abs(w[name].astype(np.float64)).sum()) for name in MAGNITUDES}
    assert found == pytest.approx(MAGNITUDES, rel=1e-7)


def test_poisoned_rows_leave_sound_rows_beside_them():
    for kind, bad in (("nan-rows", np.isnan), ("inf-rows", np.isinf)):
        hidden = draw_inputs(replace(CASE, hidden=kind)).hidden
        spoilt = bad(hidden).any(axis=1)
        assert spoilt[1::4].all()
        assert not np.delete(spoilt, np.s_[1::4]).any()


def test_an_expanded_hidden_state_repeats_one_row():
    hidden = draw_inputs(replace(CASE, hidden="expanded")).hidden
    assert hidden.shape == (37, 13)
    assert (hidden == hidden[0]).all()


def test_a_scaled_hidden_state_is_the_plain_one_times_the_scale():
    plain, scaled = (draw_inputs(replace(CASE, hidden=h)).hidden for h in ("normal", "scale:1000"))
    assert scaled == pytest.approx(plain * 1000, rel=1e-6)


def test_the_loss_of_a_drawn_case_is_that_of_an_untrained_model():
    case = replace(CASE, batch_size=2000, dtype="float64")
    loss = definition.evaluate(case, draw_inputs(case))["loss"]
    assert 2 < loss < 12
