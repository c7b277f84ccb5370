"""What every converter does: read named arrays with one clear error, and build a layer from weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zipfmax.clusters import ClusterLayout
from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax.weights import Weights


class Checkpoint:
    """Named tensors of another framework, each taken once and checked as it is taken.

    Args:
        source: how errors call it, such as "fairseq state_dict".
        entries: names to tensors or NumPy arrays.
        prefix: only names that start with it are looked at, without it.
    """

    def __init__(self, source: str, entries: Mapping[str, Any], prefix: str = "") -> None:
        self.source = source
        self.prefix = prefix
        self._left = {
            name[len(prefix) :]: entry for name, entry in entries.items() if name.startswith(prefix)
        }
        if not self._left:
            raise ValueError(
                f"{source} has no key that starts with {prefix!r}" if prefix else f"{source} is empty"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The tensor of that name; None in `shape` allows any size there.

        Raises:
            ValueError: no such key, or another shape.
        """
        if name not in self._left:
            raise ValueError(f"{self.source} lacks {self.prefix + name!r}")
        tensor = torch.as_tensor(self._left.pop(name)).detach()
        fits = tensor.dim() == len(shape) and all(
            size is None or size == found for size, found in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("*" if size is None else str(size) for size in shape)
            raise ValueError(
                f"{self.source}: {self.prefix + name!r} should have shape ({wanted}), "
                f"but has {tuple(tensor.shape)}"
            )
        return tensor

    def drop(self, *names: str) -> None:
        """Leave these aside: they hold no weight."""
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Raise ValueError if a key was not taken: nobody knows what it means."""
        if self._left:
            name, entry = next(iter(self._left.items()))
            raise ValueError(
                f"{self.source}: {self.prefix + name!r} of shape {tuple(entry.shape)} "
                "has no place in the layer"
            )


def build_layer(
    layout: ClusterLayout, weights: Weights, options: Mapping[str, Any]
) -> AdaptiveLogSoftmaxWithLoss:
    """A layer of that partition holding a copy of the weights, in their dtype and on their device.

    Args:
        layout: the partition.
        weights: as the layout shapes them; biases that are None are left out, in all tails alike.
        options: the layer's other keyword arguments.

    Raises:
        ValueError: biases in some tails only.
    """
    for name, biases in (
        ("projection", [tail.projection_bias for tail in weights.tails]),
        ("output", [tail.output_bias for tail in weights.tails]),
    ):
        if len({bias is None for bias in biases}) > 1:
            raise ValueError(
                f"some tails have a bias of the {name} and others have none; the layer has all or none"
            )
    # The initial weights are overwritten: keep them out of the caller's random numbers.
    device = weights.head.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        layer = AdaptiveLogSoftmaxWithLoss(
            layout.in_features,
            layout.n_classes,
            layout.cutoffs,
            layout.div_value,
            head_bias=weights.head_bias is not None,
            dtype=weights.head.dtype,
            device=device,
            tail_bias=weights.tails[0].output_bias is not None,
            projection_bias=weights.tails[0].projection_bias is not None,
            projection_sizes=layout.projection_sizes,
            **options,
        )
    with torch.no_grad():
        for parameter, tensor in zip(layer.weights().tensors(), weights.tensors(), strict=True):
            parameter.copy_(tensor)
    return layer


Sample = tuple[Any, Any]
"""hidden [N, in_features] and its log_prob [N, n_classes] in the other framework, tensors or arrays."""

# Of a log-probability, relative to it and at least in nats: far above rounding, far below a wrong weight.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


def checked(
    layer: AdaptiveLogSoftmaxWithLoss, source: str, sample: Sample | None
) -> AdaptiveLogSoftmaxWithLoss:
    """The layer, if its log_prob of the sample's hidden states is the sample's, or if there is no sample.

    Raises:
        ValueError: it is not, or the sample's shapes do not fit.
    """
    if sample is None:
        return layer
    weight = next(layer.parameters())
    hidden, expected = (torch.as_tensor(part, device=weight.device).detach() for part in sample)
    was_training = layer.training
    with torch.no_grad():
        found = layer.eval().log_prob(hidden.to(weight.dtype))
    layer.train(was_training)
    if found.shape != expected.shape:
        raise ValueError(
            f"check: log_prob should be of size {tuple(found.shape)} for hidden of size "
            f"{tuple(hidden.shape)}, but is of size {tuple(expected.shape)}"
        )
    difference = (found.double() - expected.double()).abs()
    tolerance = max(_TOLERANCE.get(dtype, 5e-2) for dtype in (weight.dtype, expected.dtype))
    allowed = tolerance * expected.double().abs().clamp(min=1)
    same_infinity = (found == expected) & found.isinf()
    if not ((difference <= allowed) | same_infinity).all():
        worst = difference[~same_infinity].nan_to_num(nan=torch.inf).max().item()
        raise ValueError(
            f"{source}: the converted layer's log_prob differs from the sample's by up to {worst:.3g} nats; "
            "the weights are of another variant than was told, or the sample is of other weights"
        )
    return layer


def to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """A contiguous copy on the host; bfloat16, which NumPy lacks, becomes float32."""
    tensor = tensor.detach().cpu()
    array: npt.NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return np.array(array, order="C")
