"""The cost model's arithmetic, and the fit."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from zipfmax.clusters import ClusterLayout
from zipfmax.cost_model import TAIL_WIDTHS, CostModel, PartCost, fit_nonnegative, part_features

PRICES = (2e-10, 9e-10, 8e-10, 7e-10, 6e-10, 5e-10, 4e-10)
MODEL = CostModel(
    head=PartCost(1e-4, 3e-11, 4e-10, 0.0, 1e-9, 0.0, 3e-7, (0.0, 0.0), (5e-10,)),
    tail=PartCost(2e-4, 2e-11, 3e-10, 7e-10, 2e-9, 2e-10, 5e-7, (3e-10, 5e-10), PRICES, TAIL_WIDTHS),
    full=PartCost(0.0, 3e-11, 1e-10, 0.0, 0.0, 0.0, 2e-7, (4e-9, 0.0), (7e-10,)),
)


def test_a_step_is_the_head_and_every_tail_counted_by_hand():
    layout = ClusterLayout(in_features=64, n_classes=1000, cutoffs=(100, 300), div_value=4.0)
    head = 1e-4 + 3e-11 * 50 * 102 * 64 + 5e-10 * 50 * 102 + 4e-10 * 102 * 64 + 1e-9 * 50 * 64
    head += 3e-7 * (50 * 100) ** 0.5
    tails = 0.0
    for rows, classes, width, price in ((10, 200, 16, 6e-10), (5, 700, 4, 8e-10)):
        products = rows * (classes * width + 64 * width)
        weights = classes * width + 64 * width
        tails += 2e-4 + 2e-11 * products + price * rows * classes + 3e-10 * weights + 2e-9 * rows * 64
        tails += 5e-7 * (rows * classes) ** 0.5
    assert_allclose(MODEL.adaptive_s(layout, [35, 10, 5]), head + tails, rtol=1e-12)


def test_weights_and_logits_beyond_the_near_ones_cost_more():
    rows, classes, width = 100.0, 200_000.0, 64
    near = replace(MODEL.tail, per_far_weight=0.0, per_far_logit=(0.0, 0.0))
    weights = classes * width + 64 * width - (1 << 20)
    logits = 3e-10 * (rows * classes - (1 << 21)) + 5e-10 * (rows * classes - (1 << 24))
    extra = MODEL.tail.seconds(rows, classes, width, 64) - near.seconds(rows, classes, width, 64)
    assert_allclose(extra, 7e-10 * weights + logits, rtol=1e-9)


@pytest.mark.parametrize(
    ("width", "price"),
    [(1, 2e-10), (4, 8e-10), (64, 4e-10), (300, 4e-10), (3, 9e-10 + np.log2(1.5) * -1e-10)],
)
def test_a_logits_price_is_that_of_its_width_and_between_two_on_the_line_through_them(width, price):
    assert_allclose(MODEL.tail.at_width(width).per_logit - 2e-11 * width, price, rtol=1e-9)


@given(st.integers(1, 10**6), st.integers(1, 4096), st.sampled_from([0, 1, 3, 16, 64, 100]))
def test_the_cost_at_a_width_agrees_with_the_part_it_is_taken_from(classes, rows, width):
    cost = MODEL.tail.at_width(width, projected_from=64)
    expected = MODEL.tail.seconds(rows, classes, width, projected_from=64)
    assert_allclose(cost(np.array(float(classes)), np.array(float(rows))), expected, rtol=1e-12)


@given(st.integers(1, 10**6), st.integers(1, 4096), st.integers(1, 6))
def test_a_slot_adds_the_same_to_every_head(shortlist, rows, slots):
    cost = MODEL.head.at_width(64)
    alone = cost(np.array(float(shortlist)), np.array(float(rows)))
    slot = cost.per_class + cost.per_logit * rows
    with_slots = MODEL.head.seconds(rows, shortlist, 64, slots=slots)
    assert_allclose(with_slots, alone + slots * slot, rtol=1e-12)


def test_a_projection_as_wide_as_its_input_is_still_counted():
    assert_allclose(
        part_features(3, 5, 8, projected_from=8),
        [1, 3 * (5 * 8 + 64), 5 * 8 + 64, 0, 24, 0, 15**0.5, 0, 0, 15],
    )


def test_the_fit_recovers_the_coefficients_of_exact_measurements():
    generator = np.random.default_rng(0)
    shapes = 10 ** generator.uniform(1, [3.9, 4.8, 3.5], (60, 3))
    features = np.stack([part_features(*shape) for shape in shapes])
    truth = np.array([1e-4, 3e-11, 4e-10, 2e-10, 1e-9, 7e-10, 4e-7, 3e-10, 6e-10, 5e-10])
    assert_allclose(fit_nonnegative(features, features @ truth), truth, rtol=1e-6)


def test_the_fit_never_goes_below_zero():
    features = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert (fit_nonnegative(features, np.array([1.0, 0.5, 0.2])) >= 0).all()


def test_a_model_survives_its_record():
    assert CostModel.from_record(MODEL.to_record()) == MODEL


def test_a_part_is_made_again_of_its_coefficients():
    assert PartCost.of(MODEL.tail.coefficients(), TAIL_WIDTHS) == MODEL.tail
