"""torch.nn.AdaptiveLogSoftmaxWithLoss: the same parameters under the same names."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from zipfmax.clusters import ClusterLayout
from zipfmax.converters.checkpoint import Sample, build_layer, checked
from zipfmax.export import to_torch
from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax.submodules import Replaced, plain_weights

__all__ = ["from_torch", "to_torch"]


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
