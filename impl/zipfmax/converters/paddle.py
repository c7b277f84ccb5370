"""paddle.nn.AdaptiveLogSoftmaxWithLoss: torch's parameters, transposed, the tails in a plain list.

Paddle's `state_dict()` holds only the head, so what is converted is the layer or its arrays, never that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zipfmax.clusters import ClusterLayout
from zipfmax.converters.checkpoint import Checkpoint, Sample, build_layer, checked, to_numpy
from zipfmax.export import refuse_biases, refuse_ranks
from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax.weights import TailWeights, Weights


def from_paddle(
    source: Any, *, div_value: float = 4.0, check: Sample | None = None, **options: Any
) -> AdaptiveLogSoftmaxWithLoss:
    """The layer with Paddle's weights, copied, on the CPU.

    Args:
        source: a paddle.nn.AdaptiveLogSoftmaxWithLoss, or a mapping of arrays: head_weight
            [in_features, head_size], tail_weights, a list of pairs [in_features, hsz] and [hsz, osz], and
            head_bias [head_size] or None.
        div_value: kept in the layer as told; the projection sizes are the arrays' own. A Paddle layer's own
            div_value is taken where the source is one.
        check: a sample (hidden, log_prob) of the other layer, which this one must reproduce.
        options: the layer's other keyword arguments, such as ignore_index or backend.

    Raises:
        ValueError: arrays that are missing or do not fit each other, by name and shape; a layer that does not
            reproduce `check`.
    """
    if isinstance(source, Mapping):
        parts = dict(source)
    else:
        parts = {name: getattr(source, name) for name in ("head_weight", "tail_weights", "head_bias")}
        div_value = float(source.div_value)
    pairs = parts.pop("tail_weights", None)
    if not pairs:
        raise ValueError(
            "Paddle arrays lack 'tail_weights': Paddle's state_dict() leaves them out; pass the layer"
        )
    entries = {name: _array(part) for name, part in parts.items() if part is not None}
    for i, pair in enumerate(pairs):
        for j, part in enumerate(pair):
            entries[f"tail_weights[{i}][{j}]"] = _array(part)
    arrays = Checkpoint("Paddle arrays", entries)

    head = arrays.take("head_weight", None, None)
    in_features, head_size = head.shape
    head_bias = arrays.take("head_bias", head_size) if "head_bias" in arrays else None
    tails = []
    for i in range(len(pairs)):
        projection = arrays.take(f"tail_weights[{i}][0]", in_features, None)
        output = arrays.take(f"tail_weights[{i}][1]", projection.shape[1], None)
        tails.append(TailWeights(projection.T, output.T))
    arrays.finish()
    bounds = np.cumsum([head_size - len(tails), *(tail.output.shape[0] for tail in tails)])
    layout = ClusterLayout(
        in_features,
        int(bounds[-1]),
        tuple(int(bound) for bound in bounds[:-1]),
        div_value,
        tuple(tail.projection.shape[0] for tail in tails),
    )
    return checked(
        build_layer(layout, Weights(head.T, head_bias, tuple(tails)), options), "Paddle arrays", check
    )


def to_paddle(layer: AdaptiveLogSoftmaxWithLoss) -> dict[str, Any]:
    """This layer's weights as Paddle's arrays, copied: what `from_paddle` takes.

    They go into a Paddle layer of the same cutoffs with `set_value`: head_weight, head_bias, and both of each
    pair in tail_weights. bfloat16, which NumPy lacks, becomes float32.

    Raises:
        ValueError: the layer has biases of the tails or label_ranks, which Paddle's cannot have.
    """
    refuse_ranks(layer, "paddle.nn.AdaptiveLogSoftmaxWithLoss")
    refuse_biases(layer, "paddle.nn.AdaptiveLogSoftmaxWithLoss", "tail_bias", "projection_bias")
    weights = layer.weights()
    return {
        "head_weight": to_numpy(weights.head.T),
        "head_bias": None if weights.head_bias is None else to_numpy(weights.head_bias),
        "tail_weights": [[to_numpy(tail.projection.T), to_numpy(tail.output.T)] for tail in weights.tails],
    }


def _array(part: Any) -> Tensor:
    """A torch tensor of a Paddle tensor, a NumPy array or a torch tensor."""
    if isinstance(part, Tensor):
        return part
    return torch.from_numpy(np.array(part.numpy() if hasattr(part, "numpy") else part))
