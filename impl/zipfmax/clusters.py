"""The partition of the classes: which go to the shortlist, which to which tail cluster, and how wide each is.

This is the one place that knows it. It holds plain numbers, never tensors, so the module, the kernels, the
references and the planner can all ask the same object.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Cluster:
    """One tail cluster: classes `start` up to but not including `stop`."""

    index: int
    """Position among the tails, from 0: the most frequent tail first."""
    start: int
    stop: int
    projection_size: int
    """Width of the projected hidden state; 0 makes the cluster uniform, as in torch.nn."""
    slot: int
    """Row of the head that stands for this cluster: shortlist_size + index."""

    @property
    def size(self) -> int:
        """Number of classes in the cluster."""
        return self.stop - self.start


@dataclass(frozen=True)
class ClusterLayout:
    """Partition of `n_classes` labels into a shortlist and tail clusters (Grave et al. 2016, section 4).

    Labels are ranks: 0 is the most frequent. Labels below `cutoffs[0]` form the shortlist and are scored by
    the head itself. Tail i holds the labels from `cutoffs[i]` up to the next cutoff (the last one up to
    `n_classes`) and scores them from a projection of size floor(in_features / div_value**(i + 1)).

    Args:
        in_features: width of the hidden state.
        n_classes: number of labels.
        cutoffs: increasing label ranks between 1 and n_classes - 1; n_classes itself is not listed.
        div_value: factor by which each further tail is narrower; any positive number.
        projection_sizes: the tails' projection sizes, one a tail, where they do not follow from div_value
            (other frameworks round or start differently). Filled from div_value where left empty.

    Raises:
        ValueError: for cutoffs or a div_value that make no partition; the texts are those of torch.nn.
        TypeError: an argument that is not an integer, a number or a sequence where it should be.
    """

    in_features: int
    n_classes: int
    cutoffs: tuple[int, ...]
    div_value: float = 4.0
    projection_sizes: tuple[int, ...] = ()
    tails: tuple[Cluster, ...] = field(init=False, repr=False, compare=False)
    """The tail clusters, most frequent first."""

    def __post_init__(self) -> None:
        for name in ("in_features", "n_classes"):
            if not hasattr(getattr(self, name), "__index__"):
                raise TypeError(f"{name} should be an integer, got {getattr(self, name)!r}")
        if self.in_features < 1:
            raise ValueError(f"in_features should be a positive integer, got {self.in_features}")
        object.__setattr__(self, "cutoffs", _checked_cutoffs(self.cutoffs, self.n_classes))
        if not hasattr(self.div_value, "__float__"):
            raise TypeError(f"div_value should be a number, got {self.div_value!r}")
        if not (self.div_value > 0 and math.isfinite(self.div_value)):
            raise ValueError(f"div_value should be a positive, finite number, got {self.div_value}")
        sizes = _sequence("projection_sizes", self.projection_sizes) or tuple(
            _projection_size(self.in_features, self.div_value, tail) for tail in range(len(self.cutoffs))
        )
        if len(sizes) != len(self.cutoffs) or not all(_is_count(size) for size in sizes):
            raise ValueError(
                f"projection_sizes should be {len(self.cutoffs)} integers, one a tail, none negative, "
                f"got {sizes}"
            )
        object.__setattr__(self, "projection_sizes", tuple(int(size) for size in sizes))
        object.__setattr__(self, "tails", self._tails())

    @property
    def shortlist_size(self) -> int:
        """Number of classes that the head scores directly."""
        return self.cutoffs[0]

    @property
    def n_clusters(self) -> int:
        """Number of tail clusters."""
        return len(self.cutoffs)

    @property
    def head_size(self) -> int:
        """Rows of the head: the shortlist, then one slot a tail cluster."""
        return self.shortlist_size + self.n_clusters

    @property
    def bounds(self) -> tuple[int, ...]:
        """(0, cutoffs..., n_classes): part p holds the labels bounds[p] <= label < bounds[p + 1]."""
        return (0, *self.cutoffs, self.n_classes)

    def _tails(self) -> tuple[Cluster, ...]:
        bounds = pairwise((*self.cutoffs, self.n_classes))
        return tuple(
            Cluster(i, start, stop, projection_size, self.shortlist_size + i)
            for i, ((start, stop), projection_size) in enumerate(
                zip(bounds, self.projection_sizes, strict=True)
            )
        )

    def __iter__(self) -> Iterator[Cluster]:
        return iter(self.tails)

    def parts(self, labels: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Part of each label: 0 for the shortlist, i + 1 for tail i. Labels must lie in [0, n_classes)."""
        return np.searchsorted(np.asarray(self.cutoffs), labels, side="right").astype(np.int64)

    def occupancy(self, probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Mass of the shortlist and of each tail under a label distribution.

        Args:
            probabilities: [n_classes], or counts; normalised here.

        Returns:
            [1 + n_clusters] shares that sum to 1.
        """
        if probabilities.shape != (self.n_classes,):
            raise ValueError(f"expected {self.n_classes} probabilities, got shape {probabilities.shape}")
        mass: npt.NDArray[np.float64] = np.add.reduceat(probabilities.astype(np.float64), self.bounds[:-1])
        return mass / float(mass.sum())

    def parameter_count(
        self, head_bias: bool = False, tail_bias: bool = False, projection_bias: bool = False
    ) -> int:
        """Number of weights of the layer, in elements."""
        head = self.head_size * (self.in_features + head_bias)
        tails = sum(
            cluster.projection_size * (self.in_features + cluster.size + projection_bias)
            + tail_bias * cluster.size
            for cluster in self.tails
        )
        return head + tails


def _projection_size(in_features: int, div_value: float, tail: int) -> int:
    halvings = (tail + 1) * math.log2(div_value)
    if math.log2(in_features) - halvings > 62:
        raise ValueError(f"div_value {div_value:g} makes a projection too wide for any tensor")
    return int(in_features // div_value ** (tail + 1)) if halvings < 1000 else 0  # beyond a float's range


def _sequence(name: str, values: Any) -> tuple[Any, ...]:
    try:
        return tuple(values)
    except TypeError:
        raise TypeError(f"{name} should be a sequence of integers, got {values!r}") from None


def _is_count(value: Any) -> bool:
    """Whether it is a whole number of at least 0, of whatever type of numbers."""
    try:
        return bool(value >= 0 and int(value) == value)
    except (TypeError, ValueError, OverflowError):
        return False


def _checked_cutoffs(given: Sequence[int], n_classes: int) -> tuple[int, ...]:
    cutoffs = _sequence("cutoffs", given)
    if len(cutoffs) == 0:
        raise ValueError("cutoffs should be a sequence of length larger than 0")
    if not all(map(_is_count, cutoffs)) or not (
        all(low < high for low, high in pairwise((0, *cutoffs))) and cutoffs[-1] <= n_classes - 1
    ):
        raise ValueError(
            "cutoffs should be a sequence of unique, positive integers sorted in an increasing order, "
            "where each value is between 1 and n_classes-1"
        )
    return tuple(int(c) for c in cutoffs)
