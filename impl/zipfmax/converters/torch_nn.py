"""torch.nn.AdaptiveLogSoftmaxWithLoss: the same parameters under the same names."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from zipfmax.clusters import ClusterLayout
from zipfmax.converters.checkpoint import build_layer, refuse_biases, refuse_ranks
from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax.weights import TailWeights, Weights


def from_torch(module: nn.AdaptiveLogSoftmaxWithLoss, **options: Any) -> AdaptiveLogSoftmaxWithLoss:
    """The layer with torch's weights, copied: same dtype, device, training mode and frozen parameters.

    Args:
        module: torch.nn's layer.
        options: what torch's layer lacks, such as ignore_index, reduction or backend.

    Raises:
        TypeError: another kind of module.
    """
    if not isinstance(module, nn.AdaptiveLogSoftmaxWithLoss):
        raise TypeError(f"expected a torch.nn.AdaptiveLogSoftmaxWithLoss, got {type(module).__name__}")
    layout = ClusterLayout(module.in_features, module.n_classes, tuple(module.cutoffs[:-1]), module.div_value)
    tails = []
    for pair in module.tail:
        projection, output = (cast(nn.Linear, linear) for linear in cast(nn.Sequential, pair))
        tails.append(TailWeights(projection.weight, output.weight))
    layer = build_layer(layout, Weights(module.head.weight, module.head.bias, tuple(tails)), options)
    for mine, theirs in zip(layer.parameters(), module.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    return layer.train(module.training)


def to_torch(layer: AdaptiveLogSoftmaxWithLoss) -> nn.AdaptiveLogSoftmaxWithLoss:
    """torch.nn's layer with this layer's weights, copied.

    ignore_index, reduction and absent_grads are no parameters and torch's layer knows none of them: its loss
    is the mean over all rows.

    Raises:
        ValueError: the layer has tail biases, label_ranks or projection sizes that torch's cannot have.
    """
    target = "torch.nn.AdaptiveLogSoftmaxWithLoss"
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
            layer.head_bias,
            device=device,
            dtype=layer.head.weight.dtype,
        )
    module.load_state_dict(layer.state_dict())
    for theirs, mine in zip(module.parameters(), layer.parameters(), strict=True):
        theirs.requires_grad_(mine.requires_grad)
    return module.train(layer.training)
