"""The smallest error that is caught: found by bisection, in the place that it is planted in."""

import numpy as np
import pytest

from zipfmax_reference.checks import sensitivity
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.truth.judgement import Truth

CASE = Case(300, 16, 40, (20, 100), 2.0, True)


@pytest.fixture(scope="module")
def truth():
    return Truth.of(CASE, draw_inputs(CASE))


@pytest.mark.parametrize("tensor", ["grad.head.weight", "grad.tail.1.1.weight", "output"])
def test_places_hold_the_rows_of_the_classes_that_they_are_named_after(truth, tensor):
    found = sensitivity.places(truth, tensor)
    rows = {name: np.flatnonzero(mask.reshape(len(mask), -1).any(axis=1)) for name, mask in found.items()}
    times = np.bincount(truth.target, minlength=CASE.n_classes)
    labels = truth.target if tensor == "output" else truth.classes(tensor, truth.values[tensor].shape)[1]
    seen = np.where(labels >= 0, times[labels], -1)
    assert seen[rows["frequent"]] == [seen.max()]
    assert seen[rows["rare"]] == [seen[seen > 0].min()]
    assert len(rows["largest element"]) == 1
    if tensor == "output":
        assert "absent" not in rows
    else:
        assert list(seen[rows["absent"]]) == [0]
        assert (seen[rows["all absent"]] == 0).all()
        assert len(rows["all absent"]) == (seen == 0).sum()


@pytest.mark.parametrize("threshold", [3e-7, 0.02, 5.0])
def test_bisection_finds_the_threshold(threshold):
    assert sensitivity._bisected(lambda error: error > threshold) == pytest.approx(threshold, rel=0.01)


def test_what_is_never_caught_is_said_to_be():
    assert sensitivity._bisected(lambda error: False) == np.inf
    assert sensitivity._text(np.inf) == "> 10"


def test_every_tensor_is_in_the_table_and_no_place_of_any_is_blind():
    found = list(sensitivity.examine(CASE))
    assert {tensor for tensor, _, _ in found} == set(Truth.of(CASE, draw_inputs(CASE)).values)
    assert max(error for _, _, error in found) < 1e-3
