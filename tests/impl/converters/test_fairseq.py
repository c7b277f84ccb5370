import numpy as np
import pytest
import torch

import zipfmax
from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.converters import to_fairseq

# in_features 12, cutoffs 5 and 14 of 30, factor 2
TAILS = ((9, 6), (16, 3))


def untied(draw):
    state = {"version": np.array([1]), "head.weight": draw(7, 12)}
    for i, (size, width) in enumerate(TAILS):
        state |= {f"tail.{i}.0.weight": draw(width, 12), f"tail.{i}.2.weight": draw(size, width)}
    return state


def tied(draw, head_projected=False):
    """With an adaptive input: the head in two modules, the projections tied and so transposed."""
    state = {"version": np.array([1]), "head._float_tensor": draw(1), "head.class_proj.weight": draw(2, 12)}
    if head_projected:
        state |= {"head.word_proj.0.weight": draw(10, 12), "head.word_proj.1.weight": draw(5, 10)}
    else:
        state["head.word_proj.weight"] = draw(5, 12)
    for i, (size, width) in enumerate(TAILS):
        state |= {f"tail.{i}.0.weight": draw(12, width), f"tail.{i}.2.weight": draw(size, width)}
    return state


def fairseqs_log_prob(draw, state, projections_tied=False):
    """fairseq's get_log_prob: head, then each tail's log-softmax plus the prior of its slot."""
    x = draw.hidden
    if "head.weight" in state:
        logits = x @ state["head.weight"].T
    else:
        words = x
        for name in ("head.word_proj.0.weight", "head.word_proj.1.weight", "head.word_proj.weight"):
            if name in state:
                words = words @ state[name].T
        logits = np.concatenate([words, x @ state["head.class_proj.weight"].T], axis=1)
    head = draw.log_softmax(logits)
    parts = [head[:, :5]]
    for i in range(2):
        projection = state[f"tail.{i}.0.weight"]
        projected = x @ (projection if projections_tied else projection.T)
        parts.append(draw.log_softmax(projected @ state[f"tail.{i}.2.weight"].T) + head[:, 5 + i, None])
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("prefix", ["", "decoder.adaptive_softmax."])
def test_an_untied_state_dict_gives_fairseqs_log_prob_both_ways(draw, prefix):
    state = untied(draw)
    others = {"decoder.embed.weight": draw(3, 3)} if prefix else {}
    layer = zipfmax.from_fairseq(
        {prefix + name: v for name, v in state.items()} | others, prefix=prefix, div_value=2.0
    )
    expected = fairseqs_log_prob(draw, state)
    np.testing.assert_allclose(layer.log_prob(torch.from_numpy(draw.hidden)).detach(), expected, rtol=1e-12)
    assert layer.layout == zipfmax.ClusterLayout(12, 30, (5, 14), 2.0)
    back = to_fairseq(layer, prefix=prefix)
    assert back.keys() == {prefix + name for name in state}
    plain = {name.removeprefix(prefix): tensor.numpy() for name, tensor in back.items()}
    np.testing.assert_allclose(fairseqs_log_prob(draw, plain), expected, rtol=1e-12)


@pytest.mark.parametrize("head_projected", [False, True])
def test_a_tied_state_dict_gives_fairseqs_log_prob(draw, head_projected):
    state = tied(draw, head_projected)
    layer = zipfmax.from_fairseq(state)
    expected = fairseqs_log_prob(draw, state, projections_tied=True)
    np.testing.assert_allclose(
        layer.log_prob(torch.from_numpy(draw.hidden)).detach(), expected, rtol=1e-10, atol=1e-13
    )


@pytest.mark.parametrize("told", [None, False, True])
def test_a_square_projection_of_an_untied_head_is_untied_whatever_is_told(draw, told):
    """fairseq ignores tie_adaptive_proj without adaptive inputs."""
    state = untied(draw) | {"tail.0.0.weight": draw(12, 12), "tail.0.2.weight": draw(9, 12)}
    layer = zipfmax.from_fairseq(state, tied_projections=told)
    expected = fairseqs_log_prob(draw, state, projections_tied=False)
    np.testing.assert_allclose(layer.log_prob(torch.from_numpy(draw.hidden)).detach(), expected, rtol=1e-12)


@pytest.mark.parametrize("projections_tied", [False, True])
def test_a_square_projection_of_a_tied_head_is_read_as_told_or_asked_for(draw, projections_tied):
    state = tied(draw) | {"tail.0.0.weight": draw(12, 12), "tail.0.2.weight": draw(9, 12)}
    if not projections_tied:
        state["tail.1.0.weight"] = state["tail.1.0.weight"].T
    layer = zipfmax.from_fairseq(state, tied_projections=projections_tied)
    expected = fairseqs_log_prob(draw, state, projections_tied)
    np.testing.assert_allclose(layer.log_prob(torch.from_numpy(draw.hidden)).detach(), expected, rtol=1e-12)
    with pytest.raises(ValueError, match=r"'tail.0.0.weight' is square, .*: pass tied_projections"):
        zipfmax.from_fairseq(state)
    with pytest.raises(ValueError, match=r"fairseq state_dict: the converted layer's log_prob differs"):
        zipfmax.from_fairseq(state, tied_projections=not projections_tied, check=(draw.hidden, expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": None}, "lacks 'version': it is of a version no longer supported"),
        ({"head.weight": None}, "lacks 'head.class_proj.weight'"),
        ({"tail.0.2.weight": None}, "lacks 'tail.0.2.weight'"),
        ({"tail.1.0.weight": None}, "lacks 'tail.1.0.weight'"),
        (
            {"tail.1.0.weight": np.zeros((4, 12))},
            r"'tail.1.0.weight' should have shape \(3, 12\), but has \(4, 12\)",
        ),
        ({"tail.0.2.weight": np.zeros(9)}, r"'tail.0.2.weight' should have shape \(\*, \*\), but has \(9,\)"),
        ({"tail.0.2.bias": np.zeros(9)}, r"'tail.0.2.bias' of shape \(9,\) has no place"),
    ],
)
def test_keys_that_do_not_fit_are_named(draw, change, message):
    state = {name: value for name, value in (untied(draw) | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        zipfmax.from_fairseq(state)


def test_slots_that_do_not_match_the_tails_are_named(draw):
    with pytest.raises(ValueError, match=r"'head.class_proj.weight' has 3 slots for 2 tails"):
        zipfmax.from_fairseq(tied(draw) | {"head.class_proj.weight": draw(3, 12)})


def test_a_prefix_without_keys_is_named(draw):
    with pytest.raises(ValueError, match=r"fairseq state_dict has no key that starts with 'decoder\.'"):
        zipfmax.from_fairseq(untied(draw), prefix="decoder.")


@pytest.mark.parametrize("bias", ["head_bias", "tail_bias", "projection_bias"])
def test_what_fairseq_cannot_hold_is_refused(bias):
    with pytest.raises(ValueError, match=f"fairseq's AdaptiveSoftmax has no place for {bias}"):
        to_fairseq(AdaptiveLogSoftmaxWithLoss(12, 30, [5, 14], 2.0, **{bias: True}))
