"""Decoding over ranks: the most probable classes, and samples, each in at most two gathers.

The first joins the head, and tells all ranks alike which tails which rows need; the second joins those tails.
A rank sends its best classes of a row, or its draws, and never its logits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.backends.tiled_gradient import statistics_dtype
from zipfmax.decoding import TopK, best_of
from zipfmax.parallel.collectives import gather_together
from zipfmax.parallel.shard import Shard, Span
from zipfmax.weights import Weights


@torch.no_grad()
def topk(shard: Shard, weights: Weights, hidden: Tensor, k: int) -> TopK:
    """The k most probable classes of each row of `hidden` [N, d], exactly, on every rank: two of [N, k].

    A tail is opened for the rows where its slot is more probable than the k-th class of the shortlist.

    Raises:
        ValueError: k outside [0, n_classes].
    """
    layout = shard.layout
    if not 0 <= k <= layout.n_classes:
        raise ValueError(f"k should be between 0 and n_classes={layout.n_classes}, got {k}")
    logits = _head_logits(weights, hidden)
    words = shard.shortlist.size
    best = _local_best(logits[:, :words], k, shard.shortlist.start)
    everyone = gather_together(
        [logits.logsumexp(dim=1, keepdim=True), _slots(shard, logits), *best], shard.group
    )
    log_sum_exp = everyone[0].logsumexp(dim=0)
    slots = everyone[1].amax(dim=0) - log_sum_exp
    found = _best_of_all(everyone[2], everyone[3], log_sum_exp, k)
    if k == 0:
        return found

    last = found.values[:, -1:]
    wanted = (slots > last) | (found.indices[:, -1:] < 0)
    opened = list(_opened(shard, weights, hidden, wanted))
    if not opened:
        return found
    parts = []
    for place, _, logits in opened:
        tail, span = layout.tails[place], shard.tails[place]
        parts += [logits.logsumexp(dim=1, keepdim=True), *_local_best(logits, k, tail.start + span.start)]
    joined = iter(gather_together(parts, shard.group))
    for place, rows, _ in opened:
        log_sum_exp = next(joined).logsumexp(dim=0) - slots.index_select(0, rows)[:, place, None]
        new = _best_of_all(next(joined), next(joined), log_sum_exp, k)
        pairs = zip(found, new, strict=True)
        both = TopK(*(torch.cat([old.index_select(0, rows), n], dim=1) for old, n in pairs))
        better = zip(found, best_of(both, k), strict=True)
        found = TopK(*(old.index_copy(0, rows, n) for old, n in better))
    return found


@torch.no_grad()
def sample(
    shard: Shard, weights: Weights, hidden: Tensor, n: int, generator: torch.Generator | None = None
) -> Tensor:
    """n classes of each row of `hidden` [N, d], drawn independently, on every rank alike: [N, n] int64.

    Of each softmax a rank draws among its own classes; the first rank of the group says by its random
    numbers which rank's draw counts. All ranks draw as many numbers, so that equal generators stay equal, and
    generators of different states give the same classes on every rank all the same.

    Raises:
        ValueError: n smaller than 1.
        RuntimeError: logits that make no distribution.
    """
    if n < 1:
        raise ValueError(f"n should be a positive number of samples, got {n}")
    if hidden.shape[0] == 0:
        return torch.empty(0, n, dtype=torch.int64, device=hidden.device)
    layout = shard.layout
    chances = torch.rand(
        2, hidden.shape[0], n, dtype=torch.float64, device=hidden.device, generator=generator
    )
    logits = _head_logits(weights, hidden)
    draws = _draw(logits, n, generator) + shard.head.start
    everyone = gather_together([logits.logsumexp(dim=1), draws, chances], shard.group)
    of_rank, of_tail_rank = everyone[2][0].unbind(0)
    from_head = drawn = _chosen(everyone[0], everyone[1], of_rank)

    picked = from_head.unsqueeze(2) == torch.arange(
        layout.shortlist_size, layout.head_size, device=hidden.device
    )
    opened = list(_opened(shard, weights, hidden, picked.any(dim=1)))
    if not opened:
        return drawn
    parts = []
    for _, _, logits in opened:
        parts += [logits.logsumexp(dim=1), _draw(logits, n, generator)]
    joined = iter(gather_together(parts, shard.group))
    step = torch.arange(shard.world, device=hidden.device).view(-1, 1, 1)
    for place, rows, _ in opened:
        tail = layout.tails[place]
        first = tail.start + step * -(-tail.size // shard.world)
        log_sum_exp, draws = next(joined), next(joined) + first
        within = _chosen(log_sum_exp, draws, of_tail_rank.index_select(0, rows))
        mine = picked.index_select(0, rows)[:, :, place]
        drawn = drawn.index_copy(0, rows, torch.where(mine, within, drawn.index_select(0, rows)))
    return drawn


def _head_logits(weights: Weights, hidden: Tensor) -> Tensor:
    return weights.head_logits(hidden).to(statistics_dtype(hidden.dtype))


def _opened(
    shard: Shard, weights: Weights, hidden: Tensor, wanted: Tensor
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Of each tail that is wanted, [N, n_clusters] bool: its place, the rows, its own classes' logits."""
    for place, tail in enumerate(weights.tails):
        rows = wanted[:, place].nonzero().squeeze(1)
        if rows.numel():
            yield (
                place,
                rows,
                tail.logits(hidden.index_select(0, rows)).to(statistics_dtype(hidden.dtype)),
            )


def _slots(shard: Shard, logits: Tensor) -> Tensor:
    """Logits of the clusters' slots, [N, n_clusters]; -inf for those of other ranks."""
    mine = Span(max(shard.head.start, shard.layout.shortlist_size), shard.head.stop)
    slots = logits.new_full((logits.shape[0], shard.layout.n_clusters), -torch.inf)
    if mine.size > 0:
        first = mine.start - shard.layout.shortlist_size
        slots[:, first : first + mine.size] = logits[:, logits.shape[1] - mine.size :]
    return slots


def _local_best(logits: Tensor, k: int, start: int) -> tuple[Tensor, Tensor]:
    """The k highest logits of a rank's own classes and their ranks; -1 in the places that it cannot fill."""
    values, places = logits.topk(min(k, logits.shape[1]), dim=1)
    missing = k - values.shape[1]
    return F.pad(values, (0, missing), value=-torch.inf), F.pad(places + start, (0, missing), value=-1)


def _best_of_all(values: Tensor, classes: Tensor, log_sum_exp: Tensor, k: int) -> TopK:
    """The k best of all ranks' [world, N, k], as log-probabilities."""
    values, classes = (part.transpose(0, 1).flatten(1) for part in (values, classes))
    return best_of(TopK(values - log_sum_exp, classes), k)


def _draw(logits: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """n of a rank's own classes for each row, [N, n], by their probabilities.

    Anything where there is no distribution: whether there is one, all ranks must decide alike.
    """
    if logits.shape[1] == 0:
        return torch.zeros(logits.shape[0], n, dtype=torch.int64, device=logits.device)
    p = logits.float().softmax(dim=1)
    p = torch.where(p.isfinite().all(dim=1, keepdim=True), p, 1.0)
    return torch.multinomial(p, n, replacement=True, generator=generator)


def _chosen(log_sum_exp: Tensor, draws: Tensor, chances: Tensor) -> Tensor:
    """The draw [N, n] of the rank that each chance in [0, 1) falls to, of draws [world, N, n]."""
    mass = log_sum_exp.double().softmax(dim=0)
    if not bool(mass.isfinite().all()):
        raise RuntimeError("the logits make no distribution to sample from: inf or nan")
    below = mass.cumsum(dim=0)
    below = below / below[-1]  # so that ranks without mass at the end get no chance
    rank = (chances.unsqueeze(0) >= below[:-1].unsqueeze(2)).sum(dim=0)
    return draws.gather(0, rank.unsqueeze(0)).squeeze(0)
