"""The figure of a plan."""

import pytest

from zipfmax.errors import UsageError
from zipfmax.reports.plan_figure import plan_figure, write_plan_figure

RECORD = {
    "labels": "zipf:1.0",
    "n_classes": 1000,
    "in_features": 64,
    "batch_size": 32,
    "task": "train",
    "cutoffs": [40, 300],
    "predicted_s": 0.002,
    "full_s": 0.01,
    "curve": {
        "1": [{"first_cutoff": 10, "predicted_s": 0.005}, {"first_cutoff": 90, "predicted_s": 0.004}],
        "2": [{"first_cutoff": 10, "predicted_s": 0.003}, {"first_cutoff": 40, "predicted_s": 0.002}],
    },
}


def test_every_number_of_tails_is_a_line_and_the_choice_is_marked():
    axes = plan_figure(RECORD).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines["1 tail"] == [[10, 5], [90, 4]]
    assert lines["2 tails"] == [[10, 3], [40, 2]]
    assert lines["the plan"] == [[40, 2]]
    assert [y for _, y in lines["full softmax"]] == [10, 10]


def test_the_ending_chooses_the_format(tmp_path):
    write_plan_figure(RECORD, tmp_path / "plan.svg")
    assert "<svg" in (tmp_path / "plan.svg").read_text()


@pytest.mark.parametrize(
    ("name", "message"), [("plan.xyz", "its ending"), ("missing/plan.svg", "cannot write")]
)
def test_a_place_that_cannot_be_drawn_into_is_wrong_use(tmp_path, name, message):
    with pytest.raises(UsageError, match=message):
        write_plan_figure(RECORD, tmp_path / name)
