"""The weights of an adaptive softmax as plain tensors: what a backend computes with; and what can score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor


class TailScorer(Protocol):
    """What scores a cluster's classes."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, d] -> [n, cluster size]."""


class Scorer(Protocol):
    """What the plain operations need to know of a layer: `Weights`, or submodules that are called."""

    @property
    def tails(self) -> Sequence[TailScorer]:
        """One a cluster, most frequent first."""

    def head_logits(self, hidden: Tensor) -> Tensor:
        """[N, d] -> [N, head_size]."""


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

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the cluster's classes: [n, d] -> [n, cluster size]."""
        return F.linear(
            F.linear(hidden, self.projection, self.projection_bias), self.output, self.output_bias
        )


class Weights(NamedTuple):
    """The head and the tails, most frequent first; all of one dtype and on one device."""

    head: Tensor
    """[head_size, in_features]: the shortlist's rows, then one row a tail cluster."""
    head_bias: Tensor | None
    """[head_size] or None"""
    tails: tuple[TailWeights, ...]

    def head_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the shortlist and of the clusters' slots: [N, d] -> [N, head_size]."""
        return F.linear(hidden, self.head, self.head_bias)

    def tensors(self) -> list[Tensor]:
        """Every tensor that is there, in a fixed order: head, head_bias, then each tail's four."""
        optional = [self.head, self.head_bias, *(tensor for tail in self.tails for tensor in tail)]
        return [tensor for tensor in optional if tensor is not None]

    def with_tensors(self, tensors: Iterable[Tensor]) -> Weights:
        """The same structure holding other tensors, given in the order of `tensors()`."""
        replacement = iter(tensors)

        def next_for(old: Tensor | None) -> Tensor | None:
            return None if old is None else next(replacement)

        head, head_bias = next(replacement), next_for(self.head_bias)
        tails = tuple(
            TailWeights(next(replacement), next(replacement), next_for(tail[2]), next_for(tail[3]))
            for tail in self.tails
        )
        return Weights(head, head_bias, tails)

    def map(self, function: Callable[[Tensor], Tensor]) -> Weights:
        """The same structure with `function` applied to every tensor."""
        return self.with_tensors([function(tensor) for tensor in self.tensors()])
