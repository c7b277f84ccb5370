"""The calibration: what it fits, and what it keeps."""

import json

import pytest
import torch
from numpy.testing import assert_allclose

from zipfmax import calibration
from zipfmax.calibration import Calibration, calibrate, calibrated
from zipfmax.cost import CostModel, PartCost
from zipfmax.steps import StepTimer, Trial

MODEL = CostModel(
    head=PartCost(1e-4, 3e-11, 5e-10, 4e-10, 1e-9),
    tail=PartCost(2e-4, 2e-11, 6e-10, 3e-10, 2e-9),
    full=PartCost(3e-4, 3e-11, 7e-10, 1e-10, 1e-9),
)


def exact(trial):
    """Seconds of a trial where the model is true; tails without rows cost nothing."""
    if not isinstance(trial, Trial):
        return MODEL.full_s(trial.batch_size, trial.in_features, trial.n_classes)
    idle = sum(
        MODEL.tail.seconds(0, tail.size, tail.projection_size, trial.layout.in_features)
        for tail, rows in zip(trial.layout, trial.rows[1:], strict=True)
        if rows == 0
    )
    return MODEL.adaptive_s(trial.layout, trial.rows) - idle


@pytest.fixture
def measured(monkeypatch):
    """StepTimer.medians answered by the model; the number of times that it was asked."""
    asked = []

    def medians(self, trials, enough, on_sample=None):
        asked.append(len(trials))
        return {trial: exact(trial) for trial in trials}

    monkeypatch.setattr(StepTimer, "medians", medians)
    return asked


def test_the_fit_recovers_a_machine_that_follows_the_model(measured):
    found = calibrate()
    assert measured == [30 + 12 + 12 + 10]
    for part in ("head", "tail", "full"):
        assert_allclose(
            getattr(found.model, part).coefficients(), getattr(MODEL, part).coefficients(), rtol=1e-5
        )


def test_the_error_is_that_of_the_steps_held_out(monkeypatch):
    # Trials come as 30 parts and 12 layouts to fit, 12 layouts held out, and full softmax.
    def slow_when_held_out(self, trials, enough, on_sample=None):
        return {t: exact(t) * (1.25 if index in range(42, 54) else 1.0) for index, t in enumerate(trials)}

    monkeypatch.setattr(StepTimer, "medians", slow_when_held_out)
    found = calibrate()
    assert found.held_out == 12
    assert found.median_error == pytest.approx(0.2, abs=0.01)  # 1 / 1.25 is a fifth short


def test_a_second_call_reads_the_cache_and_refresh_measures_anew(measured, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = calibrated()
    assert calibrated() == first
    assert len(measured) == 1
    calibrated(refresh=True)
    assert len(measured) == 2


@pytest.mark.parametrize("other", [{"task": "forward"}, {"dtype": torch.float64}, {"backend": "eager"}])
def test_another_task_dtype_or_backend_is_another_model(other, measured, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calibrated()
    calibrated(**other)
    assert len(measured) == 2


def test_another_thread_count_is_another_model(measured, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calibrated()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 61)
    calibrated()
    assert len(measured) == 2


def test_the_cache_is_json_that_says_which_machine_it_is_for(measured, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = calibrated()
    (path,) = (tmp_path / "zipfmax").iterdir()
    record = json.loads(path.read_text())
    assert record["identity"] == found.identity
    assert record["identity"]["task"] == "train"
    assert Calibration(**{**record, "model": CostModel.from_record(record["model"])}) == found


def test_a_calibration_on_this_machine_is_finite_and_positive(monkeypatch):
    parts, wholes = calibration._part_trials, calibration._whole_trials
    small = lambda trial: trial.batch_size * trial.layout.n_classes < 2e7  # noqa: E731
    monkeypatch.setattr(calibration, "_part_trials", lambda *given: list(filter(small, parts(*given))))
    monkeypatch.setattr(calibration, "_whole_trials", lambda *given: list(filter(small, wholes(*given))))
    shares = []
    found = calibrate(budget_s=0.01, task="forward", on_sample=shares.append)
    assert found.held_out > 0
    assert found.model.full_s(512, 256, 10_000) > 0
    assert 0 <= found.median_error < float("inf")
    assert shares[-1] == 1.0
