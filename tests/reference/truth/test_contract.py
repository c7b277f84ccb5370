import numpy as np
import pytest

from zipfmax_reference.truth import contract

TRUTH = np.array([1.0, -2.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (np.zeros((4, 1), np.float32), "shape (4, 1), expected (4,)"),
        (np.zeros(4, np.float64), "dtype float64, expected float32"),
        (np.zeros(4, np.float32), None),
    ],
)
def test_another_shape_or_dtype_is_a_fault(values, fault):
    assert contract.form_fault("output", values, TRUTH, "float32") == fault


def test_predictions_must_be_integers():
    truth = np.array([1, 2])
    assert contract.form_fault("predict", np.array([1.0, 2.0]), truth, "float32")
    assert contract.form_fault("predict", np.array([1, 2], np.int32), truth, "float32") is None


LOG_PROB = np.log(np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7]]))


def test_the_gap_is_the_log_ratio_to_the_best_class():
    assert contract.gaps(np.array([1, 1, 0]), LOG_PROB) == pytest.approx([np.log(5 / 3), 0, np.log(7)])


def test_several_classes_are_held_against_the_best_in_their_order():
    picked = np.array([[0, 1], [1, 0], [1, 2]])
    expected = [[0, 0], [0, 0], [np.log(3.5), np.log(3.5)]]
    assert contract.gaps(picked, LOG_PROB) == pytest.approx(np.array(expected))


def test_a_class_picked_twice_is_infinitely_wrong():
    gap = contract.gaps(np.array([[0, 1], [0, 0], [2, 1]]), LOG_PROB)
    assert gap[1].tolist() == [0, np.inf]


def test_a_row_whose_truth_is_nan_may_predict_any_class():
    log_prob = LOG_PROB.copy()
    log_prob[1] = np.nan
    assert contract.gaps(np.array([0, 7, 2]), log_prob)[1] == 0
