"""A backend for layers that are spread over ranks: each scores its own classes, and they meet once.

For a row, rank r has of each softmax it takes part in l_r, the log-sum-exp over its own classes, and z_r, the
target's logit where it holds the target and 0 elsewhere. Then

    l = log sum_r exp l_r        log p = sum_r z_r - l        d l / d l_r = exp(l_r - l)

One gather of (l_r, z_r), of head and tails together, joins them; max and sum of an all-reduce are the l_r's.
Which rows a tail scores follows from the labels, which all ranks have, so shapes agree and no rank waits for
a collective that another does not start.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.backends import Backend, eager, tiled
from zipfmax.backends.targets import check_targets, reduce_loss
from zipfmax.backends.tiled_statistics import linear_statistics, plain_statistics
from zipfmax.clusters import ClusterLayout
from zipfmax.gradients import Upstream
from zipfmax.losses import LossTerms, Scores, weighted_logits
from zipfmax.parallel.functions import columns_of_all, joined, shared
from zipfmax.parallel.fused import log_p_of_targets
from zipfmax.parallel.shard import Shard
from zipfmax.weights import TailWeights, Weights


class _Part(NamedTuple):
    """One softmax, as this rank scores it."""

    x: Tensor
    """[n, K]"""
    weight: Tensor
    """[own classes, K]"""
    bias: Tensor | None
    target: Tensor
    """[n] counted from this rank's first class; others are of another rank, or of no class."""
    coefficients: Tensor | None
    """[own classes]"""
    coefficient_sum: Tensor | None
    """Of all classes of the softmax."""
    rows: Tensor | None = None
    """[n] numbers of the rows; None for all."""
    member: Tensor | None = None
    """[n] bool: the row's target is of this tail; None where all are."""


class ShardedBackend:
    """What `Backend` asks for, of a rank's own weights. Collective: every rank calls it alike.

    Args:
        shard: this rank's part.
        inner: the backend that scores a rank's own classes.
    """

    def __init__(self, shard: Shard, inner: Backend) -> None:
        self._shard, self._inner = shard, inner
        self._inner_name = getattr(inner, "__name__", "").rpartition(".")[2]

    def refusal(self, hidden: Tensor, weights: Weights) -> str | None:
        """As the backend within."""
        return self._inner.refusal(hidden, weights)

    def nll(
        self,
        layout: ClusterLayout,
        weights: Weights,
        hidden: Tensor,
        target: Tensor,
        *,
        ignore_index: int | None = None,
        reduction: str = "mean",
        dtype: torch.dtype | None = None,
        upstream: Upstream | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each row's target, and the loss; see `Backend.nll`."""
        dtype = dtype or hidden.dtype
        counted = None if ignore_index is None else target != ignore_index
        if self._inner_name == "triton" and target.shape[0]:
            log_p = log_p_of_targets(self._shard, weights, hidden, target, ignore_index)
        else:
            log_p = self.scores(layout, weights, hidden, target, counted, LossTerms()).log_p
        return log_p.to(dtype), reduce_loss(log_p, counted, reduction).to(dtype)

    def scores(
        self,
        layout: ClusterLayout,
        weights: Weights,
        hidden: Tensor,
        target: Tensor,
        counted: Tensor | None,
        terms: LossTerms,
    ) -> Scores:
        """Scores of every row, 0 in rows that do not count: `counted` [N] bool, or None where all do."""
        check_targets(target if counted is None else target[counted], layout.n_classes, None)
        hidden, weights = self._shared(hidden, weights)
        if counted is None:
            return self._of_counted(layout, weights, hidden, target, terms)
        rows = counted.nonzero().squeeze(1)
        hidden, seen = hidden.index_select(0, rows), target.index_select(0, rows)
        scores = self._of_counted(layout, weights, hidden, seen, terms)
        return Scores(*(part.new_zeros(target.shape).index_copy(0, rows, part) for part in scores))

    def log_prob(self, layout: ClusterLayout, weights: Weights, hidden: Tensor) -> Tensor:
        """Log-probabilities of all classes, [N, n_classes], on every rank: one gather of all logits."""
        hidden, weights = self._shared(hidden, weights)
        return eager.log_prob(layout, _Gathered(self._shard, layout, weights, hidden), hidden)

    def predict(self, layout: ClusterLayout, weights: Weights, hidden: Tensor) -> Tensor:
        """Most probable class of each row, [N] int64."""
        from zipfmax.parallel.decoding import topk

        with torch.no_grad():
            return topk(self._shard, weights, hidden, 1).indices.squeeze(1)

    def _shared(self, hidden: Tensor, weights: Weights) -> tuple[Tensor, Weights]:
        """The same, with the gradients of hidden states and projections summed over the ranks."""
        projections = [t for tail in weights.tails for t in (tail.projection, tail.projection_bias)]
        there = [tensor for tensor in projections if tensor is not None]
        hidden, held = shared(self._shard, hidden, there)
        rest = iter(held)
        tails = tuple(
            TailWeights(
                next(rest),
                tail.output,
                None if tail.projection_bias is None else next(rest),
                tail.output_bias,
            )
            for tail in weights.tails
        )
        return hidden, Weights(weights.head, weights.head_bias, tails)

    def _statistics(self, part: _Part) -> tuple[Tensor, Tensor]:
        if self._inner is eager or part.weight.shape[0] == 0:
            return plain_statistics(part.x, part.weight, part.bias, part.target)
        return linear_statistics(part.x, part.weight, part.bias, part.target, tiled.workspace_bytes)

    def _of_counted(
        self, layout: ClusterLayout, weights: Weights, hidden: Tensor, target: Tensor, terms: LossTerms
    ) -> Scores:
        """Scores of rows that all count."""
        parts = self._parts(layout, weights, hidden, target, terms)
        found = [self._statistics(part) for part in parts]
        sizes = [part.x.shape[0] for part in parts]
        logits = [logit for _, logit in found]
        if terms.label_smoothing:
            logits.append(
                cast(
                    Tensor,
                    sum(weighted_logits(p.x, p.weight, p.bias, cast(Tensor, p.coefficients)) for p in parts),
                )
            )
            sizes.append(target.shape[0])
        lse, summed = joined(self._shard, torch.cat([part for part, _ in found]), torch.cat(logits))
        of_parts, of_sums = torch.split(lse, sizes[: len(parts)]), torch.split(summed, sizes)
        weighted = of_sums[-1] if terms.label_smoothing else torch.zeros_like(of_sums[0])
        log_p, squared = of_sums[0] - of_parts[0], of_parts[0].square()
        for part, log_sum_exp, logit in zip(parts[1:], of_parts[1:], of_sums[1:], strict=False):
            within, square = logit - log_sum_exp, log_sum_exp.square()
            if part.rows is not None:
                log_p = log_p.index_add(0, part.rows, within)
                squared = squared.index_add(0, part.rows, square)
            elif part.member is not None:
                log_p = log_p + torch.where(part.member, within, 0)
                squared = squared + torch.where(part.member, square, 0)
        for part, log_sum_exp in zip(parts, of_parts, strict=True):
            if part.coefficient_sum is not None:
                weighted = weighted - part.coefficient_sum * log_sum_exp
        return Scores(log_p, weighted, squared)

    def _parts(
        self, layout: ClusterLayout, weights: Weights, hidden: Tensor, target: Tensor, terms: LossTerms
    ) -> list[_Part]:
        """The head, then the tails: those with targets, or with label smoothing every one for every row."""
        of_head, of_classes = terms.coefficients(layout, hidden)
        mine = self._shard.head
        head_target, tails = target, []
        for tail, w, span in zip(layout, weights.tails, self._shard.tails, strict=True):
            member = (target >= tail.start) & (target < tail.stop)
            head_target = torch.where(member, tail.slot, head_target)
            local = target - (tail.start + span.start)
            if of_classes is not None:
                coefficients = of_classes[tail.start : tail.stop]
                own = coefficients[span.start : span.stop], coefficients.sum()
                x = F.linear(hidden, w.projection, w.projection_bias)
                tails.append(_Part(x, w.output, w.output_bias, local, *own, None, member))
                continue
            rows = member.nonzero().squeeze(1)
            if rows.numel():
                x = F.linear(hidden.index_select(0, rows), w.projection, w.projection_bias)
                local = local.index_select(0, rows)
                tails.append(_Part(x, w.output, w.output_bias, local, None, None, rows))
        own_head: tuple[Tensor | None, Tensor | None] = (None, None)
        if of_head is not None:
            own_head = of_head[mine.start : mine.stop], of_head.sum()
        head = _Part(hidden, weights.head, weights.head_bias, head_target - mine.start, *own_head)
        return [head, *tails]


class _Gathered:
    """Scores by the logits of all ranks, as `zipfmax.weights.Scorer` asks: for one batch, in one gather."""

    def __init__(self, shard: Shard, layout: ClusterLayout, weights: Weights, hidden: Tensor) -> None:
        own = [weights.head_logits(hidden), *(tail.logits(hidden) for tail in weights.tails)]
        sizes = [layout.head_size, *(tail.size for tail in layout)]
        widths = [-(-size // shard.world) for size in sizes]
        padded = [F.pad(z, (0, width - z.shape[1])) for z, width in zip(own, widths, strict=True)]
        everyone = torch.split(columns_of_all(shard, torch.cat(padded, dim=1)), widths, dim=2)
        # Only the last ranks' columns are padded, so what is beyond the size is padding.
        self._head, *tails = (z.flatten(1)[:, :size] for z, size in zip(everyone, sizes, strict=True))
        self.tails = [_Logits(z) for z in tails]

    def head_logits(self, hidden: Tensor) -> Tensor:
        return self._head


class _Logits(NamedTuple):
    values: Tensor

    def logits(self, hidden: Tensor) -> Tensor:
        return self.values
