"""The specification's own promises; its values are checked through the layer, in `test_module.py`."""

import torch
from torch.autograd import gradcheck, gradgradcheck

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.backends import eager


def batch():
    torch.manual_seed(0)
    layer = AdaptiveLogSoftmaxWithLoss(5, 12, [3, 7], 2.0, True, dtype=torch.float64, tail_bias=True)
    return (
        layer,
        torch.randn(6, 5, dtype=torch.float64, requires_grad=True),
        torch.tensor([0, 2, 3, 6, 8, 11]),
    )


def test_nll_is_twice_differentiable_in_input_and_weights():
    layer, hidden, target = batch()
    weights = layer.weights()

    def loss(hidden, *tensors):
        return eager.nll(layer.layout, weights.with_tensors(tensors), hidden, target)[1]

    assert gradcheck(loss, (hidden, *weights.tensors()))
    assert gradgradcheck(loss, (hidden, *weights.tensors()))


def test_log_prob_is_differentiable_in_input_and_weights():
    layer, hidden, _ = batch()
    weights = layer.weights()

    def log_prob(hidden, *tensors):
        return eager.log_prob(layer.layout, weights.with_tensors(tensors), hidden)

    assert gradcheck(log_prob, (hidden, *weights.tensors()))


def test_a_far_shifted_logit_stays_finite():
    layer, hidden, target = batch()
    weights = layer.weights().map(lambda tensor: tensor * 1e4)
    output, loss = eager.nll(layer.layout, weights, hidden, target)
    assert torch.isfinite(output).all()
    assert torch.isfinite(loss)


def test_predict_opens_tails_only_for_rows_that_prefer_one(monkeypatch):
    layer, hidden, _ = batch()
    with torch.no_grad():
        layer.head.weight.zero_()
        layer.head.bias.zero_()
        layer.head.weight[layer.shortlist_size, 0] = 1e3  # the first tail wins where hidden[:, 0] > 0
        layer.head.weight[0, 0] = -1e3
    opened = []
    original = eager.log_prob_given_head
    monkeypatch.setattr(
        eager, "log_prob_given_head", lambda *args: opened.append(len(args[2])) or original(*args)
    )
    best = eager.predict(layer.layout, layer.weights(), hidden)
    assert opened == [int((hidden[:, 0] > 0).sum())]
    assert torch.equal(best, eager.log_prob(layer.layout, layer.weights(), hidden).argmax(1))
