import numpy as np
import pytest
import torch

import zipfmax
from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.converters import to_paddle


def arrays(draw, head_bias=True):
    return {
        "head_weight": draw(12, 5 + 2),
        "head_bias": draw(7) if head_bias else None,
        "tail_weights": [[draw(12, 6), draw(6, 9)], [draw(12, 3), draw(3, 16)]],
    }


def paddles_log_prob(draw, parts):
    """paddle.nn's formula: weights are [in, out], the slots follow the shortlist."""
    head = draw.log_softmax(
        draw.hidden @ parts["head_weight"] + (0 if parts["head_bias"] is None else parts["head_bias"])
    )
    tails = [
        draw.log_softmax(draw.hidden @ a @ b) + head[:, [5 + i]]
        for i, (a, b) in enumerate(parts["tail_weights"])
    ]
    return np.concatenate([head[:, :5], *tails], axis=1)


@pytest.mark.parametrize("head_bias", [False, True])
def test_arrays_give_paddles_log_prob_both_ways(draw, head_bias):
    parts = arrays(draw, head_bias)
    layer = zipfmax.from_paddle(parts, div_value=2.0)
    expected = paddles_log_prob(draw, parts)
    np.testing.assert_allclose(layer.log_prob(torch.from_numpy(draw.hidden)).detach(), expected, rtol=1e-12)
    assert layer.layout == zipfmax.ClusterLayout(12, 30, (5, 14), 2.0)
    back = to_paddle(layer)
    np.testing.assert_allclose(paddles_log_prob(draw, back), expected, rtol=1e-12)


@pytest.mark.parametrize("head_bias", [False, True])
def test_a_live_paddle_layer_converts_and_takes_the_arrays_back(head_bias):
    paddle = pytest.importorskip("paddle")
    theirs = paddle.nn.AdaptiveLogSoftmaxWithLoss(12, 30, [5, 14], div_value=2.0, head_bias=head_bias)
    hidden = np.random.default_rng(0).normal(size=(9, 12)).astype(np.float32)
    ours = zipfmax.from_paddle(theirs)
    assert ours.div_value == 2.0
    expected = theirs.log_prob(paddle.to_tensor(hidden)).numpy()
    np.testing.assert_allclose(
        ours.log_prob(torch.from_numpy(hidden)).detach(), expected, rtol=2e-6, atol=2e-6
    )

    other = AdaptiveLogSoftmaxWithLoss(12, 30, [5, 14], 2.0, head_bias)
    parts = to_paddle(other)
    theirs.head_weight.set_value(parts["head_weight"])
    if head_bias:
        theirs.head_bias.set_value(parts["head_bias"])
    for pair, values in zip(theirs.tail_weights, parts["tail_weights"], strict=True):
        for parameter, value in zip(pair, values, strict=True):
            parameter.set_value(value)
    expected = theirs.log_prob(paddle.to_tensor(hidden)).numpy()
    np.testing.assert_allclose(
        other.log_prob(torch.from_numpy(hidden)).detach(), expected, rtol=2e-6, atol=2e-6
    )


def test_bfloat16_becomes_float32():
    layer = AdaptiveLogSoftmaxWithLoss(12, 30, [5, 14], 2.0, dtype=torch.bfloat16)
    head = to_paddle(layer)["head_weight"]
    assert head.dtype == np.float32
    np.testing.assert_array_equal(head.T, layer.head.weight.detach().float().numpy())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head_weight", None, "lacks 'head_weight'"),
        ("tail_weights", None, "lack 'tail_weights': Paddle's state_dict"),
        ("head_bias", np.zeros(6), r"'head_bias' should have shape \(7\), but has \(6,\)"),
        (
            "tail_weights",
            [[np.zeros((11, 6)), np.zeros((6, 9))]],
            r"'tail_weights\[0\]\[0\]' should have shape \(12, \*\)",
        ),
        (
            "tail_weights",
            [[np.zeros((12, 6)), np.zeros((5, 9))]],
            r"'tail_weights\[0\]\[1\]' should have shape \(6, \*\)",
        ),
        ("bias", np.zeros(3), r"'bias' of shape \(3,\) has no place"),
    ],
)
def test_arrays_that_do_not_fit_are_named(draw, name, value, message):
    with pytest.raises(ValueError, match=message):
        zipfmax.from_paddle(arrays(draw) | {name: value})


def test_what_paddle_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="no place for tail_bias"):
        to_paddle(AdaptiveLogSoftmaxWithLoss(12, 30, [5, 14], 2.0, tail_bias=True))
