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
from zipfmax.planner import cost_models, plan_cutoffs
from zipfmax_bench import planning
from zipfmax_bench.planning import PlanOptions

MODEL = CostModel(
    head=PartCost(1e-4, 3e-11, 4e-10, 3e-10, 0.0, 0.0, 3e-7, (1e-10, 0.0), (5e-10,)),
    tail=PartCost(2e-4, 2e-11, 4e-10, 5e-10, 1e-9, 2e-10, 5e-7, (3e-10, 2e-10), (6e-10,)),
    full=PartCost(1e-4, 3e-11, 1e-10, 0.0, 0.0, 0.0, 2e-7, (0.0, 0.0), (7e-10,)),
)
IDENTITY = {"hardware": "test", "threads": 1, "device": "cpu", "dtype": "float32", "task": "train"}
OPTIONS = PlanOptions(labels="zipf:1.0", classes=20_000, features=256, batch=512)


@pytest.fixture(autouse=True)
def known_machine(monkeypatch):
    calibration = Calibration(replace(MODEL, error=0.05), 0.2, 12, IDENTITY)
    monkeypatch.setattr(planning, "cost_models", lambda *arguments, **options: (calibration, None))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(*arguments):
    return CliRunner().invoke(application("plan"), arguments, catch_exceptions=True)


def test_the_json_is_the_plan_that_the_function_returns():
    result = run("--zipf", "1", "--classes", "20000", "--features", "256", "--batch", "512", "--json")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    plan = plan_cutoffs(1 / np.arange(1, 20_001), 256, 512, model=replace(MODEL, error=0.05))
    assert record["cutoffs"] == list(plan.cutoffs)
    assert record["predicted_s"] == pytest.approx(plan.predicted_s)
    assert record["calibration"]["median_error"] == 0.05
    curve = {point["first_cutoff"]: point["predicted_s"] for point in record["curve"]["1"]}
    assert min(curve.values()) == pytest.approx(record["by_clusters"][0]["predicted_s"], rel=1e-9)
    assert record["code"].endswith(f"cutoffs={record['cutoffs']}, div_value=4.0)")


SHAPE = ("--features", "64", "--batch", "512")


def built(*arguments):
    """The names that the printed code leaves, run as pasted."""
    result = run(*arguments, "--python")
    assert result.exit_code == 0, result.output
    names = {}
    exec(result.stdout, names)
    return names


def test_the_code_builds_the_planned_layer():
    layer = built("--zipf", "1", "--classes", "20000", "--features", "256", "--batch", "512")["layer"]
    assert isinstance(layer, AdaptiveLogSoftmaxWithLoss)
    plan = plan_cutoffs(1 / np.arange(1, 20_001), 256, 512, model=replace(MODEL, error=0.05))
    assert tuple(layer.cutoffs[:-1]) == plan.cutoffs
    assert layer.label_ranks is None


def test_the_code_for_a_dtype_makes_parameters_of_it():
    layer = built("--zipf", "1", "--classes", "2000", *SHAPE, "--dtype", "bfloat16")["layer"]
    assert layer.head.weight.dtype == torch.bfloat16


def unsorted(tmp_path, ending):
    """A file of counts that do not fall: label 2 occurs most."""
    counts = np.roll((3e6 / np.arange(1, 3001)).astype(int), 2)
    path = tmp_path / f"counts{ending}"
    if ending == ".npy":
        np.save(path, counts)
    elif ending == ".json":
        path.write_text(json.dumps({f"w{label}": int(count) for label, count in enumerate(counts)}))
    else:
        tab = "\t" if ending == ".tsv" else " "
        path.write_text("".join(f"w{label}{tab}{count}\n" for label, count in enumerate(counts)))
    return path


@pytest.mark.parametrize("ending", [".npy", ".json", ".tsv", ".txt"])
def test_the_code_for_labels_that_are_not_sorted_has_their_ranks(ending, tmp_path):
    layer = built("--counts", str(unsorted(tmp_path, ending)), *SHAPE)["layer"]
    assert layer.label_ranks.label_of_rank[:3].tolist() == [2, 3, 4]
    hidden = torch.randn(2, 64)
    head = layer.head(hidden).log_softmax(1)
    torch.testing.assert_close(layer.log_prob(hidden)[:, 2], head[:, 0])


def test_the_code_reads_the_counts_as_the_option_says(tmp_path):
    path = unsorted(tmp_path, ".tsv").rename(tmp_path / "counts.csv")
    result = run("--counts", str(path), "--counts-format", "tsv", *SHAPE)
    assert "Counts read as tsv: 3,000 labels" in " ".join(result.stdout.split())
    assert "not sorted by falling frequency" in " ".join(result.stdout.split())
    assert f"read_counts('{path}', 'tsv').values" in result.stdout
    guessed = run("--counts", str(path), *SHAPE)
    assert "cannot be read" in str(guessed.exception)


def test_the_most_frequent_of_labels_that_are_not_sorted_are_no_layer(tmp_path):
    result = run("--counts", str(unsorted(tmp_path, ".npy")), *SHAPE, "--classes", "1000")
    assert "the 1,000 most frequent of them are not the first" in str(result.exception)


def test_the_code_is_full_softmax_where_that_is_judged_faster():
    names = built("--labels", "uniform", "--classes", "60", *SHAPE)
    assert type(names["layer"]) is torch.nn.Linear
    loss = names["loss_function"](names["layer"](torch.randn(5, 64)), torch.arange(5))
    assert loss.item() > 0


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


def test_an_implementation_that_cannot_be_measured_is_named(in_process):
    plan, _ = planning.planned(replace(OPTIONS, classes=600), Console(file=StringIO()))
    with pytest.raises(UsageError, match="plan could not be measured: no CUDA"):
        planning.measure(plan, replace(OPTIONS, classes=600, device="cuda"), rounds=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": None}, "labels zipf:1.0 need --classes"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"dtype": "float8_e4m3fn"}, "unknown dtype 'float8_e4m3fn'"),
        ({"classes": 0}, "--classes should be a positive number, got 0"),
        ({"batch": -5}, "--batch should be a positive number, got -5"),
        ({"threads": 0}, "--threads should be from 1 to 4096, got 0"),
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
@pytest.mark.parametrize("measuring", [{"calibrate": True}, {"recalibrate": True}])
def test_measuring_on_a_device_that_is_not_there_is_wrong_use(measuring):
    with pytest.raises(UsageError, match="device cuda: torch sees 0 GPUs here"):
        planning.planned(replace(OPTIONS, device="cuda", **measuring), Console(file=StringIO()))


def test_a_gpus_bundled_model_plans_where_no_gpu_is(monkeypatch):
    monkeypatch.setattr(planning, "cost_models", cost_models)
    options = replace(OPTIONS, classes=100_000, features=512, batch=4096, device="cuda", dtype="bfloat16")
    plan, calibration = planning.planned(options, Console(file=StringIO()))
    assert (calibration.identity["device"], calibration.identity["dtype"]) == ("cuda", "bfloat16")
    on_a_cpu, _ = planning.planned(replace(options, device="cpu"), Console(file=StringIO()))
    assert plan.predicted_s < on_a_cpu.predicted_s / 20
    assert "device='cuda'" in planning.python_code(plan, options)


@pytest.mark.parametrize("sources", [(), ("--zipf", "1", "--labels", "uniform")])
def test_labels_come_from_exactly_one_source(sources):
    result = run(*sources, "--classes", "100", "--features", "8", "--batch", "4")
    assert isinstance(result.exception, UsageError)
    assert "exactly one of" in str(result.exception)


def test_a_bound_on_memory_is_one_on_weights_with_what_training_keeps_of_each():
    for task, tensors in (("train", 4), ("forward", 1)):
        options = replace(OPTIONS, max_memory=tensors * 2.0, task=task)
        plan, _ = planning.planned(options, Console(file=StringIO()))
        assert plan.parameters * 4 <= 2 * 2**20
    both = replace(OPTIONS, max_memory=8.0, max_parameters=400_000)
    assert planning.planned(both, Console(file=StringIO()))[0].parameters <= 400_000
    with pytest.raises(UsageError, match="--max-memory should be a positive number"):
        planning.planned(replace(OPTIONS, max_memory=0.0), Console(file=StringIO()))
