"""Decoding without the full distribution: the most probable classes, and samples, opening few tails.

A class of tail i has log p(class) = log p(slot_i) + log p(class | cluster i) <= log p(slot_i). So the head's
log-probabilities, which every row needs anyway, bound what a tail can hold, and a tail is computed ("opened")
only for the rows that can still need it. Classes are ranks here; the layer translates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.backends.context import cannot_read
from zipfmax.backends.eager import head_log_prob, log_prob_given_head, tail_log_prob
from zipfmax.backends.eager import log_prob as eager_log_prob
from zipfmax.clusters import ClusterLayout
from zipfmax.submodules import Called
from zipfmax.weights import Scorer

# Of a block in log_prob_into: 16 MiB in float32.
_BLOCK_ELEMENTS = 2**22


class TopK(NamedTuple):
    """The most probable classes of each row."""

    values: Tensor
    """[..., k] log-probabilities, descending."""
    indices: Tensor
    """[..., k] classes, int64."""


def topk(layout: ClusterLayout, scorer: Scorer, hidden: Tensor, k: int) -> tuple[TopK, Tensor]:
    """The k most probable classes of each row of `hidden` [N, d], exactly, and what it took to know them.

    The tails of a row are tried in the order of their slots' probability, each only while its slot is more
    probable than the k-th class found so far: no method that knows only the head can open fewer.

    Returns:
        values and indices, [N, k]; the tails opened for each row, [N, n_clusters] bool.

    Raises:
        ValueError: k outside [0, n_classes].
    """
    if not hasattr(k, "__index__"):
        raise TypeError(f"k should be an integer, got {k!r}")
    if not 0 <= k <= layout.n_classes:
        raise ValueError(f"k should be between 0 and n_classes={layout.n_classes}, got {k}")
    head = head_log_prob(scorer, hidden)
    if isinstance(scorer, Called) or cannot_read(head):
        # A submodule is called once; a recording must not keep the branches of one example.
        found = TopK(*log_prob_given_head(layout, scorer, hidden, head).topk(k, dim=1))
        return found, torch.ones(hidden.size(0), layout.n_clusters, dtype=torch.bool, device=hidden.device)
    opened = torch.zeros(hidden.size(0), layout.n_clusters, dtype=torch.bool, device=hidden.device)
    found = TopK(*head[:, : layout.shortlist_size].topk(min(k, layout.shortlist_size), dim=1))
    if k == 0:
        return found, opened
    missing = k - found.values.size(1)
    found = TopK(
        F.pad(found.values, (0, missing), value=-torch.inf), F.pad(found.indices, (0, missing), value=-1)
    )

    slots = head[:, layout.shortlist_size :]
    order = slots.argsort(dim=1, descending=True)
    for turn in order.unbind(1):
        bound = slots.gather(1, turn.unsqueeze(1))
        wanted = (bound.squeeze(1) > found.values[:, -1]) | (found.indices[:, -1] < 0)
        for tail, tail_scorer in zip(layout, scorer.tails, strict=True):
            rows = (wanted & (turn == tail.index)).nonzero().squeeze(1)
            if rows.numel() == 0:
                continue
            opened[rows, tail.index] = True
            within = tail_log_prob(tail_scorer, hidden.index_select(0, rows))
            values, places = within.topk(min(k, tail.size), dim=1)
            new = TopK(values + bound.index_select(0, rows), places + tail.start)
            best = _merge(TopK(*(part.index_select(0, rows) for part in found)), new)
            found = TopK(*(part.index_copy(0, rows, rest) for part, rest in zip(found, best, strict=True)))
    return found, opened


def _merge(found: TopK, new: TopK) -> TopK:
    """The best k of both, for each row, k as many as were found."""
    both = TopK(*(torch.cat(pair, dim=1) for pair in zip(found, new, strict=True)))
    return best_of(both, found.values.size(1))


def best_of(found: TopK, k: int) -> TopK:
    """The k highest of each row, [N, k]; of equal ones the first, and last those whose index is negative."""
    empty_last = (found.indices < 0).byte().argsort(dim=1, stable=True)
    values, indices = (part.gather(1, empty_last) for part in found)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return TopK(values[:, :k], indices.gather(1, order[:, :k]))


@torch.no_grad()
def sample(
    layout: ClusterLayout, scorer: Scorer, hidden: Tensor, n: int, generator: torch.Generator | None = None
) -> Tensor:
    """n classes of each row of `hidden` [N, d], drawn independently from its distribution: [N, n] int64.

    First each draw picks a class of the shortlist or a cluster, from the head; then, for the rows whose draws
    picked a cluster, a class within it. That is the definition's own order, so the draws are exact.

    Raises:
        ValueError: n smaller than 1.
    """
    if not hasattr(n, "__index__"):
        raise TypeError(f"n should be an integer, got {n!r}")
    if n < 1:
        raise ValueError(f"n should be a positive number of samples, got {n}")
    if hidden.size(0) == 0:
        return torch.empty(0, n, dtype=torch.int64, device=hidden.device)
    head = head_log_prob(scorer, hidden)
    if cannot_read(head):
        return _draw(log_prob_given_head(layout, scorer, hidden, head), n, generator)
    from_head = _draw(head, n, generator)
    drawn = from_head
    for tail, tail_scorer in zip(layout, scorer.tails, strict=True):
        picked = from_head == tail.slot
        rows = picked.any(dim=1).nonzero().squeeze(1)
        if rows.numel() == 0:
            continue
        picked = picked.index_select(0, rows)
        most = int(picked.sum(dim=1).max())
        within = _draw(tail_log_prob(tail_scorer, hidden.index_select(0, rows)), most, generator)
        # The j-th draw of a row that picked this cluster takes the j-th of the row's draws within it.
        turn = (picked.cumsum(dim=1) - 1).clamp(min=0)
        chosen = torch.where(picked, within.gather(1, turn) + tail.start, drawn.index_select(0, rows))
        drawn = drawn.index_copy(0, rows, chosen)
    return drawn


@torch.no_grad()
def log_prob_into(
    layout: ClusterLayout, scorer: Scorer, hidden: Tensor, out: Tensor, columns: Tensor | None = None
) -> None:
    """Write the log-probabilities of all classes for `hidden` [N, d] into `out` [N, n_classes].

    Rows are taken in blocks, so that beside `out` only a block is held, whatever N is. Column c of `out` is
    that of rank `columns[c]`, or of rank c without `columns`.
    """
    if isinstance(scorer, Called):  # once, not once a block
        result = eager_log_prob(layout, scorer, hidden)
        out.copy_(result if columns is None else result.index_select(1, columns))
        return
    block = max(1, _BLOCK_ELEMENTS // layout.n_classes)
    for rows, target in zip(torch.split(hidden, block), torch.split(out, block), strict=True):
        by_rank = target if columns is None else torch.empty_like(target)
        head = head_log_prob(scorer, rows)
        by_rank[:, : layout.shortlist_size] = head[:, : layout.shortlist_size]
        for tail, tail_scorer in zip(layout, scorer.tails, strict=True):
            within = tail_log_prob(tail_scorer, rows)
            torch.add(within, head[:, tail.slot, None], out=by_rank[:, tail.start : tail.stop])
        if columns is not None:
            torch.index_select(by_rank, 1, columns, out=target)


def _draw(log_prob: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """n columns of each row, [N, n], with replacement, by their probabilities."""
    return torch.multinomial(log_prob.float().exp(), n, replacement=True, generator=generator)
