"""What a run does is counted exactly, and an extra operation shows."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zipfmax.backends import tiled_operators
from zipfmax_bench import flops, work
from zipfmax_bench.prediction import product_flops
from zipfmax_reference.contestants import registry
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs

CASE = Case(90, 16, 24, (20, 50), div_value=2.0, labels="uniform", task="train")


def runner(name: str, case: Case = CASE):
    return registry.implementation(name).build(case, draw_inputs(case))


def rows(case: Case) -> list[int]:
    parts = np.bincount(case.layout.parts(draw_inputs(case).target), minlength=3)
    return [case.batch_size, *parts[1:].tolist()]


def weights(case: Case) -> list[torch.Tensor]:
    return [torch.from_numpy(weight) for weight in draw_inputs(case).weights.values()]


@pytest.mark.parametrize("name", ["torch", "zipfmax:eager", "zipfmax:tiled"])
@pytest.mark.parametrize(("task", "products"), [("forward", 1), ("train", 3)])
def test_flops_are_those_of_the_products_that_a_step_needs(name, task, products):
    case = Case(**{**CASE.to_fields(), "task": task})
    counted = work.count(runner(name, case).run, "cpu")
    expected = flops.layer_flops(rows(case), weights(case), flops.Products(*[products] * 3))
    assert counted.flops == expected


def test_full_softmax_pays_for_every_class():
    counted = work.count(runner("full").run, "cpu")
    assert counted.flops == product_flops("full", CASE)


def test_counting_twice_gives_the_same():
    run = runner("zipfmax:tiled").run
    assert work.count(run, "cpu") == work.count(run, "cpu")


def test_an_extra_temporary_an_extra_operation_and_an_extra_wait_show():
    run = runner("zipfmax:tiled").run
    extra = torch.zeros(())

    def slower() -> None:
        run()
        torch.ones(1 << 20)
        extra.item()

    before, after = work.count(run, "cpu"), work.count(slower, "cpu")
    assert after.synchronisations == before.synchronisations + 1
    assert after.launches >= before.launches + 2
    assert after.peak_bytes >= 4 * (1 << 20) > before.peak_bytes
    assert after.flops == before.flops


def test_selecting_by_a_mask_waits_and_by_rows_does_not():
    values, mask, rows = torch.arange(10.0), torch.arange(10) > 4, torch.tensor([1, 2])
    assert work.count(lambda: values[mask], "cpu").synchronisations == 1
    assert work.count(lambda: values[rows], "cpu").synchronisations == 0
    assert work.count(lambda: mask.nonzero(), "cpu").synchronisations == 1


def test_a_run_without_torch_operations_counts_as_nothing():
    assert work.count(lambda: None, "cpu") == work.Work()


def test_the_operators_of_a_compiled_graph_are_counted():
    flops.register()
    case = CASE
    inputs = draw_inputs(case)
    hidden = torch.from_numpy(inputs.hidden)
    target = torch.from_numpy(inputs.target)
    tensors = weights(case)
    with FlopCounterMode(display=False) as counter:
        tiled_operators._tiled_log_p(
            hidden, target, tensors, [False] * 5, list(case.layout.bounds), None, 1 << 20
        )
    assert counter.get_total_flops() == flops.layer_flops(rows(case), tensors, flops.FORWARD)


@pytest.mark.parametrize(
    ("hidden", "weight", "products"),
    [(True, True, (3, 3, 4)), (False, True, (2, 2, 4)), (True, False, (2, 2, 2))],
)
def test_the_kernels_gradients_visit_the_tails_twice_more(hidden, weight, products):
    arguments = (
        torch.zeros(24, 16), torch.from_numpy(draw_inputs(CASE).target), weights(CASE), [0] * 5, [20, 50, 90],
        None, None, hidden, weight,
    )  # fmt: skip
    counted = flops._nll_gradients(*arguments)
    assert counted == flops.layer_flops(rows(CASE), weights(CASE), flops.Products(*products))


def test_the_kernels_change_no_other_implementations_count(monkeypatch):
    before = work.count(runner("zipfmax:tiled").run, "cpu").flops
    monkeypatch.setitem(sys.modules, flops._KERNELS, None)
    assert work.count(runner("zipfmax:tiled").run, "cpu").flops == before
