import numpy as np
import pytest
import torch

import zipfmax
from zipfmax import AdaptiveLogSoftmaxWithLoss, LabelRanks
from zipfmax.converters import to_par_transformer_xl


def keras_weights(draw, sizes=(6, 1)):
    """hidden 12, cutoffs [5, 14, 30]: head kernel and bias, then projection and output of each tail."""
    arrays = [draw(12, 7), draw(7)]
    for width, size in zip(sizes, (9, 16), strict=True):
        arrays += [draw(12, width), draw(width), draw(width, size), draw(size)]
    return arrays


def par_transformer_xls_log_softmax(draw, arrays):
    """Its _log_softmax: head without its last cluster_num columns, then each tail plus its slot's column."""
    head = draw.log_softmax(draw.hidden @ arrays[0] + arrays[1])
    output = head[:, :-2]
    for i in range(2):
        projection, projection_bias, kernel, bias = arrays[2 + 4 * i : 6 + 4 * i]
        tail = draw.log_softmax((draw.hidden @ projection + projection_bias) @ kernel + bias)
        output = np.concatenate([output, tail + head[:, 5 + i : 5 + i + 1]], axis=1)
    return output


def test_its_weights_give_its_log_softmax_both_ways(draw):
    arrays = keras_weights(draw)
    layer = zipfmax.from_par_transformer_xl(arrays)
    expected = par_transformer_xls_log_softmax(draw, arrays)
    np.testing.assert_allclose(layer.log_prob(torch.from_numpy(draw.hidden)).detach(), expected, rtol=1e-12)
    assert (layer.head_bias, layer.tail_bias, layer.projection_bias) == (True, True, True)
    assert layer.layout.cutoffs == (5, 14)
    back = to_par_transformer_xl(layer)
    np.testing.assert_allclose(par_transformer_xls_log_softmax(draw, back), expected, rtol=1e-12)


def test_a_layer_without_biases_gives_zeros_for_them(draw):
    layer = AdaptiveLogSoftmaxWithLoss(12, 30, [5, 14], 2.0, dtype=torch.float64)
    arrays = to_par_transformer_xl(layer)
    expected = layer.log_prob(torch.from_numpy(draw.hidden)).detach()
    np.testing.assert_allclose(par_transformer_xls_log_softmax(draw, arrays), expected, rtol=1e-12)
    assert all((arrays[i] == 0).all() for i in (1, 3, 5, 7, 9))


def test_a_live_keras_layer_keeps_its_weights_in_that_order(draw, keras):
    class Layer(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.head_w = keras.layers.Dense(7)
            self.tail_w = [
                keras.models.Sequential([keras.layers.Dense(width), keras.layers.Dense(size)])
                for width, size in ((6, 9), (1, 16))
            ]

        def call(self, hidden):
            return [self.head_w(hidden), *(tail(hidden) for tail in self.tail_w)]

    theirs = Layer()
    theirs(draw.hidden.astype(np.float32))
    theirs.set_weights([array + 0.1 for array in theirs.get_weights()])
    head, *tails = (logits.numpy() for logits in theirs(draw.hidden.astype(np.float32)))
    head = draw.log_softmax(head)
    parts = [head[:, :5], *(draw.log_softmax(tail) + head[:, 5 + i, None] for i, tail in enumerate(tails))]
    ours = zipfmax.from_par_transformer_xl(theirs)
    found = ours.log_prob(torch.from_numpy(draw.hidden.astype(np.float32))).detach()
    np.testing.assert_allclose(found, np.concatenate(parts, axis=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays[:-1], "2 arrays of the head and 4 of each tail, got 9"),
        (lambda arrays: arrays[:2], "2 arrays of the head and 4 of each tail, got 2"),
        (
            lambda arrays: [*arrays[:3], arrays[3][:-1], *arrays[4:]],
            r"'\[3\]' should have shape \(6\), but has \(5,\)",
        ),
        (lambda arrays: [arrays[0].T, *arrays[1:]], r"'\[1\]' should have shape \(12\), but has \(7,\)"),
    ],
)
def test_arrays_that_do_not_fit_are_named(draw, change, message):
    with pytest.raises(ValueError, match=message):
        zipfmax.from_par_transformer_xl(change(keras_weights(draw)))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_ranks": LabelRanks(range(30))}, "no place for label_ranks"),
        ({"div_value": 5}, r"projections of size 1 or more, but this layer has \(2, 0\)"),
    ],
)
def test_what_it_cannot_hold_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        to_par_transformer_xl(AdaptiveLogSoftmaxWithLoss(12, 30, [5, 14], **options))
