"""The layer's weights as torch.nn's own layer, and what a layer of another framework cannot hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from zipfmax.clusters import ClusterLayout

if TYPE_CHECKING:
    from zipfmax.module import AdaptiveLogSoftmaxWithLoss


def to_torch(layer: AdaptiveLogSoftmaxWithLoss) -> nn.AdaptiveLogSoftmaxWithLoss:
    """torch.nn's layer with this layer's weights, copied.

    ignore_index, reduction, absent_grads, class weights, smoothing and z-loss are not parameters, and torch's
    layer knows none of them: its loss is the mean over all rows.

    Raises:
        ValueError: the layer has tail biases, label_ranks or projection sizes that torch's cannot have.
        RuntimeError: a submodule was changed, so that its weights do not say what it computes.
    """
    target = "torch.nn.AdaptiveLogSoftmaxWithLoss"
    layer.weights()  # raises where they are not all that the layer computes with
    refuse_ranks(layer, target)
    refuse_biases(layer, target, "tail_bias", "projection_bias")
    layout = layer.layout
    plain = ClusterLayout(layout.in_features, layout.n_classes, layout.cutoffs, layout.div_value)
    if layout != plain:
        raise ValueError(
            f"{target} has projection sizes {plain.projection_sizes} for div_value={layout.div_value}, "
            f"but this layer has {layout.projection_sizes}"
        )
    device = layer.head.weight.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        module = nn.AdaptiveLogSoftmaxWithLoss(
            layer.in_features,
            layer.n_classes,
            layout.cutoffs,
            layer.div_value,
            layer.head.bias is not None,
            device=device,
            dtype=layer.head.weight.dtype,
        )
    state = layer.state_dict()
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    for theirs, mine in zip(module.parameters(), layer.parameters(), strict=True):
        theirs.requires_grad_(mine.requires_grad)
    return module.train(layer.training)


def refuse_ranks(layer: AdaptiveLogSoftmaxWithLoss, target: str) -> None:
    """Raise ValueError if the layer's labels are not its ranks: other frameworks hold no permutation."""
    if layer.label_ranks is not None:
        raise ValueError(f"{target} has no place for label_ranks; its labels would be this layer's ranks")


def refuse_biases(layer: AdaptiveLogSoftmaxWithLoss, target: str, *names: str) -> None:
    """Raise ValueError if the layer has a bias that the target lacks, whether its constructor made it or not."""
    weights = layer.weights()
    there = {
        "head_bias": weights.head_bias is not None,
        "tail_bias": any(tail.output_bias is not None for tail in weights.tails),
        "projection_bias": any(tail.projection_bias is not None for tail in weights.tails),
    }
    for name in names:
        if there[name]:
            raise ValueError(f"{target} has no place for {name}")
