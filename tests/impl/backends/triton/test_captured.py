"""Captured steps: when one is taken, and that its results are those of a launched one.

There is no CUDA graph under the interpreter: a stand-in repeats the step into the memory of its first run, which
is what a graph does, and the step is computed by plain operations, which are faster here than the kernels.
`tests/impl/test_captured_cuda.py` does the same with kernels and graphs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.backends import eager
from zipfmax.backends.triton import captured, step
from zipfmax.backends.triton.captured import Graphs
from zipfmax.backends.triton.operators import unpack
from zipfmax.backends.triton.step import Gradients, Result, Shapes
from zipfmax.clusters import ClusterLayout

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has graphs")

AFTER = 1
"""In place of the module's own: every step has a launch under the interpreter."""

OPTIONS = {
    "mean": {},
    "sum with biases": {"reduction": "sum", "head_bias": True, "tail_bias": True, "projection_bias": True},
    "ignored rows": {"ignore_index": 3},
}


class Repeats:
    """Stands in for the capture; counts captures and replays."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(
        self, step: Callable[[Tensor, Tensor], Result], hidden: Tensor, target: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Result, Callable[[], None]]:
        self.captures += 1
        inputs = torch.empty(hidden.shape), torch.zeros_like(target)
        found = step(*inputs)

        def replay() -> None:
            self.replays += 1
            for mine, new in zip(found[:5], step(*inputs)[:5], strict=True):
                if mine is not None:
                    mine.copy_(new)

        return inputs, found, replay


class PlainPlan:
    """A `StepPlan` of plain operations."""

    held_bytes = 1000

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self.gradients = Gradients(shapes.d, shapes.bounds, shapes.k_sizes, shapes.present)

    def run(
        self, hidden: Tensor, target: Tensor, weights: Sequence[Tensor], row_weight: Tensor | None
    ) -> Result:
        s = self._shapes
        leaves = [tensor.detach().requires_grad_() for tensor in (hidden, *weights)]
        with torch.enable_grad():
            output, loss = eager.nll(
                ClusterLayout(s.d, s.bounds[-1], s.bounds[:-1], 4.0),
                unpack(leaves[1:], s.present),
                leaves[0],
                target,
                ignore_index=s.ignore_index,
                reduction=s.reduction,
            )
            factor = None
            if s.reduction == "mean" and s.ignore_index is not None:
                factor = s.n_rows / (target != s.ignore_index).sum()
            scaled = loss if factor is None else loss / factor
            if row_weight is not None:
                scaled = -(row_weight * output).sum()
        flat = torch.zeros(self.gradients.size)
        of_hidden, *of_weights = torch.autograd.grad(scaled, leaves, materialize_grads=True)
        for place, gradient in zip(self.gradients.split(flat), of_weights, strict=True):
            place.copy_(gradient)
        return Result(output.detach(), loss.detach(), factor, of_hidden, flat, self.gradients)


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch) -> Repeats:
    stand_in = Repeats()
    monkeypatch.setattr(captured, "AFTER", AFTER)
    monkeypatch.setattr(captured, "_capture", stand_in)
    monkeypatch.setattr(Graphs, "_stream", lambda self, shapes: 0 if self.limit_bytes else None)
    monkeypatch.setattr(step, "graphs", Graphs(2**30))
    monkeypatch.setattr(step, "plan_for", PlainPlan)
    return stand_in


def make(**options: Any) -> AdaptiveLogSoftmaxWithLoss:
    torch.manual_seed(0)
    return AdaptiveLogSoftmaxWithLoss(24, 60, [10, 30], backend="triton", **options)


def batch(seed: int, n: int = 17) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 24, generator=generator).requires_grad_()
    return hidden, torch.randint(0, 60, (n,), generator=generator)


def trained(layer: AdaptiveLogSoftmaxWithLoss, seeds: range, factor: float = 1.0) -> list[Tensor]:
    """Results and gradients of each step, with an update of the weights after each."""
    found = []
    for seed in seeds:
        hidden, target = batch(seed)
        layer.zero_grad()
        output, loss = layer(hidden, target)
        (factor * loss).backward()
        found += [output.detach(), loss.detach(), hidden.grad, *(p.grad for p in layer.parameters())]
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= 0.1 * parameter.grad
    return found


def same(found: list[Any], expected: list[Any]) -> None:
    for mine, right in zip(found, expected, strict=True):
        assert torch.equal(mine, right)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("factor", [1.0, -0.5])
def test_replayed_steps_give_what_launched_ones_give(
    options: dict[str, Any], factor: float, repeats: Repeats, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = range(AFTER + 3)
    found = trained(make(**options), steps, factor)
    assert (repeats.captures, repeats.replays) == (1, 3)
    monkeypatch.setattr(step, "graphs", Graphs(0))
    same(found, trained(make(**options), steps, factor))
    assert repeats.replays == 3


def settled(layer: AdaptiveLogSoftmaxWithLoss) -> None:
    """Steps until one is captured; the weights stay."""
    for seed in range(AFTER + 1):
        layer(*batch(seed)).loss.backward()
    layer.zero_grad()


def gradients(layer: AdaptiveLogSoftmaxWithLoss) -> list[Tensor]:
    return [p.grad.clone() for p in layer.parameters()]


def test_gradients_that_wait_for_their_backward_are_not_overwritten_by_the_next_step(
    repeats: Repeats,
) -> None:
    layer = make()
    settled(layer)
    first, second = layer(*batch(50)).loss, layer(*batch(51)).loss
    replays = repeats.replays
    (first + 2 * second).backward()
    found = gradients(layer)
    assert repeats.replays == replays
    layer.zero_grad()
    layer(*batch(50)).loss.backward()
    (2 * layer(*batch(51)).loss).backward()
    for mine, right in zip(found, gradients(layer), strict=True):
        torch.testing.assert_close(mine, right)


def test_gradients_that_were_handed_out_are_the_users(repeats: Repeats) -> None:
    layer = make()
    settled(layer)
    layer(*batch(50)).loss.backward()
    kept = [p.grad for p in layer.parameters()]
    before = gradients(layer)
    layer.zero_grad()
    replays = repeats.replays
    output, loss = layer(*batch(51))
    values = output.detach().clone(), loss.detach().clone()
    loss.backward()
    layer(*batch(52))
    assert repeats.replays == replays + 2
    same(kept, before)
    assert torch.equal(output, values[0])
    assert torch.equal(loss, values[1])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_second_backward_and_one_from_output_are_right_after_a_replay(
    options: dict[str, Any], repeats: Repeats
) -> None:
    layer, plain = make(**options), make(**options)
    plain.backend = "eager"
    settled(layer)
    found = []
    for each in (layer, plain):
        hidden, target = batch(60)
        output, loss = each(hidden, target)
        loss.backward(retain_graph=True)
        layer(*batch(61))  # takes the graph's memory
        loss.backward(retain_graph=True)
        (output.sum() + loss).backward()
        found.append([hidden.grad, *gradients(each)])
        each.zero_grad()
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_dropped_gives_its_graph_back(repeats: Repeats) -> None:
    layer = make()
    settled(layer)
    replays = repeats.replays
    loss = layer(*batch(50)).loss
    layer(*batch(51))
    assert repeats.replays == replays + 1
    del loss
    gc.collect()
    layer(*batch(52))
    assert repeats.replays == replays + 2


def test_weights_at_other_addresses_are_never_computed_with_a_graph_of_the_old_ones(repeats: Repeats) -> None:
    layer = make()
    settled(layer)
    layer.head.weight = torch.nn.Parameter(torch.randn_like(layer.head.weight))
    replays = repeats.replays
    found = layer(*batch(50))
    assert repeats.replays == replays
    layer.backend = "eager"
    torch.testing.assert_close(found.loss, layer(*batch(50)).loss)


def test_a_step_with_a_weight_between_multiples_of_16_bytes_is_launched(repeats: Repeats) -> None:
    layer = make()
    flat = torch.randn(layer.head.weight.numel() + 1)
    layer.head.weight = torch.nn.Parameter(flat[1:].view(layer.head.weight.shape))
    settled(layer)
    assert repeats.captures == 0


def test_weights_that_move_at_every_few_steps_are_captured_a_few_times_only(repeats: Repeats) -> None:
    layer = make()
    for _ in range(captured._MOST_CAPTURES + 2):
        layer.head.weight = torch.nn.Parameter(layer.head.weight.detach().clone())
        settled(layer)
    assert repeats.captures == captured._MOST_CAPTURES


def test_graphs_keep_within_their_bound(repeats: Repeats, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, other = make(), make(head_bias=True)
    settled(layer)
    assert step.graphs.n_bytes == PlainPlan.held_bytes
    step.graphs.limit(PlainPlan.held_bytes + 1)
    settled(other)
    assert (repeats.captures, step.graphs.n_bytes) == (2, PlainPlan.held_bytes)
    step.graphs.limit(PlainPlan.held_bytes - 1)
    assert step.graphs.n_bytes == 0
    settled(layer)
    assert repeats.captures == 2


def test_what_a_step_is_said_to_hold_is_what_it_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make(ignore_index=3)
    hidden, target = batch(0)
    plans: list[Any] = []
    plan_for = step.plan_for
    monkeypatch.setattr(step, "plan_for", lambda shapes: plans.append(plan_for(shapes)) or plans[-1])
    taken = 0

    def counting(make_tensor: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(*arguments: Any, **options: Any) -> Tensor:
            nonlocal taken
            tensor = make_tensor(*arguments, **options)
            taken += tensor.untyped_storage().nbytes()
            return tensor

        return counted

    for name in ("empty", "empty_strided"):
        monkeypatch.setattr(torch, name, counting(getattr(torch, name)))
    layer(hidden, target)
    monkeypatch.undo()
    of_batch = hidden.numel() * 4 + target.numel() * 8
    assert taken + of_batch == pytest.approx(plans[0].held_bytes, abs=1000)


def test_steps_are_launched_while_graphs_are_paused(
    repeats: Repeats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    graphs = Graphs(2**30)
    with graphs.paused():
        assert graphs._stream(None) is None  # type: ignore[arg-type]


def test_a_negative_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0 bytes, got -1"):
        captured.set_graph_memory(-1)


def test_a_step_that_cannot_be_captured_is_launched_and_said_once(
    repeats: Repeats, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(step: Callable[[Tensor, Tensor], Result], hidden: Tensor, target: Tensor) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(captured, "_capture", failing)
    layer = make()
    with pytest.warns(UserWarning, match="could not be captured as a CUDA graph.*not permitted"):
        found = trained(layer, range(AFTER + 2))
    monkeypatch.setattr(step, "graphs", Graphs(0))
    same(found, trained(make(), range(AFTER + 2)))
