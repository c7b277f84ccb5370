"""`zipfmax plan`: what it prints, what it measures, and what it refuses."""

import json
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.calibration import Calibration
from zipfmax.command import application
from zipfmax.cost_model import CostModel, PartCost
from zipfmax.errors import UsageError
from zipfmax.planner import plan_cutoffs
from zipfmax_bench import planning
from zipfmax_bench.planning import PlanOptions

MODEL = CostModel(
    head=PartCost(1e-4, 3e-11, 4e-10, 3e-10, 0.0, 0.0, 3e-7, (1e-10, 0.0), (5e-10,)),
    tail=PartCost(2e-4, 2e-11, 4e-10, 5e-10, 1e-9, 2e-10, 5e-7, (3e-10, 2e-10), (6e-10,)),
    full=PartCost(1e-4, 3e-11, 1e-10, 0.0, 0.0, 0.0, 2e-7, (0.0, 0.0), (7e-10,)),
)
OPTIONS = PlanOptions(labels="zipf:1.0", classes=20_000, features=256, batch=512)


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    calibration = Calibration(replace(MODEL, error=0.05), 0.2, 12, {"hardware": "test"})
    monkeypatch.setattr(planning, "calibrated", lambda *arguments, **options: calibration)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(*arguments):
    return CliRunner().invoke(application("plan"), arguments, catch_exceptions=True)


def test_the_json_is_the_plan_that_the_function_returns():
    result = run("--zipf", "1", "--classes", "20000", "--features", "256", "--batch", "512", "--json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    plan = plan_cutoffs(1 / np.arange(1, 20_001), 256, 512, model=MODEL)
    assert record["cutoffs"] == list(plan.cutoffs)
    assert record["predicted_s"] == pytest.approx(plan.predicted_s)
    assert record["calibration"]["median_error"] == 0.05
    curve = {point["first_cutoff"]: point["predicted_s"] for point in record["curve"]["1"]}
    assert min(curve.values()) == pytest.approx(record["by_clusters"][0]["predicted_s"], rel=0.01)


def test_the_line_of_code_builds_the_planned_layer():
    result = run("--zipf", "1", "--classes", "20000", "--features", "256", "--batch", "512", "--python")
    names = {}
    exec("import zipfmax\n" + result.stdout, names)
    layer = names["layer"]
    assert isinstance(layer, AdaptiveLogSoftmaxWithLoss)
    plan = plan_cutoffs(1 / np.arange(1, 20_001), 256, 512, model=MODEL)
    assert tuple(layer.cutoffs[:-1]) == plan.cutoffs


def test_the_words_of_a_text_are_planned_for_with_its_own_vocabulary(tmp_path):
    text = tmp_path / "text.txt"
    words = [f"word{rank}" for rank in range(1, 400) for _ in range(1 + 400 // rank)]
    text.write_text(" ".join(words))
    result = run("--counts", str(text), "--features", "64", "--batch", "32", "--json")
    assert json.loads(result.stdout)["n_classes"] == 399


def test_a_flat_tiny_vocabulary_is_told_to_use_full_softmax():
    plan, calibration = planning.planned(
        replace(OPTIONS, labels="uniform", classes=60), Console(file=StringIO())
    )
    assert "Full softmax is the better choice" in planning.verdict(plan, calibration)[0]


def test_the_cost_of_a_customary_shortlist_is_told_beside_the_plan():
    plan, calibration = planning.planned(OPTIONS, Console(file=StringIO()))
    customary = planning.customary_plan(plan, calibration, OPTIONS)
    share = plan.search.probabilities[:1400].sum()  # 7 % of the classes, as WikiText-103's 20k of 267,735
    assert customary.occupancy[0] >= share > plan.occupancy[0]
    assert customary.predicted_s > plan.predicted_s
    times = customary.predicted_s / plan.predicted_s
    advice = planning.verdict(plan, calibration, customary)[-1]
    assert f"{times:.1f} times as long" in advice
    assert "--min-shortlist-share" in advice
    result = run("--zipf", "1", "--classes", "20000", "--features", "256", "--batch", "512")
    assert result.exit_code == 0
    assert ", ".join(map(str, customary.cutoffs)) in result.stdout
    assert "customary" in result.stdout


def test_a_plan_that_holds_the_customary_share_is_given_no_advice():
    options = replace(OPTIONS, min_shortlist_share=0.9)
    plan, calibration = planning.planned(options, Console(file=StringIO()))
    assert planning.customary_plan(plan, calibration, options) is None
    assert not any("--min-shortlist-share" in line for line in planning.verdict(plan, calibration))


def test_no_number_of_clusters_is_silently_another():
    result = run(
        "--zipf", "1", "--classes", "20000", "--features", "256", "--batch", "512", "--clusters", "0"
    )
    assert "number from 1 to 6, got 0" in str(result.exception)


def test_the_measured_plan_is_interleaved_with_the_literature_and_full_softmax():
    options = replace(OPTIONS, classes=600, features=16, batch=32, threads=1)
    plan, _ = planning.planned(options, Console(file=StringIO()))
    measured = planning.measure(plan, options, rounds=3)
    assert list(measured) == ["plan", "literature", "full"]
    assert measured["plan"]["cutoffs"] == list(plan.cutoffs)
    assert measured["literature"]["cutoffs"] == [42, 150]
    assert measured["full"]["speedup_vs_full"] == 1.0
    for line in measured.values():
        assert line["median_s"] > 0
        assert line["speedup_vs_full_low"] <= line["speedup_vs_full"] <= line["speedup_vs_full_high"]


def test_an_implementation_that_cannot_be_measured_is_named():
    plan, _ = planning.planned(replace(OPTIONS, classes=600), Console(file=StringIO()))
    with pytest.raises(UsageError, match="plan could not be measured: no CUDA"):
        planning.measure(plan, replace(OPTIONS, classes=600, device="cuda"), rounds=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": None}, "labels zipf:1.0 need --classes"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"classes": 0}, "--classes should be a positive number, got 0"),
        ({"batch": -5}, "--batch should be a positive number, got -5"),
        ({"threads": 0}, "--threads should be a positive number, got 0"),
        ({"task": "predict"}, "unknown task 'predict'; choose one of: train, forward"),
        ({"device": "tpu"}, "unknown device 'tpu'; did you mean cpu"),
        ({"clusters": 9}, "number from 1 to 6, got 9"),
        ({"max_parameters": 3}, "max_parameters = 3 allows no plan"),
        ({"labels": "poisson:3"}, "poisson:3"),
    ],
)
def test_what_allows_no_plan_is_wrong_use(options, message):
    with pytest.raises(UsageError, match=message):
        planning.planned(replace(OPTIONS, **options), Console(file=StringIO()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_a_device_that_is_not_there_is_wrong_use():
    with pytest.raises(UsageError, match="device cuda: torch sees 0 GPUs here"):
        planning.planned(replace(OPTIONS, device="cuda"), Console(file=StringIO()))


@pytest.mark.parametrize("sources", [(), ("--zipf", "1", "--labels", "uniform")])
def test_labels_come_from_exactly_one_source(sources):
    result = run(*sources, "--classes", "100", "--features", "8", "--batch", "4")
    assert isinstance(result.exception, UsageError)
    assert "exactly one of" in str(result.exception)
