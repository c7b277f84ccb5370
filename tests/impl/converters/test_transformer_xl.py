import importlib

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


def transformer_xls_log_prob(draw, state, in_order=False):
    """As ProjectedAdaptiveLogSoftmax scores each class: cluster i of its loop adds head_logprob[:, -i].

    HuggingFace's and the TensorFlow version add head_logprob[:, cutoffs[0] + i - 1].
    """
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
            slot = CUTOFFS[0] + i - 1 if in_order else -i
            parts.append(head[:, slot][:, None] + log_prob)
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
    layer = zipfmax.from_transformer_xl(named, CUTOFFS, variant="original", prefix=prefix)
    expected = transformer_xls_log_prob(draw, state)
    np.testing.assert_allclose(layer.log_prob(torch.from_numpy(draw.hidden)).detach(), expected, rtol=1e-11)
    assert layer.layout.cutoffs == tuple(CUTOFFS)
    assert layer.div_value == (1 if "div_val 1" in kind else 4)
    if "div_val 1" not in kind:
        inferred = zipfmax.from_transformer_xl(named, variant="original", prefix=prefix)
        assert inferred.layout == layer.layout


@pytest.mark.parametrize("variant", ["huggingface", "tensorflow"])
def test_slots_in_order_are_huggingfaces_and_the_tensorflow_versions(draw, variant):
    state = divided(draw)
    layer = zipfmax.from_transformer_xl(state, variant=variant)
    expected = transformer_xls_log_prob(draw, state, in_order=True)
    np.testing.assert_allclose(layer.log_prob(torch.from_numpy(draw.hidden)).detach(), expected, rtol=1e-11)
    assert np.abs(expected - transformer_xls_log_prob(draw, state)).max() > 1  # another function


def nvidias(state, shared=()):
    """The same weights under NVIDIA's names; projections in `shared` belong to the embedding."""
    named = {}
    for name, array in state.items():
        kind, number, *rest = [*name.split("."), "", ""]
        if kind == "out_layers":
            kind = {"weight": "out_layers_weights", "bias": "out_layers_biases"}[rest[0]]
        if kind == "out_projs" and int(number) in shared:
            kind = "shared_out_projs"
        named[f"{kind}.{number}" if number else kind] = array
    return named


@pytest.mark.parametrize("prefix", ["", "crit."])
@pytest.mark.parametrize("variant", [None, "nvidia"])
@pytest.mark.parametrize("shared", [(), (1, 2, 3), (0, 1, 2, 3)])
def test_nvidias_names_tell_the_variant_and_shared_projections_are_found(draw, variant, prefix, shared):
    state = divided(draw)
    named = nvidias(state, shared)
    if shared:  # the embedding's list is whole, whichever of it is used
        named |= {f"shared_out_projs.{i}": draw(12, 8 // 2**i) for i in range(4) if i not in shared}
    layer = zipfmax.from_transformer_xl(
        {prefix + n: a for n, a in named.items()}, variant=variant, prefix=prefix
    )
    expected = transformer_xls_log_prob(draw, state)
    np.testing.assert_allclose(layer.log_prob(torch.from_numpy(draw.hidden)).detach(), expected, rtol=1e-11)


@pytest.mark.parametrize("d_embed", [12, 10])
def test_nvidias_undivided_module_shares_one_projection(draw, d_embed):
    state = undivided(draw, d_embed)
    named = nvidias({n: a for n, a in state.items() if "out_projs" not in n})
    if d_embed != 12:
        state |= {f"out_projs.{i}": state["out_projs.0"] for i in range(4)}
        named["shared_out_projs.0"] = state["out_projs.0"]
    layer = zipfmax.from_transformer_xl(named, CUTOFFS)
    expected = transformer_xls_log_prob(draw, state)
    np.testing.assert_allclose(layer.log_prob(torch.from_numpy(draw.hidden)).detach(), expected, rtol=1e-11)


@pytest.mark.parametrize(
    ("beside", "in_order"),
    [("transformer.word_emb.emb_layers.0.weight", True), ("word_emb.emb_layers.0.weight", False)],
    ids=["huggingface", "original"],
)
@pytest.mark.parametrize("outer", ["", "module."])
def test_the_other_keys_of_a_whole_model_tell_the_variant(draw, beside, in_order, outer):
    state = divided(draw)
    model = {f"{outer}crit.{name}": array for name, array in state.items()} | {outer + beside: draw(2, 2)}
    layer = zipfmax.from_transformer_xl(model, prefix=f"{outer}crit.")
    expected = transformer_xls_log_prob(draw, state, in_order=in_order)
    np.testing.assert_allclose(layer.log_prob(torch.from_numpy(draw.hidden)).detach(), expected, rtol=1e-11)


def test_a_state_dict_that_does_not_tell_its_variant_asks():
    with pytest.raises(ValueError, match="pass variant=, one of: original, huggingface, nvidia, tensorflow"):
        zipfmax.from_transformer_xl(divided(lambda *shape: np.ones(shape)))
    with pytest.raises(ValueError, match="unknown variant 'hf'; choose one of: original, "):
        zipfmax.from_transformer_xl({}, variant="hf")


def test_one_tail_has_one_order_and_needs_no_variant(draw):
    state = {"cluster_weight": draw(1, 12), "cluster_bias": draw(1)}
    state |= {"out_layers.0.weight": draw(30, 12), "out_layers.0.bias": draw(30)}
    found = [
        zipfmax.from_transformer_xl(state, [5], **options).log_prob(torch.from_numpy(draw.hidden))
        for options in ({}, {"variant": "original"}, {"variant": "huggingface"})
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_sample_refuses_the_wrong_variant(draw):
    state = divided(draw)
    sample = (draw.hidden, transformer_xls_log_prob(draw, state, in_order=True))
    zipfmax.from_transformer_xl(state, variant="huggingface", check=sample)
    with pytest.raises(
        ValueError, match=r"as variant 'original': the converted layer's log_prob differs .* nats"
    ):
        zipfmax.from_transformer_xl(state, variant="original", check=sample)


def test_huggingfaces_own_module_gives_the_same_log_prob():
    """transformers had it until 4.35, and as a deprecated model until 4.4x."""
    name = "transformers.models{}.transfo_xl.modeling_transfo_xl_utilities"
    for path in (name.format(""), name.format(".deprecated")):
        try:
            module = importlib.import_module(path)
        except ImportError:
            continue
        break
    else:
        pytest.skip("transformers with Transformer-XL is not installed")
    torch.manual_seed(0)
    theirs = module.ProjectedAdaptiveLogSoftmax(30, 8, 12, CUTOFFS, div_val=2)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(9, 12)
    with torch.no_grad():
        sample = (hidden, theirs(hidden))
    zipfmax.from_transformer_xl(theirs.state_dict(), variant="huggingface", check=sample)


@pytest.mark.parametrize("variant", ["original", "huggingface", "nvidia", "tensorflow"])
@pytest.mark.parametrize("div_value", [1, 2.0])
@pytest.mark.parametrize("biases", [False, True])
def test_our_layer_gives_the_same_function_there(draw, div_value, biases, variant):
    layer = AdaptiveLogSoftmaxWithLoss(
        12, 30, CUTOFFS, div_value, biases, dtype=torch.float64, tail_bias=biases
    )
    state = to_transformer_xl(layer, variant=variant)
    expected = layer.log_prob(torch.from_numpy(draw.hidden)).detach().numpy()
    template = undivided(draw, 12) if div_value == 1 else divided(draw, 12)
    names = dict(zip(nvidias(template), template, strict=True)) if variant == "nvidia" else {}
    arrays = {names.get(name, name): tensor.numpy() for name, tensor in state.items()}
    in_order = variant in ("huggingface", "tensorflow")
    np.testing.assert_allclose(transformer_xls_log_prob(draw, arrays, in_order), expected, rtol=1e-11)
    assert {name: array.shape for name, array in arrays.items()} == {n: a.shape for n, a in template.items()}
    again = zipfmax.from_transformer_xl(state, CUTOFFS, variant=variant, div_val=div_value)
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
        zipfmax.from_transformer_xl(state, cutoffs, variant="original")


@pytest.mark.parametrize(
    ("cutoffs", "message"), [([], "cutoffs should be the 3 that"), ([5, 3, 9], "cutoffs should be")]
)
def test_div_val_1_needs_its_cutoffs(draw, cutoffs, message):
    with pytest.raises(ValueError, match=message):
        zipfmax.from_transformer_xl(undivided(draw, 12), cutoffs, variant="original")


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
        to_transformer_xl(
            AdaptiveLogSoftmaxWithLoss(12, 30, CUTOFFS, **({"div_value": 2.0} | options)), variant="original"
        )
