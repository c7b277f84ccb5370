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
        TypeError: another kind of module, or options that torch's module has already.
        ValueError: the module itself has hooks or methods of its own, or computes with biases in some tails
            only; or the layer does not reproduce `check`.
    """
    if not isinstance(module, nn.AdaptiveLogSoftmaxWithLoss):
        raise TypeError(f"expected a torch.nn.AdaptiveLogSoftmaxWithLoss, got {type(module).__name__}")
    if isinstance(module, AdaptiveLogSoftmaxWithLoss):
        raise TypeError("the module is zipfmax's already, with options that torch's lacks; copy.deepcopy it")
    _refuse_changes(module)
    for name in ("device", "dtype", "head_bias", "tail_bias", "projection_bias", "projection_sizes"):
        if name in options:
            raise TypeError(f"from_torch() takes {name} from the module, and no argument of that name")
    layout = ClusterLayout(module.in_features, module.n_classes, tuple(module.cutoffs[:-1]), module.div_value)
    read = plain_weights(module, layout)
    if isinstance(read, Replaced):
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
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
    theirs = dict(module.named_parameters(remove_duplicate=False))
    for name, mine in layer.named_parameters(remove_duplicate=False):
        mine.requires_grad_(theirs[name].requires_grad)
    return checked(layer.train(module.training), "torch.nn.AdaptiveLogSoftmaxWithLoss", check)


_METHODS = ("forward", "log_prob", "predict", "_get_full_log_prob", "__call__")


def _refuse_changes(module: nn.AdaptiveLogSoftmaxWithLoss) -> None:
    """Raise ValueError where the module, not one of its submodules, computes something of its own."""
    for name in _METHODS:
        if getattr(type(module), name) is not getattr(nn.AdaptiveLogSoftmaxWithLoss, name) or name in vars(
            module
        ):
            raise ValueError(f"the module has a {name} of its own, which its weights do not say")
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        raise ValueError("the module has hooks of its own; register them on the layer after the conversion")
