import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from zipfmax_reference.runs.arrays import Inputs
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import FULL_WEIGHT, draw_inputs
from zipfmax_reference.truth import definition

CASES = [
    Case(23, 6, 17, (4, 9, 15), 2.0, True, "float64", labels="uniform"),
    Case(23, 6, 17, (1, 2, 22), 1.5, False, "float64", labels="uniform"),
    Case(23, 6, 17, (4, 9, 15), 100.0, True, "float64", labels="uniform"),
]


def log_prob_by_loops(case: Case, inputs: Inputs, row: int, label: int) -> float:
    """log p(label | row), one number at a time."""
    h = [float(x) for x in inputs.hidden[row]]
    w = inputs.weights

    def dot(left, right):
        return math.fsum(float(a) * float(b) for a, b in zip(left, right, strict=True))

    def log_softmax(logits, index):
        return logits[index] - math.log(math.fsum(math.exp(x) for x in logits))

    bias = w.get("head.bias", np.zeros(case.layout.head_size))
    head = [dot(h, row_) + float(b) for row_, b in zip(w["head.weight"], bias, strict=True)]
    if label < case.cutoffs[0]:
        return log_softmax(head, label)
    i = max(k for k, cutoff in enumerate(case.cutoffs) if label >= cutoff)
    q = [dot(h, row_) for row_ in w[f"tail.{i}.0.weight"]]
    tail = [dot(q, row_) for row_ in w[f"tail.{i}.1.weight"]]
    return log_softmax(head, case.cutoffs[0] + i) + log_softmax(tail, label - case.cutoffs[i])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_log_prob_is_the_formula_written_out(case):
    case = replace(case, task="log_prob", batch_size=3)
    inputs = draw_inputs(case)
    expected = [[log_prob_by_loops(case, inputs, r, y) for y in range(case.n_classes)] for r in range(3)]
    assert definition.evaluate(case, inputs)["log_prob"] == pytest.approx(np.array(expected), rel=1e-13)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_output_gathers_log_prob_and_the_loss_is_its_mean(case):
    inputs = draw_inputs(case)
    results = definition.evaluate(case, inputs)
    log_p = definition.adaptive_log_prob(case.layout, inputs.weights, inputs.hidden)
    assert results["output"] == pytest.approx(log_p[np.arange(17), inputs.target], rel=1e-14)
    assert results["loss"] == pytest.approx(-results["output"].mean(), rel=1e-14)
    assert np.exp(log_p).sum(axis=1) == pytest.approx(np.ones(17), rel=1e-13)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_gradients_are_the_finite_differences_of_the_loss(case):
    inputs = draw_inputs(case)
    results = definition.evaluate(case, inputs)
    rng = np.random.default_rng(0)
    step = 1e-6

    def loss(moved: Inputs) -> float:
        return float(definition.evaluate(replace(case, task="forward"), moved)["loss"])

    for name in ("input", *inputs.weights):
        base = inputs.hidden if name == "input" else inputs.weights[name]
        direction = rng.standard_normal(base.shape)
        sides = []
        for sign in (1, -1):
            moved = base + sign * step * direction
            if name == "input":
                sides.append(loss(Inputs(moved, inputs.target, inputs.weights)))
            else:
                sides.append(loss(Inputs(inputs.hidden, inputs.target, {**inputs.weights, name: moved})))
        slope = (sides[0] - sides[1]) / (2 * step)
        assert (results[f"grad.{name}"] * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-9), name


def test_chunks_of_rows_change_nothing(monkeypatch):
    case = CASES[0]
    inputs = draw_inputs(case, full=True)
    whole = definition.evaluate(case, inputs), definition.evaluate(case, inputs, "full")
    monkeypatch.setattr(definition, "CHUNK_ELEMENTS", 2 * case.n_classes)
    parts = definition.evaluate(case, inputs), definition.evaluate(case, inputs, "full")
    for one, other in zip(whole, parts, strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            assert other[name] == pytest.approx(values, rel=1e-12, abs=1e-15), name


def test_no_more_than_a_chunk_of_logits_exists_at_a_time(monkeypatch):
    tracemalloc = pytest.importorskip("tracemalloc")
    case = Case(20_000, 2, 256, (10_000,), dtype="float64", task="predict", labels="uniform")
    inputs = draw_inputs(case)
    monkeypatch.setattr(definition, "CHUNK_ELEMENTS", 1 << 17)
    tracemalloc.start()
    definition.evaluate(case, inputs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    all_logits = case.batch_size * case.n_classes * 8
    assert peak < all_logits / 4


def test_full_softmax_agrees_with_torch_in_float64():
    case = replace(CASES[0], dtype="float64")
    inputs = draw_inputs(case, full=True)
    hidden = torch.from_numpy(inputs.hidden).requires_grad_()
    weight = torch.from_numpy(inputs.weights[FULL_WEIGHT]).requires_grad_()
    loss = torch.nn.functional.cross_entropy(hidden @ weight.T, torch.from_numpy(inputs.target))
    loss.backward()
    results = definition.evaluate(case, inputs, "full")
    assert results["loss"] == pytest.approx(loss.item(), rel=1e-13)
    assert results["grad.input"] == pytest.approx(hidden.grad.numpy(), rel=1e-11, abs=1e-15)
    assert results["grad.full.weight"] == pytest.approx(weight.grad.numpy(), rel=1e-11, abs=1e-15)


def test_no_rows_give_a_nan_loss_and_zero_gradients():
    case = replace(CASES[0], batch_size=0)
    results = definition.evaluate(case, draw_inputs(case))
    assert math.isnan(results["loss"])
    assert results["output"].shape == (0,)
    assert not results["grad.head.weight"].any()


def test_an_absent_clusters_weights_get_zero_gradients():
    case = replace(CASES[0], labels="only:0-8")
    results = definition.evaluate(case, draw_inputs(case))
    assert not results["grad.tail.1.1.weight"].any()
    assert results["grad.tail.0.1.weight"].any()


def test_the_definition_computes_without_torch():
    assert "torch" not in vars(definition)
