"""The tiled backend under torch.compile: whole graphs, and the values and gradients of the eager backend."""

import pytest
import torch

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.backends import eager, tiled
from zipfmax.backends import tiled_operators as operators


def batch(tail_bias=True):
    torch.manual_seed(0)
    layer = AdaptiveLogSoftmaxWithLoss(16, 120, [11, 40, 90], 2.0, tail_bias=tail_bias, backend="tiled")
    hidden = torch.randn(30, 16, requires_grad=True)
    target = torch.randint(0, 90, (30,))  # none in the last tail
    target[:3] = 5
    return layer, hidden, target


@pytest.mark.parametrize("tail_bias", [False, True])
@pytest.mark.parametrize("ignore_index", [None, 5])
def test_the_operators_keep_their_promises_to_torch(tail_bias, ignore_index):
    layer, hidden, target = batch(tail_bias)
    weights = layer.weights()
    biases = operators._biases(weights)
    torch.library.opcheck(
        operators._tiled_log_p,
        (hidden, target, weights.tensors(), biases, list(layer.layout.bounds), ignore_index, 1 << 20),
    )


@pytest.mark.parametrize("ignore_index", [None, 5])
@pytest.mark.parametrize("use", ["loss", "output and loss"])
def test_a_whole_compiled_graph_gives_eagers_values_and_gradients(ignore_index, use):
    layer, hidden, target = batch()
    weights = layer.weights()

    def scalar(backend, hidden, *tensors):
        output, loss = backend.nll(
            layer.layout, weights.with_tensors(tensors), hidden, target, ignore_index=ignore_index
        )
        return loss * 3 + (output.cos().sum() if use != "loss" else 0)

    leaves = [hidden, *weights.tensors()]
    compiled = torch.compile(lambda *tensors: scalar(tiled, *tensors), fullgraph=True, backend="aot_eager")
    actual, expected = compiled(*leaves), scalar(eager, *leaves)
    torch.testing.assert_close(actual, expected)
    gradients = torch.autograd.grad(actual, leaves)
    for ours, right in zip(gradients, torch.autograd.grad(expected, leaves, allow_unused=True), strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if right is None else right)


def test_frozen_weights_get_no_gradient_in_a_graph():
    layer, hidden, target = batch()
    layer.head.weight.requires_grad_(False)
    torch.compile(lambda h: layer(h, target).loss, fullgraph=True, backend="aot_eager")(hidden).backward()
    assert layer.head.weight.grad is None
    assert hidden.grad is not None
    assert layer.tail[0][1].weight.grad is not None


def test_a_target_out_of_range_raises_in_a_graph_too():
    layer, hidden, target = batch()
    compiled = torch.compile(lambda h, t: layer(h, t).loss, fullgraph=True, backend="aot_eager")
    compiled(hidden, target)
    with pytest.raises(RuntimeError, match=r"Target values should be in \[0, 119\]"):
        compiled(hidden, target + 100)
