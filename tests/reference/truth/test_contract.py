import numpy as np
import pytest

from zipfmax_reference.truth import contract
from zipfmax_reference.truth.contract import EPS, Size

TRUTH = np.array([1.0, -2.0, 0.5, 0.0])


def judged(values, reference_error=0.0, dtype="float32", truth=TRUTH):
    return contract.judge(np.asarray(values), truth, Size(reference_error, reference_error), dtype)


def test_the_truth_itself_passes_without_error():
    verdict = judged(TRUTH)
    assert (verdict.status, verdict.error) == ("pass", 0.0)


def test_the_budget_is_twice_the_references_error_and_a_rounding():
    verdict = judged(TRUTH + np.array([0, 0, 0, 1e-6]), reference_error=3e-7)
    assert verdict.reference_error == 3e-7
    assert verdict.norm == "max"
    assert verdict.budget == pytest.approx(2 * (3e-7 + EPS["float32"] * 2.0))


@pytest.mark.parametrize(("share", "status"), [(0.99, "pass"), (1.01, "fail")])
def test_an_error_passes_up_to_its_budget_and_no_further(share, status):
    budget = 2 * EPS["float32"] * 2.0
    assert judged(TRUTH + np.array([share * budget, 0, 0, 0])).status == status


def test_errors_everywhere_fail_on_the_root_mean_square_where_the_maximum_holds():
    truth = np.array([1.0] + [0.01] * 999)
    error = 1.5 * EPS["float32"]
    verdict = judged(truth + error, truth=truth)
    assert error < 2 * EPS["float32"]
    assert (verdict.status, verdict.norm) == ("fail", "rms")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_passes_where_the_truth_is(bad):
    verdict = judged([1.0, bad, 0.5, 0.0], reference_error=1e300)
    assert verdict.status == "fail"
    assert "not finite" in verdict.reason


def test_a_finite_value_where_the_truth_is_not_fails():
    truth = np.array([1.0, np.nan])
    assert judged([1.0, 0.0], truth=truth).status == "fail"
    assert judged([1.0, np.nan], truth=truth).status == "pass"
    assert judged([1.0, np.inf], truth=truth).status == "pass"


def test_a_reference_that_is_not_finite_sets_no_budget():
    assert judged(TRUTH, reference_error=np.inf).status == "skipped"
    assert judged(TRUTH, reference_error=np.nan).status == "skipped"


def test_a_truth_of_zeros_allows_zeros_alone():
    zeros = np.zeros(3)
    assert judged(zeros, truth=zeros).status == "pass"
    assert judged(zeros + 1e-30, truth=zeros).status == "fail"


def test_empty_tensors_agree():
    assert judged(np.zeros((0, 4)), truth=np.zeros((0, 4))).status == "pass"


def test_errors_are_told_in_units_in_the_last_place():
    verdict = judged(TRUTH + np.array([0, 3 * 2 * EPS["float32"], 0, 0]))
    assert verdict.error_ulp == pytest.approx(3)


def test_error_of_numbers_too_large_to_square_is_finite():
    assert contract.size(np.array([1e300, -1e300])) == Size(1e300, 1e300)


def test_the_precision_of_a_wider_truth_counts():
    truth = np.array([1.0], dtype=np.longdouble) + np.longdouble(2) ** -60
    if np.finfo(np.longdouble).nmant < 60:
        pytest.skip("long double is no wider than double here")
    assert contract.error(np.array([1.0]), truth).max == pytest.approx(2.0**-60)


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


def test_either_class_of_a_tie_is_right_and_any_other_is_not():
    none = Size(0, 0)
    for labels, status in (([0, 0, 2], "pass"), ([0, 1, 2], "pass"), ([0, 2, 2], "fail")):
        gap = contract.gaps(np.array(labels), LOG_PROB)
        assert contract.judge_gaps(gap, LOG_PROB, none, "float32").status == status


def test_several_classes_are_held_against_the_best_in_their_order():
    picked = np.array([[0, 1], [1, 0], [1, 2]])
    expected = [[0, 0], [0, 0], [np.log(3.5), np.log(3.5)]]
    assert contract.gaps(picked, LOG_PROB) == pytest.approx(np.array(expected))


def test_a_class_picked_twice_is_infinitely_wrong():
    gap = contract.gaps(np.array([[0, 1], [0, 0], [2, 1]]), LOG_PROB)
    assert gap[1].tolist() == [0, np.inf]


@pytest.mark.parametrize("label", [-1, 3, 1.5, np.nan])
def test_a_class_that_does_not_exist_is_infinitely_wrong(label):
    gap = contract.gaps(np.array([0, 0, label]), LOG_PROB)
    assert gap[2] == np.inf
    assert contract.judge_gaps(gap, LOG_PROB, Size(0, 0), "float32").status == "fail"


def test_a_row_whose_truth_is_nan_may_predict_any_class():
    log_prob = LOG_PROB.copy()
    log_prob[1] = np.nan
    assert contract.gaps(np.array([0, 7, 2]), log_prob)[1] == 0
