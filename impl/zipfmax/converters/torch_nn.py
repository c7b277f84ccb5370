"""torch.nn.AdaptiveLogSoftmaxWithLoss: the same parameters under the same names."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from zipfmax.clusters import ClusterLayout
from zipfmax.converters.checkpoint import Sample, build_layer, checked, refuse_biases, refuse_ranks
from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax.submodules import Replaced, plain_weights


def from_torch(
    module: nn.AdaptiveLogSoftmaxWithLoss, *, check: Sample | None = None, **options: Any
) -> AdaptiveLogSoftmaxWithLoss:
    """The layer with torch's weights, copied: same dtype, device, training mode and frozen parameters.

    Submodules that are not what torch's constructor made (adapters, hooks, other classes) are copied whole,
    and the layer computes through them.

    Args:
        module: torch.nn's layer.
        check: a sample (hidden, log_prob) of the module, which the layer must reproduce.
        options: what torch's layer lacks, such as ignore_index, reduction or backend.

    Raises:
        TypeError: another kind of module.
        ValueError: the layer does not reproduce `check`.
    """
    if not isinstance(module, nn.AdaptiveLogSoftmaxWithLoss):
        raise TypeError(f"expected a torch.nn.AdaptiveLogSoftmaxWithLoss, got {type(module).__name__}")
    if isinstance(module, AdaptiveLogSoftmaxWithLoss):
        raise TypeError("the module is zipfmax's already, with options that torch's lacks; copy.deepcopy it")
    layout = ClusterLayout(module.in_features, module.n_classes, tuple(module.cutoffs[:-1]), module.div_value)
    read = plain_weights(module, layout)
    if isinstance(read, Replaced):
        device = next(module.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            layer = AdaptiveLogSoftmaxWithLoss(
                layout.in_features,
                layout.n_classes,
                layout.cutoffs,
                layout.div_value,
                head_bias=module.head_bias,
                device=device,
                **options,
            )
        layer.head, layer.tail = deepcopy(module.head), deepcopy(module.tail)
    else:
        layer = build_layer(layout, read, options)
    for mine, theirs in zip(layer.parameters(), module.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    return checked(layer.train(module.training), "torch.nn.AdaptiveLogSoftmaxWithLoss", check)


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
            layer.head_bias,
            device=device,
            dtype=layer.head.weight.dtype,
        )
    state = layer.state_dict()
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    for theirs, mine in zip(module.parameters(), layer.parameters(), strict=True):
        theirs.requires_grad_(mine.requires_grad)
    return module.train(layer.training)
