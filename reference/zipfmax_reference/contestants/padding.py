"""A vocabulary padded to the multiple that a matrix product wants, with classes that no softmax sees.

A product over an odd number of 16-bit columns cannot use aligned loads and takes a multiple of the time, so
the matrix of full softmax is held with some classes more. Two ways keep them out of the softmax exactly, in
every dtype, because the exponential of their logits is zero:

- "bias": their rows are 0 and a bias is -inf there and 0 elsewhere. The bias takes no gradient.
- "feature": for losses without a bias. The hidden state gets `FEATURES` constant columns, the first of 1 and
  the
  others of 0, and the weight's first of them is `LOWEST` for added classes and 0 for the others. A user who
  trains such a matrix has to zero that column's gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Mask = Literal["bias", "feature"]

FEATURES = 8
"""Columns that the mask "feature" adds: as many as keep rows of 16-bit numbers aligned to 16 bytes."""

LOWEST = -16384.0
"""Logit of an added class under the mask "feature". Every dtype holds it, and its exponential is 0 beside any
logit above -16,000. Much lower ones overflow in kernels that scale a tile of classes by its maximum."""


@dataclass(frozen=True)
class Padding:
    """How a matrix [V, d] is held: padded to a multiple of classes, and what masks the added ones.

    Args:
        multiple: V is padded up to a multiple of this.
        mask: "bias" or "feature".
    """

    multiple: int = 1
    mask: Mask = "bias"

    def added(self, n_classes: int) -> int:
        """Number of added classes, P."""
        return -n_classes % self.multiple

    def text(self, n_classes: int) -> str:
        """What it does to a vocabulary, in words; empty where it adds no class."""
        if not self.added(n_classes):
            return ""
        how = "a bias of -inf" if self.mask == "bias" else f"{FEATURES} constant features"
        return f"classes padded to {n_classes + self.added(n_classes):,} and masked by {how}"

    def weight(self, weight: Tensor) -> Tensor:
        """The matrix as it is held: [V, d] itself, or a new [V + P, d] or [V + P, d + FEATURES]."""
        n_classes, features = weight.shape
        added = self.added(n_classes)
        if not added:
            return weight
        width = features + (FEATURES if self.mask == "feature" else 0)
        held = weight.new_zeros(n_classes + added, width)
        held[:n_classes, :features] = weight
        if self.mask == "feature":
            held[n_classes:, features] = LOWEST
        return held

    def bias(self, weight: Tensor) -> Tensor | None:
        """The bias [V + P] for a matrix [V, d], or None where there is none."""
        n_classes, added = len(weight), self.added(len(weight))
        if not added or self.mask != "bias":
            return None
        bias = weight.new_zeros(n_classes + added)
        bias[n_classes:] = float("-inf")
        return bias

    def hidden(self, hidden: Tensor, n_classes: int) -> Tensor:
        """The hidden state [N, d] as the matrix wants it: itself, or with its constant features."""
        if not self.added(n_classes) or self.mask != "feature":
            return hidden
        features = torch.zeros(len(hidden), FEATURES, dtype=hidden.dtype, device=hidden.device)
        features[:, 0] = 1
        return torch.cat([hidden, features], dim=1)


UNPADDED = Padding()
