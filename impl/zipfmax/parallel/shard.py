"""Which classes a rank holds: a contiguous part of the head and of every tail.

Splitting each cluster, and not the list of clusters, gives every rank the same work whatever the labels are.
The parts are those of DTensor's `Shard(0)`, which are torch.chunk's: all of one size, but for the last ones,
which may be shorter or empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch.distributed import ProcessGroup

from zipfmax.clusters import ClusterLayout


@dataclass(frozen=True, slots=True)
class Span:
    """Rows `start` up to but not including `stop`."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many there are."""
        return self.stop - self.start


def spans(size: int, world: int) -> list[Span]:
    """Parts of `size` rows, one a rank."""
    step = -(-size // world)
    return [Span(min(rank * step, size), min(rank * step + step, size)) for rank in range(world)]


@dataclass(frozen=True)
class Shard:
    """One rank's part of a layer.

    Args:
        layout: of the whole layer.
        group: the ranks that share it.
        rank: this one's number in the group.
        world: how many there are.
        rows_sharded: inputs are split by rows over the ranks, as sequence parallelism leaves them.
    """

    layout: ClusterLayout
    group: ProcessGroup | None
    rank: int
    world: int
    rows_sharded: bool = False
    head: Span = field(init=False)
    """Rows of the head."""
    tails: tuple[Span, ...] = field(init=False)
    """Classes of each tail, counted from its first."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "head", spans(self.layout.head_size, self.world)[self.rank])
        tails = tuple(spans(tail.size, self.world)[self.rank] for tail in self.layout)
        object.__setattr__(self, "tails", tails)

    def __deepcopy__(self, memo: dict[int, Any]) -> Shard:
        return self  # a copied layer belongs to the same ranks

    @property
    def shortlist(self) -> Span:
        """The head's rows that are classes of the shortlist."""
        shortlist = self.layout.shortlist_size
        return Span(min(self.head.start, shortlist), min(self.head.stop, shortlist))


def refusal(layout: ClusterLayout, world: int) -> str | None:
    """Why so many ranks cannot share a layer, or None where they can."""
    if world < 2:
        return f"a vocabulary is split over at least 2 ranks, but the group has {world}"
    parts = [("the head", layout.head_size), *((f"tail {tail.index}", tail.size) for tail in layout)]
    for name, size in parts:
        if size < world:
            return f"{name} has {size} rows, fewer than the {world} ranks of the group"
    return None
