"""All that moves between ranks, by torch.distributed: gathers of small statistics, sums of gradients.

Every function here is collective: each rank of the group calls it, with tensors of the same shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from zipfmax.parallel.shard import Span, spans

# Newer versions of torch have other names for these two.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

_ALIGNMENT = 8  # bytes of the widest dtype that is packed


class Traffic:
    """What this process sends while the context is entered: `sent_bytes` in `collectives`.

    By the rings that NCCL and Gloo use for large messages: with W ranks, a sum of n bytes sends
    2 n (W - 1) / W, a gather of n bytes a rank n (W - 1), a reduce-scatter of n bytes n (W - 1) / W.
    """

    _active: Traffic | None = None

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.collectives = 0

    def __enter__(self) -> Self:
        self._outer, Traffic._active = Traffic._active, self
        return self

    def __exit__(self, *exc: object) -> None:
        Traffic._active = self._outer

    @classmethod
    def count(cls, sent_bytes: int) -> None:
        """One more collective; enclosing contexts count it too."""
        traffic = cls._active
        while traffic is not None:
            traffic.sent_bytes += sent_bytes
            traffic.collectives += 1
            traffic = traffic._outer

    _outer: Traffic | None = None


def gather(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """This tensor of every rank, [world, *shape]."""
    world = dist.get_world_size(group)
    if tensor.numel() == 0:
        return tensor.new_empty(world, *tensor.shape)
    Traffic.count(tensor.numel() * tensor.element_size() * (world - 1))
    out = tensor.new_empty(world * tensor.numel())
    _all_gather(out, tensor.contiguous().view(-1), group=group)
    return out.view(world, *tensor.shape)


def gather_together(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> list[Tensor]:
    """Tensors of several dtypes in one collective: each as `gather` gives it."""
    pieces, ends = [], [0]
    for tensor in tensors:
        flat = tensor.contiguous().view(-1).view(torch.uint8)
        padding = -flat.numel() % _ALIGNMENT
        pieces += [flat, flat.new_zeros(padding)]
        ends.append(ends[-1] + flat.numel() + padding)
    everyone = gather(torch.cat(pieces), group)
    found = []
    for tensor, start in zip(tensors, ends[:-1], strict=True):
        size = tensor.numel() * tensor.element_size()
        part = everyone[:, start : start + size].contiguous().view(-1).view(tensor.dtype)
        found.append(part.view(everyone.shape[0], *tensor.shape))
    return found


def start_sum(tensor: Tensor, group: dist.ProcessGroup | None) -> Any:
    """Begin to put the sum over the ranks in place; returns what to `wait()` for."""
    world = dist.get_world_size(group)
    Traffic.count(2 * tensor.numel() * tensor.element_size() * (world - 1) // world)
    return dist.all_reduce(tensor, group=group, async_op=True)


def gather_rows(tensor: Tensor, n_rows: int, group: dist.ProcessGroup | None) -> Tensor:
    """[n_rows, *] from parts of it by rows, split as `spans` does."""
    world = dist.get_world_size(group)
    parts = spans(n_rows, world)
    padded = _padded(tensor, parts[0].size)
    return gather(padded, group).flatten(0, 1)[:n_rows]


def scatter_rows(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """This rank's rows of the sum of [n_rows, *] over the ranks."""
    world, n_rows = dist.get_world_size(group), tensor.shape[0]
    parts = spans(n_rows, world)
    mine: Span = parts[dist.get_rank(group)]
    if tensor.numel() == 0:
        return tensor[mine.start : mine.stop]
    padded = _padded(tensor, parts[0].size * world)
    Traffic.count(padded.numel() * padded.element_size() * (world - 1) // world)
    out = tensor.new_empty(parts[0].size, *tensor.shape[1:])
    _reduce_scatter(out, padded, group=group)
    return out[: mine.size]


def _padded(tensor: Tensor, n_rows: int) -> Tensor:
    if tensor.shape[0] == n_rows:
        return tensor.contiguous()
    return torch.cat([tensor, tensor.new_zeros(n_rows - tensor.shape[0], *tensor.shape[1:])])
