"""Labels that are not sorted by frequency: the permutation between a user's label ids and frequency ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


class LabelRanks(nn.Module):
    """A permutation: `rank_of_label[l]` is the frequency rank of label l, 0 for the most frequent.

    Adaptive softmax wants frequent labels first. A layer that is given one of these keeps it in its
    state_dict and speaks the user's own label ids everywhere; only its weights are in the order of ranks.

    Args:
        rank_of_label: [n_labels] integers, a permutation of 0 .. n_labels - 1.

    Raises:
        ValueError: not a permutation.
    """

    rank_of_label: Tensor
    label_of_rank: Tensor

    def __init__(self, rank_of_label: Tensor | npt.ArrayLike) -> None:
        super().__init__()
        ranks = torch.as_tensor(rank_of_label)
        if ranks.dim() != 1 or ranks.is_floating_point() or ranks.dtype == torch.bool:
            raise ValueError(
                f"ranks should be a 1-D tensor of integers, got {ranks.dtype} of size {ranks.size()}"
            )
        ranks = ranks.long()
        self.register_buffer("rank_of_label", ranks.clone())
        self.register_buffer("label_of_rank", _inverse(ranks), persistent=False)
        self.register_load_state_dict_post_hook(_invert_again)  # type: ignore[no-untyped-call]

    @classmethod
    def from_counts(cls, counts: Tensor | npt.ArrayLike) -> LabelRanks:
        """Ranks by how often each label occurs; labels of equal count keep their order.

        Args:
            counts: [n_labels] occurrences, or frequencies: finite, none negative.

        Raises:
            ValueError: counts of another kind.
        """
        array = np.asarray(counts.cpu() if isinstance(counts, Tensor) else counts)
        if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "uif":
            raise ValueError(
                f"counts should be a 1-D array of numbers, got {array.dtype} of shape {array.shape}"
            )
        if not np.isfinite(array).all() or array.min() < 0:
            raise ValueError("counts should be finite and not negative")
        label_of_rank = np.lexsort((np.arange(array.size), -array.astype(np.float64)))
        return cls(np.argsort(label_of_rank))

    @classmethod
    def from_labels(cls, labels: Iterable[int] | Tensor, n_labels: int | None = None) -> LabelRanks:
        """Ranks by how often each label occurs in a sample, such as a training set's targets.

        Args:
            labels: integers of any shape, not negative; an iterable is read once.
            n_labels: number of labels there are; 1 + the largest one seen where it is None.

        Raises:
            ValueError: no labels, labels that are no integers, or labels outside [0, n_labels).
        """
        values, occurrences = _count(labels)
        if values.size == 0:
            raise ValueError("labels should hold at least one label")
        size = int(values.max()) + 1 if n_labels is None else n_labels
        if values.min() < 0 or values.max() >= size:
            raise ValueError(
                f"labels should be in [0, {size - 1}], but values in range "
                f"[{values.min()}, {values.max()}] were found"
            )
        counts = np.zeros(size, dtype=np.int64)
        counts[values] = occurrences
        return cls.from_counts(counts)

    def __len__(self) -> int:
        return self.rank_of_label.numel()

    def to_ranks(self, labels: Tensor) -> Tensor:
        """Ranks of labels of any shape, int64. Anything else, such as an ignore_index, stays as it is."""
        labels = labels.long()
        is_label = (labels >= 0) & (labels < len(self))
        return torch.where(is_label, self.rank_of_label[labels.clamp(0, len(self) - 1)], labels)

    def to_labels(self, ranks: Tensor) -> Tensor:
        """Labels of ranks of any shape, int64; every rank must be in [0, n_labels)."""
        return self.label_of_rank[ranks]

    def extra_repr(self) -> str:
        """What distinguishes it when printed."""
        return f"n_labels={len(self)}"


def _count(labels: Iterable[int] | Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The labels there are, and how often each occurs."""
    if isinstance(labels, Tensor):
        labels = labels.cpu().numpy()
    if isinstance(labels, np.ndarray):
        if labels.dtype.kind not in "ui":
            raise ValueError(f"labels should be integers, got {labels.dtype}")
        values, occurrences = np.unique(labels, return_counts=True)
        return values.astype(np.int64), occurrences.astype(np.int64)
    counter = Counter(labels)
    strange = next((label for label in counter if not isinstance(label, int | np.integer)), None)
    if strange is not None:
        raise ValueError(f"labels should be integers, got {strange!r}")
    return np.array(list(counter), dtype=np.int64), np.array(list(counter.values()), dtype=np.int64)


def _inverse(rank_of_label: Tensor) -> Tensor:
    """The label of each rank, and the proof that it is a permutation: every rank once."""
    label_of_rank = torch.argsort(rank_of_label)
    in_order = torch.arange(rank_of_label.numel(), device=rank_of_label.device)
    if not torch.equal(rank_of_label[label_of_rank], in_order):
        raise ValueError(f"ranks should be a permutation of 0 .. {rank_of_label.numel() - 1}")
    return label_of_rank


def _invert_again(module: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(module, LabelRanks)
    module.label_of_rank = _inverse(module.rank_of_label)
