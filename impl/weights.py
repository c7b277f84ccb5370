"""The weights of an adaptive softmax as plain tensors: what a backend computes with."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TailWeights(NamedTuple):
    """One tail cluster: logits = output @ (projection @ h + projection_bias) + output_bias."""

    projection: Tensor
    """[projection_size, in_features]"""
    output: Tensor
    """[cluster size, projection_size]"""
    projection_bias: Tensor | None = None
    """[projection_size] or None"""
    output_bias: Tensor | None = None
    """[cluster size] or None"""


class Weights(NamedTuple):
    """The head and the tails, most frequent first; all of one dtype and on one device."""

    head: Tensor
    """[head_size, in_features]: the shortlist's rows, then one row a tail cluster."""
    head_bias: Tensor | None
    """[head_size] or None"""
    tails: tuple[TailWeights, ...]

    def tensors(self) -> list[Tensor]:
        """Every tensor that is there, in a fixed order: head, head_bias, then each tail's four."""
        optional = [self.head, self.head_bias, *(tensor for tail in self.tails for tensor in tail)]
        return [tensor for tensor in optional if tensor is not None]
