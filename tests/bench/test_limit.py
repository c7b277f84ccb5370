"""The products are those of the batch, counted independently from the case's own formulas."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zipfmax.clusters import ClusterLayout
from zipfmax_bench.limit import Limit, products
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_batch, draw_inputs

CASE = Case(n_classes=300, in_features=32, batch_size=50, cutoffs=(20, 100), div_value=4.0)


def flops_of(run):
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    return counter.get_total_flops()


def expected_flops(case, target, n_products):
    def linear(rows, inputs, outputs):
        return 2 * rows * inputs * outputs

    first, second = np.sum((target >= 20) & (target < 100)), np.sum(target >= 100)
    total = linear(len(target), 32, 22)
    total += linear(first, 32, 8) + linear(first, 8, 80)
    total += linear(second, 32, 2) + linear(second, 2, 200)
    return n_products * total


@pytest.mark.parametrize(("task", "n_products"), [("forward", 1), ("train", 3)])
@pytest.mark.parametrize("labels", ["zipf:0.8", "zipf:2.5", "uniform"])
def test_it_does_the_products_of_the_loaded_batch_and_no_others(task, n_products, labels):
    case = Case(**{**CASE.to_fields(), "cutoffs": CASE.cutoffs, "task": task, "labels": labels})
    runner = Limit().build(case, draw_inputs(case))
    for batch in range(3):
        hidden, target = draw_batch(case, batch)
        runner.load(hidden, target)
        assert flops_of(runner.run) == expected_flops(case, target, n_products)


def test_a_cluster_without_rows_costs_nothing():
    layout = ClusterLayout(32, 300, (20, 100), 4.0)
    found = products(layout, np.array([7, 0, 3]))
    assert [p[:4] for p in found] == [(0, 10, 32, 22), (2, 3, 32, 2), (2, 3, 2, 200)]
    assert [p.makes_logits for p in found] == [True, False, True]


def test_every_buffer_is_there_before_a_run(monkeypatch):
    runner = Limit().build(CASE, draw_inputs(CASE))
    made = []
    for name in ("empty", "randn", "empty_like", "zeros"):
        monkeypatch.setattr(torch, name, lambda *_, name=name, **__: made.append(name))
    runner.run()
    assert made == []


def test_no_product_meets_an_infinity_however_often_it_runs():
    runner = Limit().build(CASE, draw_inputs(CASE))
    for _ in range(5):
        runner.run()
    for tensor in (runner._logits, *runner._input_gradients, runner._exponentials[:50]):
        assert torch.isfinite(tensor).all()


def test_tasks_whose_products_depend_on_the_values_are_refused_with_the_reason():
    for task in ("log_prob", "predict"):
        case = Case(**{**CASE.to_fields(), "cutoffs": CASE.cutoffs, "task": task})
        assert task in Limit().unsupported_reason(case)
    assert Limit().unsupported_reason(CASE) is None
