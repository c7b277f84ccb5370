import numpy as np
import pytest
import torch

import zipfmax
from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.converters import to_transformer_xl

CUTOFFS = [5, 14, 20]  # of 30 classes; d_proj is 12
ENDS = [0, *CUTOFFS, 30]


def divided(draw, d_embed=8, div_val=2):
    state = {"cluster_weight": draw(3, d_embed), "cluster_bias": draw(3)}
    for i in range(4):
        width, size = d_embed // div_val**i, ENDS[i + 1] - ENDS[i]
        state |= {f"out_layers.{i}.weight": draw(size, width), f"out_layers.{i}.bias": draw(size)}
        state[f"out_projs.{i}"] = draw(12, width)
    return state


def undivided(draw, d_embed):
    """div_val = 1: one output layer; projections only where d_proj differs from d_embed."""
    state = {"cluster_weight": draw(3, d_embed), "cluster_bias": draw(3)}
    state |= {"out_layers.0.weight": draw(30, d_embed), "out_layers.0.bias": draw(30)}
    if d_embed != 12:
        state |= {f"out_projs.{i}": draw(12, d_embed) for i in range(4)}
    return state


def transformer_xls_log_prob(draw, state):
    """ProjectedAdaptiveLogSoftmax as it scores each class: cluster i of its loop adds head_logprob[:, -i]."""
    parts = []
    for i in range(4):
        if "out_layers.1.weight" in state:
            weight, bias = state[f"out_layers.{i}.weight"], state[f"out_layers.{i}.bias"]
        else:
            rows = slice(ENDS[i], ENDS[i + 1])
            weight, bias = state["out_layers.0.weight"][rows], state["out_layers.0.bias"][rows]
        if i == 0:
            weight = np.concatenate([weight, state["cluster_weight"]])
            bias = np.concatenate([bias, state["cluster_bias"]])
        projected = draw.hidden @ state[f"out_projs.{i}"] if f"out_projs.{i}" in state else draw.hidden
        log_prob = draw.log_softmax(projected @ weight.T + bias)
        if i == 0:
            head = log_prob
            parts.append(head[:, : CUTOFFS[0]])
        else:
            parts.append(head[:, -i][:, None] + log_prob)
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize(
    "kind", ["d_embed = d_proj", "d_embed < d_proj", "div_val 1", "div_val 1, d_embed < d_proj"]
)
@pytest.mark.parametrize("prefix", ["", "crit."])
def test_a_state_dict_gives_transformer_xls_log_prob(draw, kind, prefix):
    state = {
        "d_embed = d_proj": lambda: divided(draw, 12),
        "d_embed < d_proj": lambda: divided(draw, 8),
        "div_val 1": lambda: undivided(draw, 12),
        "div_val 1, d_embed < d_proj": lambda: undivided(draw, 10),
    }[kind]()
    named = {prefix + name: value for name, value in state.items()}
    layer = zipfmax.from_transformer_xl(named, CUTOFFS, prefix=prefix)
    expected = transformer_xls_log_prob(draw, state)
    np.testing.assert_allclose(layer.log_prob(torch.from_numpy(draw.hidden)).detach(), expected, rtol=1e-11)
    assert layer.layout.cutoffs == tuple(CUTOFFS)
    assert layer.div_value == (1 if "div_val 1" in kind else 4)
    if "div_val 1" not in kind:
        inferred = zipfmax.from_transformer_xl(named, prefix=prefix)
        assert inferred.layout == layer.layout


def test_slots_in_order_are_those_of_the_tensorflow_version(draw):
    state = divided(draw)
    flipped = state | {name: state[name][::-1].copy() for name in ("cluster_weight", "cluster_bias")}
    layer = zipfmax.from_transformer_xl(flipped, reversed_slots=False)
    expected = transformer_xls_log_prob(draw, state)
    np.testing.assert_allclose(layer.log_prob(torch.from_numpy(draw.hidden)).detach(), expected, rtol=1e-11)


@pytest.mark.parametrize("div_value", [1, 2.0])
@pytest.mark.parametrize("biases", [False, True])
def test_our_layer_gives_the_same_function_there(draw, div_value, biases):
    layer = AdaptiveLogSoftmaxWithLoss(
        12, 30, CUTOFFS, div_value, biases, dtype=torch.float64, tail_bias=biases
    )
    state = to_transformer_xl(layer)
    expected = layer.log_prob(torch.from_numpy(draw.hidden)).detach().numpy()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    np.testing.assert_allclose(transformer_xls_log_prob(draw, arrays), expected, rtol=1e-11)
    template = undivided(draw, 12) if div_value == 1 else divided(draw, 12)
    assert {name: array.shape for name, array in arrays.items()} == {n: a.shape for n, a in template.items()}
    again = zipfmax.from_transformer_xl(state, CUTOFFS, div_val=div_value)
    np.testing.assert_allclose(again.log_prob(torch.from_numpy(draw.hidden)).detach(), expected, rtol=1e-11)


@pytest.mark.parametrize(
    ("change", "cutoffs", "message"),
    [
        ({"cluster_weight": None}, CUTOFFS, "lacks 'cluster_weight'"),
        ({"cluster_bias": np.zeros(2)}, CUTOFFS, r"'cluster_bias' should have shape \(3\), but has \(2,\)"),
        ({"out_projs.2": None}, CUTOFFS, "lacks 'out_projs.2'"),
        (
            {"out_projs.2": np.zeros((12, 3))},
            CUTOFFS,
            r"'out_projs.2' should have shape \(12, 2\), but has \(12, 3\)",
        ),
        (
            {"out_projs.2": np.zeros((11, 2))},
            CUTOFFS,
            r"'out_projs.2' should have shape \(12, 2\), but has \(11, 2\)",
        ),
        (
            {"out_layers.3.bias": np.zeros(4)},
            CUTOFFS,
            r"'out_layers.3.bias' should have shape \(10,\), but has \(4,\)",
        ),
        ({"emb": np.zeros((2, 2))}, CUTOFFS, r"'emb' of shape \(2, 2\) has no place"),
        ({}, [5, 14, 21], r"cutoffs are \[5, 14, 21\], but the state_dict's shapes say \[5, 14, 20\]"),
    ],
)
def test_keys_that_do_not_fit_are_named(draw, change, cutoffs, message):
    state = {name: value for name, value in (divided(draw) | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        zipfmax.from_transformer_xl(state, cutoffs)


@pytest.mark.parametrize(
    ("cutoffs", "message"), [([], "cutoffs should be the 3 that"), ([5, 3, 9], "cutoffs should be")]
)
def test_div_val_1_needs_its_cutoffs(draw, cutoffs, message):
    with pytest.raises(ValueError, match=message):
        zipfmax.from_transformer_xl(undivided(draw, 12), cutoffs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection_bias": True}, "no place for projection_bias"),
        ({"div_value": 1.5}, "with an integer div_val"),
        ({"projection_sizes": (6, 3, 2)}, r"has \(6, 3, 2\) for div_value=2.0"),
    ],
)
def test_what_transformer_xl_cannot_hold_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        to_transformer_xl(AdaptiveLogSoftmaxWithLoss(12, 30, CUTOFFS, **({"div_value": 2.0} | options)))
