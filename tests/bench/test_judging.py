"""Results are judged where no implementation runs, small cells by the contract and large ones by float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zipfmax_bench import judging, messages
from zipfmax_bench.judging import ResultJudge
from zipfmax_bench.worker import WorkerState
from zipfmax_reference.contestants import registry
from zipfmax_reference.runs.case import Case
from zipfmax_reference.truth.judgement import Truth

CASE = Case(61, 8, 17, (10, 30), task="train", head_bias=True)


def lines(folder: Path, case: Case, name: str, change=None, batch: int = 3):
    session = WorkerState(name)
    session.answer(messages.PrepareCase(case, fastest=False))
    session.answer(messages.Load(batch, warm=1))
    session.answer(messages.TakeSample())
    kept = session.answer(messages.Keep(str(folder)))
    if change is not None:
        tensor, function = change
        file = folder / f"{tensor}.npy"
        np.save(file, function(np.load(file)))
    request = messages.Judge(name, registry.family(name), case, batch, str(folder), kept.mismatches)
    return ResultJudge().lines(request)


def failed(found) -> set[str]:
    return {line["tensor"] for line in found if line["status"] == "fail"}


@pytest.mark.parametrize("limit", [1e9, 1.0], ids=["contract", "float64"])
@pytest.mark.parametrize("task", ["train", "forward", "log_prob", "predict", "topk"])
@pytest.mark.parametrize("name", ["torch", "full"])
def test_right_results_pass_and_everything_is_compared(tmp_path, monkeypatch, limit, task, name):
    monkeypatch.setattr(judging, "DEFINITION_FLOPS", limit)
    monkeypatch.setattr(judging, "_BLOCK_ELEMENTS", 5 * CASE.n_classes)
    found = lines(tmp_path, Case(**{**CASE.to_fields(), "task": task}), name)
    assert found
    assert failed(found) == set()
    assert {line["tensor"] for line in found} >= {file.stem for file in tmp_path.glob("*.npy")}


@pytest.mark.parametrize("limit", [1e9, 1.0], ids=["contract", "float64"])
@pytest.mark.parametrize(
    ("tensor", "change"),
    [
        ("loss", lambda x: x * 1.001),
        ("output", lambda x: np.where(np.arange(len(x)) == 16, 0, x)),
        ("grad.head.weight", lambda x: np.zeros_like(x)),
        ("grad.tail.0.1.weight", lambda x: x * 1.01),
        ("grad.input", lambda x: x[::-1].copy()),
        ("grad.input", lambda x: x[:8]),
        ("output", lambda x: np.full_like(x, np.nan)),
    ],
)
def test_a_wrong_tensor_fails_by_name(tmp_path, monkeypatch, limit, tensor, change):
    monkeypatch.setattr(judging, "DEFINITION_FLOPS", limit)
    assert failed(lines(tmp_path, CASE, "torch", (tensor, change))) == {tensor}


def test_results_of_another_batch_fail(tmp_path):
    session_lines = lines(tmp_path, CASE, "torch")
    assert failed(session_lines) == set()
    stale = ResultJudge().lines(messages.Judge("torch", "adaptive", CASE, 4, str(tmp_path)))
    assert failed(stale) >= {"output", "loss", "grad.input", "grad.head.weight"}


def test_an_object_array_is_not_unpickled(tmp_path):
    lines(tmp_path, CASE, "torch")
    np.save(tmp_path / "output.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        ResultJudge().lines(messages.Judge("torch", "adaptive", CASE, 3, str(tmp_path)))


LARGE = Case(3_000, 16, 160, (500, 2_000), task="train")


def absent(case: Case) -> np.ndarray:
    inputs = ResultJudge()._inputs(case, 3, "full")
    return ~np.isin(np.arange(case.n_classes), inputs.target)[:, None]


FAULTS = {
    "dropped": lambda dw, absent: np.where(absent, 0, dw),
    "10 % too large": lambda dw, absent: np.where(absent, 1.1 * dw, dw),
    "small ones dropped": lambda dw, absent: np.where(np.abs(dw) < 1e-3 * np.abs(dw).max(), 0, dw),
    "wrong sign of rare ones": lambda dw, absent: np.where(
        absent & (np.arange(len(dw)) >= 1000)[:, None], -dw, dw
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_large_peer_that_is_wrong_in_classes_absent_from_the_batch_fails(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(judging, "DEFINITION_FLOPS", 1.0)
    case = Case(**{**LARGE.to_fields(), "dtype": dtype})
    assert failed(lines(tmp_path, case, "full")) == set()
    name, mask = "grad.full.weight", absent(case)
    file = tmp_path / f"{name}.npy"
    right = np.load(file)
    request = messages.Judge("full", registry.family("full"), case, 3, str(tmp_path))
    for kind, fault in FAULTS.items():
        wrong = fault(right, mask).astype(right.dtype)
        if dtype == "bfloat16":  # what a share of the whole weight would have passed
            monkeypatch.setitem(judging.ALLOWED, dtype, 1.0)
            assert judging.relative_error(wrong, right) < 1, kind
        np.save(file, wrong)
        found = ResultJudge().lines(request)
        assert failed(found) == {name}, kind
        (line,) = [line for line in found if line["tensor"] == name]
        assert line["error"] > line["budget"], kind
        if dtype == "bfloat16":
            assert line["against"] == "definition in part"
            assert "absent" in line["where"]


def test_a_weight_too_large_for_the_definition_s_arrays_is_judged_in_part(tmp_path, monkeypatch):
    assert {line["against"] for line in lines(tmp_path, LARGE, "full")} == {"definition"}
    monkeypatch.setattr(judging, "DEFINITION_ELEMENTS", 3_000 * 16 - 1)
    assert failed(found := lines(tmp_path, LARGE, "full")) == set()
    assert {line["against"] for line in found} == {"torch in float64"}
    assert {line["against"] for line in lines(tmp_path, LARGE, "torch")} == {"definition"}


@pytest.mark.parametrize("task", ["train", "forward"])
@pytest.mark.parametrize("family", ["full", "adaptive"])
@pytest.mark.parametrize("block", [1, 3_000 * 7, 1 << 26])
def test_the_truth_of_a_large_cell_is_the_definitions_whatever_the_blocks(monkeypatch, task, family, block):
    monkeypatch.setattr(judging, "_BLOCK_ELEMENTS", block)
    case = replace(LARGE, task=task)
    inputs = ResultJudge()._inputs(case, 3, family)
    found = judging.large_truth(case, family, inputs)
    values = Truth.of(case, inputs, family).values
    assert found.keys() - {"output"} == values.keys() - {"output"}
    for name in found.keys() & values.keys():
        np.testing.assert_allclose(found[name], values[name], rtol=1e-10, atol=1e-14, err_msg=name)


def test_classes_are_drawn_from_every_decade_targets_and_absent_ones_apart():
    target = np.array([0, 3, 12, 150, 4_000])
    found = judging.drawn_classes(5_000, target, 80, np.random.default_rng(0))
    assert len(np.unique(found)) == len(found) <= 80
    assert set(target) <= set(found)
    for low, high in ((0, 9), (10, 99), (100, 999), (1_000, 4_999)):
        assert ((found >= low) & (found <= high) & ~np.isin(found, target)).sum() >= 5


@pytest.mark.parametrize("name", ["torch", "full"])
def test_a_large_cell_with_a_few_wrong_rows_of_the_inputs_gradient_fails(tmp_path, monkeypatch, name):
    monkeypatch.setattr(judging, "DEFINITION_FLOPS", 1.0)
    wrong = lambda dh: np.where((np.arange(len(dh)) % 4 == 0)[:, None], 1.001 * dh, dh)  # noqa: E731
    monkeypatch.setitem(judging.ALLOWED, "float32", 1e-2)
    assert failed(lines(tmp_path, LARGE, name, ("grad.input", lambda dh: wrong(dh).astype(dh.dtype)))) == {
        "grad.input"
    }
