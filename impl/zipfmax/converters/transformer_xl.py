"""Transformer-XL's ProjectedAdaptiveLogSoftmax, by its state_dict.

out_projs[i] [d_proj, d_emb_i] and out_layers[i] (weight and bias) score part i, part 0 being the shortlist,
so the head is projected too; cluster_weight and cluster_bias hold the slots, in reversed order: tail i of n
is scored by row n - 1 - i. With div_val = 1 there is one out_layers[0] for all parts, and no projection where
d_proj = d_embed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from zipfmax.clusters import ClusterLayout
from zipfmax.converters.checkpoint import Checkpoint, build_layer, refuse_biases, refuse_ranks
from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax.weights import TailWeights, Weights


def from_transformer_xl(
    state_dict: Mapping[str, Any],
    cutoffs: Sequence[int] = (),
    *,
    prefix: str = "",
    div_val: float | None = None,
    reversed_slots: bool = True,
    **options: Any,
) -> AdaptiveLogSoftmaxWithLoss:
    """The layer with Transformer-XL's weights, copied; the head's projection is multiplied into the head.

    Transformer-XL returns each row's loss in an order permuted by cluster unless keep_order=True; this layer
    keeps the order.

    Args:
        state_dict: of the PyTorch module, or of a model with `prefix`, such as "crit.".
        cutoffs: needed for div_val = 1, where the shapes do not tell; otherwise checked where given.
        prefix: what the keys start with.
        div_val: kept in the layer as div_value; the projection sizes are the weights' own. By default 1 for a
            state_dict of div_val = 1, else 4.
        reversed_slots: False for weights of the TensorFlow version, whose slots are in order.
        options: the layer's other keyword arguments, such as ignore_index or backend.

    Raises:
        ValueError: a key that is missing, unknown or of a shape that does not fit, by name and shape; cutoffs
            that are missing or contradict the shapes.
    """
    entries = Checkpoint("Transformer-XL state_dict", state_dict, prefix)
    slots = entries.take("cluster_weight", None, None)
    n_tails, d_embed = slots.shape
    slot_bias = entries.take("cluster_bias", n_tails)
    if reversed_slots:
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
    return build_layer(layout, Weights(head, head_bias, tails), options)


def to_transformer_xl(layer: AdaptiveLogSoftmaxWithLoss, *, prefix: str = "") -> dict[str, Tensor]:
    """This layer's weights as the state_dict of a ProjectedAdaptiveLogSoftmax, copied.

    The module is that of d_embed = d_proj = in_features and div_val = div_value: its head projection is the
    identity, its absent biases zero. With div_value = 1 that module has no projections: they are multiplied
    into the output weights.

    Raises:
        ValueError: the layer has projection_bias, label_ranks, or projection sizes that are not
            in_features // div_value**i.
    """
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
    state = {
        "cluster_weight": weights.head[shortlist:].flip(0),
        "cluster_bias": head_bias[shortlist:].flip(0),
    }
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
    return {prefix + name: tensor for name, tensor in state.items()}


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
