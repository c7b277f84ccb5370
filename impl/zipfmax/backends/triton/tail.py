"""What the host knows of a tail, and how tails share a launch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple


class Tail(NamedTuple):
    """The shape of one tail."""

    cluster: int
    """Its place in the routing."""
    k_size: int
    """Projection size K."""
    width: int
    """Columns of a buffer of projected rows, at least K."""
    n_classes: int
    has_projection_bias: bool
    has_output_bias: bool


def firsts(programs: Iterable[int], first: int = 0) -> tuple[int, ...]:
    """First program of each part of a grid, and the end of the last: a running sum."""
    found = [first]
    for n in programs:
        found.append(found[-1] + n)
    return tuple(found)


Tile = dict[str, int]


def sharing(tails: Sequence[Tail], tile_of: Callable[[Tail], Tile]) -> list[list[tuple[Tail, Tile]]]:
    """The tails in groups that share a launch, at most two: tiles of one number of warps and stages each.

    A kernel is compiled for one number of warps and one depth of pipelines, and a tile tuned for another may
    be a third slower. Where that would make more than two groups, those of as many warps take the least of
    their depths.
    """
    tiled = [(tail, tile_of(tail)) for tail in tails]
    groups = _grouped(tiled, lambda tile: (tile["num_warps"], tile["num_stages"]))
    if len(groups) > 2:
        groups = _grouped(tiled, lambda tile: tile["num_warps"])
        for group in groups:
            depth = min(tile["num_stages"] for _, tile in group)
            group[:] = [(tail, tile | {"num_stages": depth}) for tail, tile in group]
    return groups


def _grouped(
    tiled: Sequence[tuple[Tail, Tile]], key: Callable[[Tile], Hashable]
) -> list[list[tuple[Tail, Tile]]]:
    groups: dict[Hashable, list[tuple[Tail, Tile]]] = {}
    for tail, tile in tiled:
        groups.setdefault(key(tile), []).append((tail, tile))
    return list(groups.values())
