"""The calibration: what it fits, and what it keeps."""

import json
import random
import time
from dataclasses import asdict

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from zipfmax import calibration, hardware, trials
from zipfmax.calibration import Calibration, calibrate, calibrated
from zipfmax.clusters import ClusterLayout
from zipfmax.cost_model import TAIL_WIDTHS, CostModel, PartCost, fit_nonnegative
from zipfmax.steps import StepTimer, Trial

PRICES = (2e-10, 9e-10, 8e-10, 7e-10, 6e-10, 5e-10, 4e-10)
MODEL = CostModel(
    head=PartCost(1e-4, 3e-11, 4e-10, 3e-10, 1e-9, 1e-10, 3e-7, (2e-10, 0.0), (5e-10,)),
    tail=PartCost(2e-4, 2e-11, 3e-10, 6e-10, 2e-9, 2e-10, 5e-7, (4e-10, 3e-10), PRICES, TAIL_WIDTHS),
    full=PartCost(3e-4, 3e-11, 1e-10, 5e-10, 1e-9, 3e-10, 2e-7, (2e-9, 0.0), (7e-10,)),
)
FREE = PartCost(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0), (0.0,))
TRIALS = trials.drawn(on_gpu=False)


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

    def medians(self, wanted, enough, on_sample, out_of_time, samples_a_round):
        asked.append(len(wanted))
        return {trial: exact(trial) for trial in wanted}

    monkeypatch.setattr(StepTimer, "medians", medians)
    return asked


def test_the_fit_recovers_a_machine_that_follows_the_model(measured):
    found = calibrate()
    assert measured == [len(TRIALS.parts) + len(TRIALS.held_out) + len(TRIALS.full)]
    for part in ("head", "tail", "full"):
        assert_allclose(
            getattr(found.model, part).coefficients(), getattr(MODEL, part).coefficients(), rtol=1e-4
        )


def test_on_a_gpu_each_layout_has_several_numbers_of_rows_and_few_layouts_are_compiled():
    drawn = trials.drawn(on_gpu=True)
    rows = {}
    for trial in [*drawn.parts, *drawn.held_out]:
        rows.setdefault(trial.layout, set()).add(trial.rows)
    assert len(rows) < 80
    assert all(len(found) == 3 for found in rows.values())


def test_a_gpus_trials_tell_what_the_headline_layouts_cost():
    """A device that multiplies at 600 TFLOP/s and takes an exponential a logit: of no form that is fitted."""

    def device_s(trial):
        layout, batch = trial.layout, trial.batch_size
        seconds = 8e-5 + batch * layout.head_size * (layout.in_features * 6 / 6e14 + 12 / 3e12)
        for tail, n in zip(layout, trial.rows[1:], strict=True):
            seconds += n * tail.size * (tail.projection_size * 6 / 4e14 + 2 / 3.7e12) + (1e-5 if n else 0)
        return seconds

    drawn = trials.drawn(on_gpu=True)
    features = np.stack([calibration._features(trial) for trial in drawn.parts])
    prices = fit_nonnegative(features, np.array([device_s(trial) for trial in drawn.parts]))
    probabilities = 1 / np.arange(1, 267_736)
    for cutoffs in ((20_000, 60_000), (5_000, 20_000, 100_000)):
        for batch, width in ((16_384, 1024), (4096, 512), (1024, 256)):
            layout = ClusterLayout(width, 267_735, cutoffs)
            rows = tuple(round(batch * share) for share in layout.occupancy(probabilities))
            trial = Trial(layout, rows)
            assert calibration._features(trial) @ prices == pytest.approx(device_s(trial), rel=0.1)


def test_the_error_is_that_of_the_steps_held_out(monkeypatch):
    def slow_when_held_out(self, wanted, **options):
        return {trial: exact(trial) * (1.25 if trial in TRIALS.held_out else 1.0) for trial in wanted}

    monkeypatch.setattr(StepTimer, "medians", slow_when_held_out)
    found = calibrate()
    assert found.held_out == len(TRIALS.held_out)
    assert found.model.error == pytest.approx(0.2, abs=0.01)  # 1 / 1.25 is a fifth short


def test_trials_that_were_not_reached_are_left_out_unless_they_are_most(monkeypatch):
    reached = 0.8

    def some(self, wanted, **options):
        chosen = random.Random(0).sample(wanted, int(reached * len(wanted)))
        return {trial: exact(trial) for trial in chosen}

    monkeypatch.setattr(StepTimer, "medians", some)
    assert calibrate().model.error < 0.01
    reached = 0.4
    with pytest.raises(TimeoutError, match=r"measured 63 of 158 steps in 45 s"):
        calibrate()


@pytest.mark.parametrize("other", [{"task": "forward"}, {"dtype": torch.float64}, {"backend": "eager"}])
def test_another_task_dtype_or_backend_is_another_model(other, measured, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calibrated()
    calibrated(**other)
    assert len(measured) == 2


def test_a_second_call_reads_the_cache_and_refresh_measures_again(measured, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = calibrated()
    assert calibrated() == first
    assert len(measured) == 1
    calibrated(refresh=True)
    assert len(measured) == 2


def test_another_thread_count_is_another_model(measured, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calibrated()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 61)
    calibrated()
    assert len(measured) == 2


def test_a_calibration_survives_its_record(measured):
    found = calibrate()
    assert found.identity["task"] == "train"
    assert Calibration.from_record(json.loads(json.dumps(found.to_record()))) == found


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("p90_error",), None),
        (("p90_error",), -1.0),
        (("held_out",), "x"),
        (("model", "error"), -5),
        (("model", "error"), float("nan")),
        (("model", "tail"), asdict(FREE)),
    ],
)
def test_a_record_with_a_value_that_cannot_be_is_refused(path, value):
    record = json.loads(json.dumps(hardware.bundled()[0].to_record()))
    place = record
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises((TypeError, ValueError)):
        Calibration.from_record(record)


def test_a_calibration_on_this_machine_is_finite_positive_and_ends_in_time(monkeypatch):
    few = trials.Numbers(heads=4, tails_of_a_width=1, wholes=3, stacks=3, full=4, factors=(1.0,))
    monkeypatch.setattr(trials, "ON_CPU", few)
    monkeypatch.setattr(trials, "MOST_PRODUCTS", 1e7)
    shares = []
    found = calibrate(budget_s=1.5, task="forward", on_sample=shares.append)
    assert found.held_out > 0
    assert found.model.full_s(512, 256, 10_000) > 0
    assert 0 <= found.model.error < float("inf")
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_no_trial_begins_after_the_budget(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def medians(self, wanted, enough, on_sample, out_of_time, samples_a_round):
        nonlocal now
        for then, over in ((100.0, False), (111.9, False), (112.0, True)):
            now = then
            assert out_of_time() == over
            assert not enough(10**6)
        return {trial: exact(trial) for trial in wanted}

    monkeypatch.setattr(StepTimer, "medians", medians)
    calibrate(budget_s=12.0)


def test_time_that_is_too_short_is_an_error():
    with pytest.raises(TimeoutError, match=r"measured \d of 158 steps in 0.01 s"):
        calibrate(budget_s=0.01)
