"""The calibration: what it fits, and what it keeps."""

import json

import pytest
import torch
from numpy.testing import assert_allclose

from zipfmax import calibration
from zipfmax.calibration import Calibration, calibrate, calibrated
from zipfmax.cost_model import TAIL_WIDTHS, CostModel, PartCost
from zipfmax.steps import StepTimer, Trial

PRICES = (2e-10, 9e-10, 8e-10, 7e-10, 6e-10, 5e-10, 4e-10)
MODEL = CostModel(
    head=PartCost(1e-4, 3e-11, 4e-10, 3e-10, 1e-9, 1e-10, 3e-7, (2e-10, 0.0), (5e-10,)),
    tail=PartCost(2e-4, 2e-11, 3e-10, 6e-10, 2e-9, 2e-10, 5e-7, (4e-10, 3e-10), PRICES, TAIL_WIDTHS),
    full=PartCost(3e-4, 3e-11, 1e-10, 5e-10, 1e-9, 3e-10, 2e-7, (2e-9, 0.0), (7e-10,)),
)
N_FITTED = (
    calibration.HEADS
    + calibration.TAILS_OF_A_WIDTH * (len(TAIL_WIDTHS) + len(calibration.WIDE_TAILS))
    + calibration.WHOLES
    + calibration.STACKS
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
    assert measured == [N_FITTED + calibration.WHOLES + calibration.FULLS]
    for part in ("head", "tail", "full"):
        assert_allclose(
            getattr(found.model, part).coefficients(), getattr(MODEL, part).coefficients(), rtol=1e-4
        )


def test_the_error_is_that_of_the_steps_held_out(monkeypatch):
    # Trials come as those to fit, layouts held out, and full softmax.
    held_out = range(N_FITTED, N_FITTED + calibration.WHOLES)

    def slow_when_held_out(self, trials, enough, on_sample=None):
        return {t: exact(t) * (1.25 if index in held_out else 1.0) for index, t in enumerate(trials)}

    monkeypatch.setattr(StepTimer, "medians", slow_when_held_out)
    found = calibrate()
    assert found.held_out == calibration.WHOLES
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
    monkeypatch.setattr(calibration, "MOST_PRODUCTS", 2e7)
    shares = []
    found = calibrate(budget_s=0.01, task="forward", on_sample=shares.append)
    assert found.held_out > 0
    assert found.model.full_s(512, 256, 10_000) > 0
    assert 0 <= found.median_error < float("inf")
    assert shares[-1] == 1.0
