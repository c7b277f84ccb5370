"""fairseq's AdaptiveSoftmax, by its state_dict: no biases, and weights that may be tied to an adaptive input.

Tail i is `tail.i.0` (projection) and `tail.i.2` (output; `tail.i.1` is dropout). An untied head is
`head.weight`; a tied one is `head.word_proj` (the embedding, or a projection and the embedding) and
`head.class_proj` (the clusters' slots). A tied projection is stored transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zipfmax.clusters import ClusterLayout
from zipfmax.converters.checkpoint import Checkpoint, Sample, build_layer, checked
from zipfmax.export import refuse_biases, refuse_ranks
from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax.weights import TailWeights, Weights


def from_fairseq(
    state_dict: Mapping[str, Any],
    *,
    prefix: str = "",
    div_value: float = 4.0,
    tied_projections: bool | None = None,
    check: Sample | None = None,
    **options: Any,
) -> AdaptiveLogSoftmaxWithLoss:
    """The layer with fairseq's weights, copied. The partition is read off their shapes.

    A head that is projected before the tied embedding is multiplied out. Dropout stays behind, and so does
    the criterion, which by the way skips one word of every tail: it compares labels relative to the tail
    with padding_idx.

    Args:
        state_dict: of an AdaptiveSoftmax, or of a model with `prefix`, such as "decoder.adaptive_softmax.".
        prefix: what the keys start with.
        div_value: fairseq's factor, kept in the layer as told; the projection sizes are the weights' own.
        tied_projections: whether the model was trained with tie_adaptive_proj. Needed where the shape leaves
            it open, for a square projection of a tied head. A model with an untied head has no tied
            projections, whatever it was trained with: fairseq ties them to an adaptive input only.
        check: a sample (hidden, log_prob) of the other layer, which this one must reproduce.
        options: the layer's other keyword arguments, such as ignore_index or backend.

    Raises:
        ValueError: a key that is missing, unknown or of a shape that does not fit, by name and shape;
            tied_projections missing where they are needed; a layer that does not reproduce `check`.
    """
    entries = Checkpoint("fairseq state_dict", state_dict, prefix)
    if "version" not in entries:
        # Without it the clusters' slots are off by one; fairseq itself refuses to load such a state_dict.
        raise ValueError(
            f"fairseq state_dict lacks {prefix + 'version'!r}: it is of a version no longer supported"
        )
    entries.drop("version", "head._float_tensor")
    words, slots = _head(entries)
    in_features = words.shape[1]
    n_tails = 0
    while f"tail.{n_tails}.2.weight" in entries:
        n_tails += 1
    if n_tails == 0:
        raise ValueError(f"fairseq state_dict lacks {prefix + 'tail.0.2.weight'!r}")
    head = words if slots is None else torch.cat([words, slots])
    if slots is not None and slots.shape[0] != n_tails:
        raise ValueError(
            f"fairseq state_dict: {prefix + 'head.class_proj.weight'!r} has {slots.shape[0]} slots "
            f"for {n_tails} tails"
        )

    tails = []
    for i in range(n_tails):
        output = entries.take(f"tail.{i}.2.weight", None, None)
        size = output.shape[1]
        projection = entries.take(f"tail.{i}.0.weight", None, None)
        if slots is None:
            transposed = False
        elif size == in_features and tied_projections is None:
            raise ValueError(
                f"fairseq state_dict: {f'{prefix}tail.{i}.0.weight'!r} is square, so its shape does not tell "
                "whether it is tied: pass tied_projections, the model's tie_adaptive_proj"
            )
        else:
            transposed = bool(tied_projections) if size == in_features else projection.shape[0] == in_features
        projection = projection.T if transposed else projection
        if projection.shape != (size, in_features):
            raise ValueError(
                f"fairseq state_dict: {f'{prefix}tail.{i}.0.weight'!r} should have shape "
                f"({size}, {in_features}), but has {tuple(projection.shape)}"
            )
        tails.append(TailWeights(projection, output))
    entries.finish()

    cutoffs = [head.shape[0] - n_tails]
    for tail in tails:
        cutoffs.append(cutoffs[-1] + tail.output.shape[0])
    sizes = tuple(tail.output.shape[1] for tail in tails)
    layout = ClusterLayout(in_features, cutoffs[-1], tuple(cutoffs[:-1]), div_value, sizes)
    return checked(
        build_layer(layout, Weights(head, None, tuple(tails)), options), "fairseq state_dict", check
    )


def to_fairseq(layer: AdaptiveLogSoftmaxWithLoss, *, prefix: str = "") -> dict[str, Tensor]:
    """This layer's weights as the state_dict of an untied fairseq AdaptiveSoftmax, copied.

    Raises:
        ValueError: the layer has biases or label_ranks, which fairseq's cannot have.
    """
    refuse_ranks(layer, "fairseq's AdaptiveSoftmax")
    refuse_biases(layer, "fairseq's AdaptiveSoftmax", "head_bias", "tail_bias", "projection_bias")
    weights = layer.weights().map(lambda tensor: tensor.detach().clone())
    state = {"head.weight": weights.head}
    for i, tail in enumerate(weights.tails):
        state[f"tail.{i}.0.weight"] = tail.projection
        state[f"tail.{i}.2.weight"] = tail.output
    state["version"] = torch.tensor([1])
    return {prefix + name: tensor for name, tensor in state.items()}


def _head(entries: Checkpoint) -> tuple[Tensor, Tensor | None]:
    """The head's rows, or where it is tied, those of the shortlist and those of the slots."""
    if "head.weight" in entries:
        return entries.take("head.weight", None, None), None
    slots = entries.take("head.class_proj.weight", None, None)
    if "head.word_proj.weight" in entries:
        return entries.take("head.word_proj.weight", None, slots.shape[1]), slots
    projection = entries.take("head.word_proj.0.weight", None, slots.shape[1])
    words = entries.take("head.word_proj.1.weight", None, projection.shape[0])
    return words @ projection, slots
