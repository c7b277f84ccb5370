"""log_prob and predict of the tiled backend against the eager one in float64."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.backends import eager, tiled
from zipfmax_bench.memory import peak_temporary_bytes

LAYOUTS = {
    "plain": (32, 200, [11, 40, 90], 4.0),  # the last projection has size 0
    "uniform tails": (8, 40, [4, 12, 25], 6.0),
    "a shortlist and a tail of one": (9, 12, [1, 11], 1.0),
}
# Relative to the largest: what rounding the logits and the result to the dtype costs.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 1e-2}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def layer(request):
    torch.manual_seed(0)
    layer = AdaptiveLogSoftmaxWithLoss(
        *request.param, head_bias=True, tail_bias=True, projection_bias=True, dtype=torch.float64
    )
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
        parameter.mul_(4)
    return layer


@pytest.fixture(params=[2**26, 40_000, 900, 64], ids="workspace of {}".format)
def workspace_bytes(request, monkeypatch):
    monkeypatch.setattr(tiled, "workspace_bytes", request.param)


@pytest.mark.parametrize("n", [0, 1, 50])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_log_prob_equals_eagers(layer, workspace_bytes, n, dtype):
    weights = layer.weights().map(lambda tensor: tensor.to(dtype))
    hidden = torch.randn(n, layer.in_features, dtype=torch.float64).to(dtype)
    expected = eager.log_prob(layer.layout, weights.map(torch.Tensor.double), hidden.double())
    actual = tiled.log_prob(layer.layout, weights, hidden)
    assert actual.dtype == dtype
    largest = float(expected.abs().max()) if n else 0.0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype] * largest)


@pytest.mark.parametrize("n", [0, 1, 50])
def test_predict_is_the_argmax_wherever_it_lies(layer, workspace_bytes, n):
    hidden = torch.randn(n, layer.in_features, dtype=torch.float64)
    weights = layer.weights()
    shortlist = layer.layout.shortlist_size
    for favour in (-50, 0, 50):  # of the tails: none is opened, some, all
        weights.head_bias[shortlist:] += favour
        expected = eager.log_prob(layer.layout, weights, hidden).argmax(dim=1)
        assert torch.equal(tiled.predict(layer.layout, weights, hidden), expected)
        weights.head_bias[shortlist:] -= favour


def test_predict_opens_no_tail_that_cannot_win():
    layer = AdaptiveLogSoftmaxWithLoss(32, 200, [11, 40, 90], head_bias=True)
    hidden = torch.randn(20, 32)
    weights = layer.weights().map(torch.Tensor.detach)
    weights.head_bias[11:] -= 100
    counter = FlopCounterMode(display=False)
    with counter:
        tiled.predict(layer.layout, weights, hidden)
    assert counter.get_total_flops() == 2 * 20 * 32 * 14


@pytest.mark.parametrize(("workspace", "products"), [(2**26, 1), (2_000, 2)], ids=["whole rows", "tiles"])
def test_log_prob_takes_a_product_once_where_the_workspace_holds_whole_rows(monkeypatch, workspace, products):
    monkeypatch.setattr(tiled, "workspace_bytes", workspace)
    layer = AdaptiveLogSoftmaxWithLoss(32, 1000, [11])
    weights = layer.weights().map(torch.Tensor.detach)
    counter = FlopCounterMode(display=False)
    with counter:
        tiled.log_prob(layer.layout, weights, torch.randn(40, 32))
    of_the_head, of_the_projection, of_the_tail = 32 * 12, 32 * 8, 8 * 989
    assert counter.get_total_flops() == 2 * 40 * (of_the_head + of_the_projection + products * of_the_tail)


def test_predict_of_many_rows_holds_little_more_than_the_workspace(monkeypatch):
    monkeypatch.setattr(tiled, "workspace_bytes", 2**18)
    layer = AdaptiveLogSoftmaxWithLoss(16, 5000, [100, 1000])
    hidden = torch.randn(4000, 16)
    per_row_vectors = 4000 * 8 * 12
    assert peak_temporary_bytes(lambda: layer.predict(hidden)) < 2**18 + per_row_vectors < 4000 * 5000


def test_ties_go_to_the_smallest_class():
    layer = AdaptiveLogSoftmaxWithLoss(8, 40, [4, 12, 25], 6.0)
    hidden = torch.zeros(3, 8)  # every class of a part is as probable as the next, and a slot as a word
    assert layer.predict(hidden).tolist() == [0, 0, 0]


def test_log_prob_can_be_differentiated():
    layer = AdaptiveLogSoftmaxWithLoss(8, 40, [4, 12, 25], 2.0, dtype=torch.float64, backend="tiled")
    hidden = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    weights = layer.weights()

    def log_prob(hidden, *tensors):
        return tiled.log_prob(layer.layout, weights.with_tensors(tensors), hidden)

    assert torch.autograd.gradcheck(log_prob, (hidden, *weights.tensors()))
