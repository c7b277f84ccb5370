"""The cost model counts the matrix products and scales what it has seen."""

from __future__ import annotations

import numpy as np
import pytest

from zipfmax_bench.prediction import RunTimePredictor, product_flops
from zipfmax_reference.runs.case import Case

CASE = Case(100, 8, 10, (20, 50), div_value=2.0, labels="uniform", task="forward")


def test_flops_of_adaptive_softmax_are_head_and_occupied_tails():
    head = 2 * 10 * 8 * 22
    first = 2 * (10 * 0.3) * 4 * (8 + 30)
    second = 2 * (10 * 0.5) * 2 * (8 + 50)
    assert product_flops("adaptive", CASE) == pytest.approx(head + first + second)


def test_full_softmax_pays_for_every_class_and_training_for_three_products():
    train = Case(**{**CASE.to_fields(), "task": "train"})
    assert product_flops("full", CASE) == 2 * 10 * 8 * 100
    assert product_flops("full", train) == 3 * product_flops("full", CASE)


def test_skew_makes_adaptive_softmax_cheaper():
    costs = [
        product_flops("adaptive", Case(1000, 64, 10, (50, 200), labels=f"zipf:{s}")) for s in (0, 0.8, 1.3)
    ]
    assert np.all(np.diff(costs) < 0)


def test_a_prediction_scales_the_nearest_run_by_its_flops():
    model = RunTimePredictor({"full": "full"})
    larger = Case(**{**CASE.to_fields(), "n_classes": 400})
    assert model.predict("full", CASE) is None
    model.learn("full", CASE, 2.0)
    assert model.predict("full", larger) == pytest.approx(8.0)
    model.learn("full", larger, 6.0)
    assert model.predict("full", larger) == pytest.approx(6.0)


def test_a_dtype_says_nothing_about_another():
    model = RunTimePredictor({"full": "full"})
    model.learn("full", CASE, 2.0)
    assert model.predict("full", Case(**{**CASE.to_fields(), "dtype": "bfloat16"})) is None
