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
