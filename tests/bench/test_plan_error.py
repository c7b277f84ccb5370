"""The error of a plan's prediction: on cells of its own, counted from measured times."""

import json
import re
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from zipfmax import hardware
from zipfmax.steps import Trial
from zipfmax_bench import plan_error, plan_proof
from zipfmax_reference.records import PlanError
from zipfmax_reference.records.plan import errors

MODEL = hardware.bundled()[0].model


class Machine:
    """A StepTimer of a machine that takes a quarter longer than the bundled model says."""

    def __init__(self, device, dtype, task):
        assert (device.type, dtype, task) == ("cpu", torch.float32, "train")

    def medians(self, trials, enough):
        assert len(set(trials)) == len(trials)
        assert enough(plan_error.ROUNDS)
        return {trial: 1.25 * self._seconds(trial) for trial in trials}

    def _seconds(self, trial):
        if isinstance(trial, Trial):
            return MODEL.adaptive_s(trial.layout, trial.rows)
        return MODEL.full_s(trial.batch_size, trial.in_features, trial.n_classes)


def test_the_error_is_that_of_the_measured_times(monkeypatch, tmp_path):
    monkeypatch.setattr(plan_error, "StepTimer", Machine)
    monkeypatch.setattr(plan_error, "LABELS", ("zipf:0.9", "zipf:1.1"))
    app = typer.Typer()
    app.command()(plan_error.main)
    out = tmp_path / "plan_error.jsonl"
    result = CliRunner().invoke(app, ["--threads", "1", "--out", str(out)])
    assert result.exit_code == 0, result.output
    records = [PlanError.model_validate(json.loads(line)) for line in out.read_text().splitlines()]
    assert len(records) == 2 * len(plan_error.SHAPES)
    for one in records:
        assert one.predicted_s / one.measured_s == pytest.approx(0.8, rel=0.05)  # batches vary a little
        assert one.full_predicted_s / one.full_s == pytest.approx(0.8)
        assert one.source.startswith("bundled: ")
    assert "Full softmax: 20.0% and 20.0%." in " ".join(result.stdout.split())


def test_its_cells_are_none_that_were_looked_at():
    assert not set(plan_error.LABELS) & set(plan_proof.LABELS)
    assert not set(plan_error.SHAPES) & set(plan_proof.SHAPES)


def test_median_and_90th_percentile_are_of_the_relative_error():
    off = [(1 + share / 100, 1.0) for share in range(11)]
    assert errors(off) == pytest.approx((0.05, 0.09))
    assert errors([(0.5, 1.0), (2.0, 1.0)]) == pytest.approx((0.75, 0.95))


def test_readme_and_results_say_the_published_error():
    root = Path(__file__).parents[2]
    lines = (root / "reports/published/cpu/plan_error.jsonl").read_text().splitlines()
    records = [PlanError.model_validate_json(line) for line in lines]
    median, p90 = errors([(one.predicted_s, one.measured_s) for one in records])
    words = f"off by {median:.1%} in the median and {p90:.1%} at the 90th percentile of".replace("%", " %")
    for page in ("README.md", "reports/docs/results.md"):
        text = " ".join((root / page).read_text().split())
        assert re.search(rf"{re.escape(words)} \[?{len(records)} plans", text), page
