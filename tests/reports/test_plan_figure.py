"""The figure of a plan."""

import pandas as pd
import pytest

from zipfmax.errors import UsageError
from zipfmax_reports.plan_figure import plan_figure, write_plan_figure
from zipfmax_reports.plans import proof_picture
from zipfmax_reports.static import draw

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
    axes = draw(plan_figure(RECORD)).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines["1 tail"] == [[10, 5], [90, 4]]
    assert lines["2 tails"] == [[10, 3], [40, 2]]
    assert lines["the plan"] == [[40, 2]]
    assert [10, 10] in [list(line.get_ydata()) for line in axes.get_lines()]
    assert {"full softmax", "40, 300"} <= {text.get_text() for text in axes.texts}


def test_the_ending_chooses_the_format(tmp_path):
    write_plan_figure(RECORD, tmp_path / "plan.svg")
    assert "<svg" in (tmp_path / "plan.svg").read_text()


@pytest.mark.parametrize(
    ("name", "message"), [("plan.xyz", "its ending"), ("missing/plan.svg", "cannot write")]
)
def test_a_place_that_cannot_be_drawn_into_is_wrong_use(tmp_path, name, message):
    with pytest.raises(UsageError, match=message):
        write_plan_figure(RECORD, tmp_path / name)


def test_the_proof_draws_every_time_over_the_best_of_the_search_and_tells_the_worst():
    def line(labels, plan_s, full_s):
        times = {"plan_s": plan_s, "best_s": 2e-3, "literature_s": 5e-3, "full_s": full_s}
        shape = {"n_classes": 5000, "in_features": 64, "batch_size": 128, "task": "train"}
        return {"labels": labels, **shape, "plan": [40, 300], "best": [39, 312], "predicted_s": 2e-3, **times}

    proof = pd.DataFrame([line("zipf:1.0", 1.8e-3, 40e-3), line("uniform", 2.2e-3, 1e-3)])
    picture = proof_picture(proof)
    axes = draw(picture.figure).axes[0]
    drawn = {item.get_label(): list(item.get_xdata()) for item in axes.get_lines()}
    assert drawn["the plan"] == pytest.approx([0.9, 1.1])
    assert drawn["the literature's cutoffs"] == pytest.approx([2.5, 2.5])
    assert drawn["full softmax"] == pytest.approx([20, 0.5])
    names = dict(zip(axes.get_yticks(), [tick.get_text() for tick in axes.get_yticklabels()], strict=True))
    assert names[axes.get_lines()[0].get_ydata()[0]] == "Zipf 1.0, 5,000 classes"
    assert "+10.0 % at worst" in picture.caption
    first = dict(zip(picture.table.columns, picture.table.rows[0], strict=True))
    assert first["plan / best"] == "0.90×"
