"""The cost model's arithmetic, and the fit."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from zipfmax.clusters import ClusterLayout
from zipfmax.cost import CostModel, PartCost, fit_nonnegative, part_features

MODEL = CostModel(
    head=PartCost(1e-4, 3e-11, 5e-10, 4e-10, 1e-9),
    tail=PartCost(2e-4, 2e-11, 6e-10, 3e-10, 2e-9),
    full=PartCost(0.0, 3e-11, 7e-10, 1e-10, 0.0),
)


def test_a_step_is_the_head_and_every_tail_counted_by_hand():
    layout = ClusterLayout(in_features=64, n_classes=1000, cutoffs=(100, 300), div_value=4.0)
    head = 1e-4 + 3e-11 * 50 * 102 * 64 + 5e-10 * 50 * 102 + 4e-10 * 102 * 64 + 1e-9 * 50 * 64
    tails = 0.0
    for rows, classes, width in ((10, 200, 16), (5, 700, 4)):
        products = rows * (classes * width + 64 * width)
        weights = classes * width + 64 * width
        tails += 2e-4 + 2e-11 * products + 6e-10 * rows * classes + 3e-10 * weights + 2e-9 * rows * 64
    assert_allclose(MODEL.adaptive_s(layout, [35, 10, 5]), head + tails, rtol=1e-12)


@given(st.integers(1, 10**6), st.integers(1, 4096), st.sampled_from([0, 1, 5, 16, 64]))
def test_a_tail_cost_agrees_with_the_model_it_is_taken_from(classes, rows, width):
    cost = MODEL.tail_cost(in_features=64, projection_size=width)
    expected = MODEL.tail.seconds(rows, classes, width, projected_from=64)
    assert_allclose(cost(np.array(float(classes)), np.array(float(rows))), expected, rtol=1e-12)


def test_a_projection_as_wide_as_its_input_is_still_counted():
    assert_allclose(part_features(3, 5, 8, projected_from=8), [1, 3 * (5 * 8 + 64), 15, 5 * 8 + 64, 24])


def test_the_fit_recovers_the_coefficients_of_exact_measurements():
    generator = np.random.default_rng(0)
    shapes = generator.uniform(10, 5000, (40, 3))
    features = np.stack([part_features(*shape) for shape in shapes])
    truth = np.array([1e-4, 3e-11, 5e-10, 4e-10, 1e-9])
    assert_allclose(fit_nonnegative(features, features @ truth), truth, rtol=1e-6)


def test_the_fit_never_goes_below_zero():
    features = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert (fit_nonnegative(features, np.array([1.0, 0.5, 0.2])) >= 0).all()


def test_a_model_survives_its_record():
    assert CostModel.from_record(MODEL.to_record()) == MODEL
