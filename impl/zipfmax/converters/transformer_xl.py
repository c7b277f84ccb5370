"""Transformer-XL's ProjectedAdaptiveLogSoftmax, by its state_dict, in its four variants.

out_projs[i] [d_proj, d_emb_i] and out_layers[i] (weight and bias) score part i, part 0 being the shortlist,
so the head is projected too; cluster_weight and cluster_bias hold the slots. With div_val = 1 there is one
out_layers[0] for all parts, and no projection where d_proj = d_embed.

The variants differ in which row of them scores tail i of n:

- original (kimiyoung/transformer-xl, pytorch/utils/proj_adaptive_softmax.py): row n - 1 - i.
- nvidia (NVIDIA/DeepLearningExamples, the file of that name): row n - 1 - i. The parameters are named
  out_layers_weights[i] and out_layers_biases[i], and a tied projection is in shared_out_projs.
- huggingface (transformers 4.30.2, modeling_transfo_xl_utilities.py, the loss and log_prob of its forward):
  row i.
- tensorflow (kimiyoung/transformer-xl, tf/model.py), its weights under the names above: row i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from zipfmax.clusters import ClusterLayout
from zipfmax.converters.checkpoint import Checkpoint, Sample, build_layer, checked
from zipfmax.errors import unknown
from zipfmax.export import refuse_biases, refuse_ranks
from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax.weights import TailWeights, Weights

Variant = Literal["original", "huggingface", "nvidia", "tensorflow"]
VARIANTS = ("original", "huggingface", "nvidia", "tensorflow")
_REVERSED = ("original", "nvidia")


def from_transformer_xl(
    state_dict: Mapping[str, Any],
    cutoffs: Sequence[int] = (),
    *,
    variant: Variant | None = None,
    prefix: str = "",
    div_val: float | None = None,
    check: Sample | None = None,
    **options: Any,
) -> AdaptiveLogSoftmaxWithLoss:
    """The layer with Transformer-XL's weights, copied; the head's projection is multiplied into the head.

    Transformer-XL returns each row's loss in an order permuted by cluster unless keep_order=True; this layer
    keeps the order.

    Args:
        state_dict: of the module, or of a model with `prefix`, such as "crit.".
        cutoffs: needed for div_val = 1, where the shapes do not tell; otherwise checked where given.
        variant: whose module it is, which decides the order of the slots. Needed where the state_dict does
            not tell: NVIDIA's has names of its own, a whole model's other keys tell the original from
            HuggingFace's, and a single tail has one order.
        prefix: what the keys start with.
        div_val: kept in the layer as div_value; the projection sizes are the weights' own. By default 1 for a
            state_dict of div_val = 1, else 4.
        check: a sample (hidden, log_prob) of the other layer, which this one must reproduce.
        options: the layer's other keyword arguments, such as ignore_index or backend.

    Raises:
        ValueError: a key that is missing, unknown or of a shape that does not fit, by name and shape; cutoffs
            that are missing or contradict the shapes; a variant that is unknown, or not told where it is
            needed; a layer that does not reproduce `check`.
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(unknown("variant", variant, VARIANTS))
    entries = Checkpoint("Transformer-XL state_dict", state_dict, prefix)
    found = _variant_told(entries, state_dict, prefix)
    if variant == "nvidia" or (variant is None and found == "nvidia"):
        entries = Checkpoint(entries.source, _with_original_names(state_dict, prefix), prefix)
    slots = entries.take("cluster_weight", None, None)
    n_tails, d_embed = slots.shape
    slot_bias = entries.take("cluster_bias", n_tails)
    variant = variant or found
    if variant is None and n_tails > 1:
        raise ValueError(
            "Transformer-XL state_dict does not tell whose module it is, and so whether its "
            f"{n_tails} cluster slots are in reversed order: pass variant=, one of: {', '.join(VARIANTS)}"
        )
    if variant in _REVERSED:
        slots, slot_bias = slots.flip(0), slot_bias.flip(0)

    shared = "out_layers.1.weight" not in entries
    sizes = [d_embed if i == 0 or shared else None for i in range(n_tails + 1)]
    if shared:
        parts = _split(entries, cutoffs, n_tails, d_embed)
    else:
        parts = [
            (
                entries.take(f"out_layers.{i}.weight", None, sizes[i]),
                entries.take(f"out_layers.{i}.bias", None),
            )
            for i in range(n_tails + 1)
        ]
    if shared and "out_projs.0" not in entries:
        identity = torch.eye(d_embed, dtype=slots.dtype, device=slots.device)
        projections = [identity] * (n_tails + 1)
    else:
        projections = [entries.take("out_projs.0", None, d_embed)]
        for i, (weight, _) in enumerate(parts[1:], start=1):
            projections.append(entries.take(f"out_projs.{i}", projections[0].shape[0], weight.shape[1]))
    entries.finish()

    bounds = [0]
    for weight, bias in parts:
        if weight.shape[0] != bias.shape[0]:
            raise ValueError(
                f"Transformer-XL state_dict: {f'{prefix}out_layers.{len(bounds) - 1}.bias'!r} should have "
                f"shape ({weight.shape[0]},), but has {tuple(bias.shape)}"
            )
        bounds.append(bounds[-1] + weight.shape[0])
    if len(cutoffs) > 0 and list(cutoffs) != bounds[1:-1]:
        raise ValueError(f"cutoffs are {list(cutoffs)}, but the state_dict's shapes say {bounds[1:-1]}")

    head = torch.cat([parts[0][0], slots]) @ projections[0].T
    head_bias = torch.cat([parts[0][1], slot_bias])
    tails = tuple(
        TailWeights(projection.T, weight, None, bias)
        for (weight, bias), projection in zip(parts[1:], projections[1:], strict=True)
    )
    layout = ClusterLayout(
        projections[0].shape[0],
        bounds[-1],
        tuple(bounds[1:-1]),
        div_val if div_val is not None else (1 if shared else 4),
        tuple(weight.shape[1] for weight, _ in parts[1:]),
    )
    layer = build_layer(layout, Weights(head, head_bias, tails), options)
    return checked(layer, f"Transformer-XL state_dict as variant {variant!r}", check)


def to_transformer_xl(
    layer: AdaptiveLogSoftmaxWithLoss, *, variant: Variant, prefix: str = ""
) -> dict[str, Tensor]:
    """This layer's weights as the state_dict of a ProjectedAdaptiveLogSoftmax, copied.

    The module is that of d_embed = d_proj = in_features and div_val = div_value: its head projection is the
    identity, its absent biases zero. With div_value = 1 that module has no projections: they are multiplied
    into the output weights.

    Args:
        layer: this layer.
        variant: whose module it is for, which decides the order of the slots and the names.
        prefix: what the keys shall start with.

    Raises:
        ValueError: the layer has projection_bias, label_ranks, or projection sizes that are not
            in_features // div_value**i; an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(unknown("variant", variant, VARIANTS))
    refuse_ranks(layer, "Transformer-XL's layer")
    refuse_biases(layer, "Transformer-XL's layer", "projection_bias")
    layout, weights = layer.layout, layer.weights().map(lambda tensor: tensor.detach().clone())
    plain = ClusterLayout(layout.in_features, layout.n_classes, layout.cutoffs, layout.div_value)
    if layout != plain or layout.div_value != int(layout.div_value):
        raise ValueError(
            f"Transformer-XL's layer has projections of in_features // div_val**i with an integer div_val, "
            f"but this layer has {layout.projection_sizes} for div_value={layout.div_value}"
        )
    shortlist = layout.shortlist_size
    zeros = weights.head.new_zeros
    head_bias = zeros(layout.head_size) if weights.head_bias is None else weights.head_bias
    slots, slot_bias = weights.head[shortlist:], head_bias[shortlist:]
    if variant in _REVERSED:
        slots, slot_bias = slots.flip(0), slot_bias.flip(0)
    state = {"cluster_weight": slots, "cluster_bias": slot_bias}
    outputs = [weights.head[:shortlist], *(tail.output for tail in weights.tails)]
    biases = [head_bias[:shortlist]]
    for tail in weights.tails:
        biases.append(zeros(tail.output.shape[0]) if tail.output_bias is None else tail.output_bias)
    if layout.div_value == 1:
        folded = [outputs[0], *(tail.output @ tail.projection for tail in weights.tails)]
        state |= {"out_layers.0.weight": torch.cat(folded), "out_layers.0.bias": torch.cat(biases)}
    else:
        identity = torch.eye(layout.in_features, dtype=weights.head.dtype, device=weights.head.device)
        projections = [identity, *(tail.projection.T.contiguous() for tail in weights.tails)]
        for i, (output, bias, projection) in enumerate(zip(outputs, biases, projections, strict=True)):
            state |= {f"out_layers.{i}.weight": output, f"out_layers.{i}.bias": bias}
            state[f"out_projs.{i}"] = projection
    if variant == "nvidia":
        state = {_nvidia_name(name): tensor for name, tensor in state.items()}
    return {prefix + name: tensor for name, tensor in state.items()}


def _variant_told(entries: Checkpoint, state_dict: Mapping[str, Any], prefix: str) -> Variant | None:
    """The variant, where the keys tell: NVIDIA's parameters, or what a whole model holds beside the layer."""
    if "out_layers_weights.0" in entries:
        return "nvidia"
    model = prefix.removesuffix(".").rpartition(".")[0]
    model = f"{model}." if model else ""
    others = [name.removeprefix(model) for name in state_dict if not name.startswith(prefix or "\0")]
    if prefix and any(name.startswith("transformer.word_emb.") for name in others):
        return "huggingface"
    if prefix and any(name.startswith("word_emb.emb_layers.") for name in others):
        return "original"
    return None


def _nvidia_name(name: str) -> str:
    """NVIDIA's name of a parameter that the original calls `name`."""
    kind, *rest = name.split(".")
    if kind != "out_layers":
        return name
    number, part = rest
    return f"out_layers_{'weights' if part == 'weight' else 'biases'}.{number}"


def _with_original_names(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """NVIDIA's parameters under the original's names, and with them what is shared with the embedding."""
    named = {name: part for name, part in state_dict.items() if name.startswith(prefix)}
    shared = {
        name[len(prefix + "shared_out_projs.") :]: named.pop(name)
        for name in list(named)
        if name.startswith(prefix + "shared_out_projs.")
    }
    weights = [name for name in named if name.startswith(prefix + "out_layers_weights.")]
    biases = [name for name in named if name.startswith(prefix + "out_layers_biases.")]
    n_parts = named[prefix + "cluster_weight"].shape[0] + 1 if prefix + "cluster_weight" in named else 0
    for name in weights:
        named[f"{prefix}out_layers.{name.rpartition('.')[2]}.weight"] = named.pop(name)
    for name in biases:
        named[f"{prefix}out_layers.{name.rpartition('.')[2]}.bias"] = named.pop(name)
    for i in range(n_parts if shared else 0):
        part = next(iter(shared.values())) if len(shared) == 1 else shared.get(str(i))
        if part is not None:
            named.setdefault(f"{prefix}out_projs.{i}", part)
    return named


def _split(
    entries: Checkpoint, cutoffs: Sequence[int], n_tails: int, d_embed: int
) -> list[tuple[Tensor, Tensor]]:
    """The parts of the one output layer that div_val = 1 has."""
    if len(cutoffs) != n_tails:
        raise ValueError(
            f"cutoffs should be the {n_tails} that the model was built with, since a state_dict of "
            f"div_val = 1 does not tell them, got {list(cutoffs)}"
        )
    weight = entries.take("out_layers.0.weight", None, d_embed)
    bias = entries.take("out_layers.0.bias", weight.shape[0])
    # Its constructor checks the cutoffs.
    bounds = ClusterLayout(d_embed, weight.shape[0], tuple(cutoffs)).bounds
    sizes = [stop - start for start, stop in pairwise(bounds)]
    return list(zip(torch.split(weight, sizes), torch.split(bias, sizes), strict=True))
