"""The TensorFlow 2 layer of PAR-Transformer-XL, by its weights in Keras's order.

Every Dense of it has a bias: the head, and each tail's projection and output. Kernels are [in, out]. Its
projections have size max(hidden // factor**i, 1), so none is ever 0; its slots are in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zipfmax.clusters import ClusterLayout
from zipfmax.converters.checkpoint import Checkpoint, Sample, build_layer, checked, to_numpy
from zipfmax.export import refuse_ranks
from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax.weights import TailWeights, Weights


def from_par_transformer_xl(
    weights: Sequence[Any] | Any,
    *,
    div_value: float = 4.0,
    check: Sample | None = None,
    **options: Any,
) -> AdaptiveLogSoftmaxWithLoss:
    """The layer with PAR-Transformer-XL's weights, copied, on the CPU.

    Its padding rule stays behind: it takes label 0 for padding, sets the loss there to 0 and still counts the
    row in the mean. `ignore_index=0` is the nearest: it does not count the row.

    Args:
        weights: the Keras layer, once built, or what its get_weights() gives: the head's kernel and bias,
            then for each tail the projection's kernel and bias and the output's kernel and bias.
        div_value: its proj_factor, kept in the layer as told; the projection sizes are the arrays' own.
        check: a sample (hidden, log_prob) of the other layer, which this one must reproduce.
        options: the layer's other keyword arguments, such as reduction or backend.

    Raises:
        ValueError: arrays that are missing or do not fit each other, by position and shape; a layer that does
            not reproduce `check`.
    """
    if hasattr(weights, "get_weights"):
        weights = weights.get_weights()
    arrays = [np.asarray(array) for array in weights]
    n_tails, rest = divmod(len(arrays) - 2, 4)
    if n_tails < 1 or rest:
        raise ValueError(
            f"PAR-Transformer-XL weights should be 2 arrays of the head and 4 of each tail, got {len(arrays)}"
        )
    entries = Checkpoint(
        "PAR-Transformer-XL weights",
        {f"[{i}]": torch.from_numpy(np.array(array)) for i, array in enumerate(arrays)},
    )
    head = entries.take("[0]", None, None)
    in_features, head_size = head.shape
    head_bias = entries.take("[1]", head_size)
    tails = []
    for first in range(2, len(arrays), 4):
        projection = entries.take(f"[{first}]", in_features, None)
        projection_bias = entries.take(f"[{first + 1}]", projection.shape[1])
        output = entries.take(f"[{first + 2}]", projection.shape[1], None)
        output_bias = entries.take(f"[{first + 3}]", output.shape[1])
        tails.append(TailWeights(projection.T, output.T, projection_bias, output_bias))

    cutoffs = [head_size - n_tails]
    for tail in tails:
        cutoffs.append(cutoffs[-1] + tail.output.shape[0])
    sizes = tuple(tail.projection.shape[0] for tail in tails)
    layout = ClusterLayout(in_features, cutoffs[-1], tuple(cutoffs[:-1]), div_value, sizes)
    return checked(
        build_layer(layout, Weights(head.T, head_bias, tuple(tails)), options),
        "PAR-Transformer-XL weights",
        check,
    )


def to_par_transformer_xl(layer: AdaptiveLogSoftmaxWithLoss) -> list[npt.NDArray[Any]]:
    """This layer's weights in the order of the Keras layer's set_weights(), copied; absent biases are zeros.

    The Keras layer is that of cutoffs (*cutoffs, n_classes) and proj_dims the layer's projection sizes.

    Raises:
        ValueError: the layer has label_ranks, or a projection of size 0, which a Dense cannot have.
    """
    refuse_ranks(layer, "PAR-Transformer-XL's layer")
    if min(layer.layout.projection_sizes) == 0:
        raise ValueError(
            f"PAR-Transformer-XL's layer has projections of size 1 or more, "
            f"but this layer has {layer.layout.projection_sizes}"
        )
    weights = layer.weights()
    parts = [(weights.head, weights.head_bias)]
    for tail in weights.tails:
        parts += [(tail.projection, tail.projection_bias), (tail.output, tail.output_bias)]
    arrays = []
    for kernel, bias in parts:
        arrays += [to_numpy(kernel.T), to_numpy(kernel.new_zeros(kernel.shape[0]) if bias is None else bias)]
    return arrays
