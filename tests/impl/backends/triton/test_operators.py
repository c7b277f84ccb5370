"""The operators: opcheck, torch.compile, no host read of device data, all classes, the best class."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.backends import eager, triton
from zipfmax.backends.triton import operators
from zipfmax.backends.triton.best_class import predict_step
from zipfmax.backends.triton.step import nll_step
from zipfmax.clusters import ClusterLayout

sys.path.insert(0, str(Path(__file__).parent))
from cases import crossed, draw, mapped, shapes, within_contract

LAYOUT = ClusterLayout(24, 90, (10, 23, 60), 2.0)
BOUNDS = list(LAYOUT.bounds[1:])
CUTOFFS = shapes([[10]], [[10, 23, 60]])[-1]
READS = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "masked_select", "unique", "equal"}


class NoHostRead(TorchDispatchMode):
    """Fails on any operation that hands device data to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in READS, f"{name} reads device data on the host"
        return func(*args, **(kwargs or {}))


def test_uninitialised_memory_is_poisoned(device: torch.device) -> None:
    assert torch.empty(3, device=device).isnan().all()
    assert torch.empty_like(torch.ones(3, dtype=torch.bfloat16, device=device)).isnan().all()
    assert (torch.empty(3, dtype=torch.int32, device=device) == 2**31 - 1).all()


def test_the_mode_sees_a_read() -> None:
    with NoHostRead(), pytest.raises(AssertionError, match="reads device data"):
        torch.ones(()).item()


def test_a_step_reads_no_device_data(device: torch.device) -> None:
    weights, hidden, target = draw(LAYOUT, shapes([9], [33])[-1], torch.float32, device, biased=True)
    target[::5] = -100
    with NoHostRead():
        nll_step(hidden, target, *operators.pack(weights), BOUNDS, -100, want=(True, True))
        predict_step(hidden, weights, LAYOUT.shortlist_size)


@pytest.mark.parametrize("operator", shapes(["nll", "predict"], ["nll_train", "nll_forward", "log_prob"]))
def test_opcheck(operator: str, device: torch.device) -> None:
    # Every weight fills whole multiples of 64 elements: what lies between gradients is not initialised.
    layout, biased = shapes(
        [(ClusterLayout(16, 30, (14, 22), 1.0), False)], [(ClusterLayout(64, 254, (62, 126), 1.0), True)]
    )[-1]
    bounds = list(layout.bounds[1:])
    weights, hidden, target = draw(layout, 9, torch.float32, device, biased=biased)
    # The parts of `nll` have no gradients of their own.
    differentiable = operator in ("nll", "log_prob")
    tensors, present = operators.pack(mapped(weights, lambda t: t.requires_grad_(differentiable)))
    hidden.requires_grad_(differentiable)
    arguments = {
        "nll": (hidden, target, tensors, present, bounds, 12, "mean", torch.float32, True),
        "nll_forward": (hidden, target, tensors, present, bounds, None, "mean", torch.float32),
        "nll_train": (hidden, target, tensors, present, bounds, 12, "mean", torch.float32, True, True),
        "log_prob": (hidden, tensors, present, bounds),
        "predict": (hidden, tensors, present, bounds),
    }[operator]
    some = ("test_schema", "test_autograd_registration", "test_faketensor")
    checks = shapes([some], [(*some, "test_aot_dispatch_dynamic")])[-1]
    opcheck(getattr(operators, operator), arguments, test_utils=checks)


def test_a_compiled_layer_gives_the_same_gradients(device: torch.device) -> None:
    layer = AdaptiveLogSoftmaxWithLoss(24, 90, CUTOFFS, backend="triton").to(device)
    hidden = torch.randn(21, 24, device=device, requires_grad=True)
    target = torch.randint(0, 90, (21,), device=device)
    compiled = torch.compile(lambda h, t: layer(h, t).loss, fullgraph=True, backend="aot_eager")
    compiled(hidden, target).backward()
    found = [hidden.grad, *(p.grad for p in layer.parameters())]
    hidden.grad = None
    layer.zero_grad()
    layer(hidden, target).loss.backward()
    for ours, expected in zip(found, [hidden.grad, *(p.grad for p in layer.parameters())], strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("differentiated", shapes(["loss"], ["both"]))
def test_a_compiled_graph_that_returns_output_runs_the_step_again_only_where_output_is_used(
    differentiated: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = AdaptiveLogSoftmaxWithLoss(24, 90, CUTOFFS, backend="triton").to(device)
    hidden = torch.randn(21, 24, device=device)
    target = torch.randint(0, 90, (21,), device=device)
    steps = []
    monkeypatch.setattr(operators, "nll_step", lambda *a, **k: steps.append(1) or nll_step(*a, **k))
    found = []
    for call in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        leaf = hidden.clone().requires_grad_()
        layer.zero_grad()
        steps.clear()
        output, loss = call(leaf, target)
        (3 * loss if differentiated == "loss" else 3 * loss + output.square().sum()).backward()
        found.append([leaf.grad, *(p.grad for p in layer.parameters())])
        assert len(steps) == (1 if differentiated == "loss" else 2)
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("target", shapes([[1, 2, 3, 4]], [[0, 7, 12, 19]]))
def test_the_program_that_torchs_layer_fails_on_compiles_in_one_graph(
    target: list[int], device: torch.device
) -> None:
    # pytorch#194765; its targets all lie in the shortlist. The second tail has a projection of width 0.
    torch.manual_seed(0)
    layer = AdaptiveLogSoftmaxWithLoss(
        in_features=8, n_classes=20, cutoffs=[5, 10], backend="triton", device=device
    )
    hidden, labels = torch.randn(4, 8, device=device), torch.tensor(target, device=device)
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    results = []
    for call in (layer, torch.compile(layer, backend=backend, fullgraph=True)):
        leaf = hidden.clone().requires_grad_()
        layer.zero_grad()
        output, loss = call(leaf, labels)
        loss.backward()
        results.append([output.detach(), loss.detach(), leaf.grad, *(p.grad for p in layer.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("n_rows", "dtype"),
    crossed(
        [(0, torch.float32), (1, torch.bfloat16), (37, torch.float16), (129, torch.float32)],
        [0, 1, 37, 129],
        [torch.float32, torch.float16, torch.bfloat16],
    ),
)
def test_log_prob_and_its_gradients(n_rows: int, dtype: torch.dtype, device: torch.device) -> None:
    weights, hidden, _ = draw(LAYOUT, n_rows, dtype, device, biased=True)
    upstream = torch.randn(n_rows, 90, device=device).to(dtype)
    results = []
    for backend, own in ((triton, dtype), (eager, dtype), (eager, torch.float64)):
        leaves = mapped(weights, lambda t, own=own: t.detach().to(own).requires_grad_())
        rows = hidden.detach().to(own).requires_grad_()
        out = backend.log_prob(LAYOUT, leaves, rows)
        out.backward(upstream.to(own))
        results.append([out.detach(), rows.grad, *(t.grad for t in leaves.tensors())])
    for i, (ours, usual, truth) in enumerate(zip(*results, strict=True)):
        within_contract(f"result {i}", ours, truth, usual)


@pytest.mark.parametrize(
    ("n_rows", "lift"),
    crossed([(0, 0.0), (1, 50.0), (129, -50.0), (37, 0.0), (37, 50.0)], [0, 1, 37, 129], [-50.0, 0.0, 50.0]),
)
def test_predict_is_the_argmax(lift: float, n_rows: int, device: torch.device) -> None:
    weights, hidden, _ = draw(LAYOUT, n_rows, torch.float32, device, biased=True)
    weights.head_bias[LAYOUT.shortlist_size :] += lift  # all rows decided by the head, some, none
    expected = eager.log_prob(LAYOUT, mapped(weights, lambda t: t.double()), hidden.double()).argmax(1)
    assert torch.equal(triton.predict(LAYOUT, weights, hidden), expected)
