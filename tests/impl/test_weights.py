import pytest
import torch

from zipfmax import AdaptiveLogSoftmaxWithLoss


@pytest.mark.parametrize("head_bias", [False, True])
@pytest.mark.parametrize("tail_bias", [False, True])
@pytest.mark.parametrize("projection_bias", [False, True])
def test_map_keeps_every_tensor_in_its_place(head_bias, tail_bias, projection_bias):
    layer = AdaptiveLogSoftmaxWithLoss(
        16, 20, [5, 10], head_bias=head_bias, tail_bias=tail_bias, projection_bias=projection_bias
    )
    weights = layer.weights()
    doubled = weights.map(lambda tensor: tensor * 2)
    assert len(weights.tensors()) == 5 + head_bias + 2 * tail_bias + 2 * projection_bias
    torch.testing.assert_close(doubled.head, weights.head * 2)
    assert (doubled.head_bias is None) == (not head_bias)
    for new, old in zip(doubled.tails, weights.tails, strict=True):
        for new_tensor, old_tensor in zip(new, old, strict=True):
            assert (new_tensor is None) == (old_tensor is None)
            if old_tensor is not None:
                torch.testing.assert_close(new_tensor, old_tensor * 2)


def test_tensors_are_the_parameters_in_their_order():
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10], head_bias=True)
    assert all(a is b for a, b in zip(layer.weights().tensors(), layer.parameters(), strict=True))
