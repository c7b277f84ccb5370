import pytest
import torch

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.gradients import with_zeros_for_absent


def test_the_values_are_the_same_and_unused_weights_get_zeros():
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10], head_bias=True)
    weights = with_zeros_for_absent(layer.weights())
    for mine, original in zip(weights.tensors(), layer.weights().tensors(), strict=True):
        assert torch.equal(mine, original)
    (weights.tails[0].projection * 3).sum().backward()
    assert (layer.tail[0][0].weight.grad == 3).all()
    others = [p for name, p in layer.named_parameters() if name != "tail.0.0.weight"]
    assert len(others) == 5
    assert all((p.grad == 0).all() for p in others)


def test_nothing_computed_leaves_every_gradient_none():
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10])
    with_zeros_for_absent(layer.weights())
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize("backend", ["eager", "tiled"])
@pytest.mark.parametrize(("absent_grads", "runs"), [("none", False), ("zeros", True)])
def test_a_hook_on_a_weight_runs_where_it_gets_a_gradient_and_never_without_one(backend, absent_grads, runs):
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, [5, 12], absent_grads=absent_grads, backend=backend)
    seen = []
    layer.tail[1][1].weight.register_hook(lambda gradient: seen.append(gradient.abs().sum().item()))
    layer(torch.randn(4, 16), torch.arange(5, 9)).loss.backward()
    assert seen == ([0.0] if runs else [])


def test_tails_that_alone_take_gradients_and_are_absent_get_zeros_where_they_were_asked_for():
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, [5, 12], absent_grads="zeros", backend="tiled")
    layer.head.requires_grad_(False)
    layer(torch.randn(4, 16), torch.arange(4)).loss.backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in layer.tail.parameters())
