"""The loss with what people add to it: class weights, label smoothing and a z-loss.

For a row with target y, class weights w (1 without), smoothing e over C classes, and a z-loss factor z,

    loss = w[y] (z (lse_head^2 + lse_tail^2) - (1 - e) log p(y)) - e / C sum over classes c of w[c] log p(c)

where lse are the log-sum-exps of the head's logits and, for y in a tail, of that tail's. Rows are summed, or
divided by the sum of w[y] for the mean: `torch.nn.functional.cross_entropy`'s formula, to which its
`label_smoothing` and `weight` reduce for z = 0. The z-loss is PaLM's (Chowdhery et al. 2022, section 5) for
each softmax that the row's probability is made of.

The sum over all classes needs no class's log-probability by itself: within a softmax it is
(sum of w[c] W[c]) x - (sum of w) lse, so tiled and triton hold one tile of logits at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.backends import Backend, eager, tiled
from zipfmax.backends.context import cannot_read, is_traced
from zipfmax.backends.targets import check_targets
from zipfmax.backends.tiled_statistics import linear_statistics
from zipfmax.clusters import ClusterLayout
from zipfmax.gradients import Upstream
from zipfmax.submodules import Called
from zipfmax.weights import TailScorer, TailWeights, Weights


class LossTerms(NamedTuple):
    """What is added to the negative log-likelihood."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    weight: Tensor | None = None
    """[n_classes], by rank."""

    @property
    def needs_log_sum_exp(self) -> bool:
        """Whether the log-probabilities of the targets are not enough."""
        return self.label_smoothing > 0 or self.z_loss > 0

    def coefficients(self, layout: ClusterLayout, hidden: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What weighs the log-probabilities in the head [head_size] and of all classes [n_classes].

        None without label smoothing: nothing else sums over them. A slot weighs as much as its cluster.
        """
        if not self.label_smoothing:
            return None, None
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        if self.weight is None:
            classes = torch.ones(layout.n_classes, dtype=dtype, device=hidden.device)
        else:
            classes = self.weight.to(dtype)
        sums = [classes[tail.start : tail.stop].sum() for tail in layout]
        return torch.cat([classes[: layout.shortlist_size], torch.stack(sums)]), classes


class Scores(NamedTuple):
    """Of each row, [N], in float32 at least."""

    log_p: Tensor
    """Of the target."""
    weighted_log_p: Tensor
    """Sum over the classes of coefficient times log p; 0 without coefficients."""
    squared_lse: Tensor


def check_terms(n_classes: int, label_smoothing: float, z_loss: float, weight: Tensor | None) -> None:
    """Raise ValueError unless a loss can have these, TypeError for another type."""
    for name, number in (("label_smoothing", label_smoothing), ("z_loss", z_loss)):
        if not hasattr(number, "__float__"):
            raise TypeError(f"{name} should be a number, got {number!r}")
    if weight is not None and not isinstance(weight, Tensor):
        raise TypeError(f"weight should be a Tensor, but found {type(weight).__name__}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    if not 0.0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss should be a finite number that is not negative, got {z_loss}")
    if weight is not None and weight.shape != (n_classes,):
        raise ValueError(
            f"weight tensor should be defined either for all {n_classes} classes or no classes "
            f"but got weight tensor of shape: {list(weight.shape)}"
        )


def nll_with_terms(
    backend: Backend,
    layout: ClusterLayout,
    scorer: Weights | Called,
    hidden: Tensor,
    target: Tensor,
    terms: LossTerms,
    *,
    ignore_index: int | None,
    reduction: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's target, and the loss; otherwise as `Backend.nll`."""
    counted = None if ignore_index is None else target != ignore_index
    if terms.needs_log_sum_exp:
        if backend.scores is not None:
            scores = cast(Scores, backend.scores(layout, scorer, hidden, target, counted, terms))
        else:
            in_tiles = isinstance(scorer, Weights) and backend is not eager and not is_traced(hidden)
            scores = _scores(layout, scorer, hidden, target, counted, terms, in_tiles)
    else:
        statistics = torch.promote_types(hidden.dtype, torch.float32)
        output, _ = backend.nll(
            layout,
            scorer,  # type: ignore[arg-type]  # eager takes submodules too
            hidden,
            target,
            ignore_index=ignore_index,
            reduction="none",
            dtype=statistics,
            upstream=Upstream("output"),
        )
        scores = Scores(output, output.new_zeros(()), output.new_zeros(()))
    loss = (terms.label_smoothing - 1) * scores.log_p + terms.z_loss * scores.squared_lse
    shares = None
    if terms.weight is not None:
        inside = (target >= 0) & (target < layout.n_classes)
        shares = terms.weight.to(loss.dtype).index_select(0, torch.where(inside, target, 0))
        shares = torch.where(inside if counted is None else counted & inside, shares, 0)
        loss = loss * shares
    if terms.label_smoothing:
        loss = loss - terms.label_smoothing / layout.n_classes * scores.weighted_log_p
    if reduction == "none":
        return scores.log_p.to(dtype), loss.to(dtype)
    total = loss.sum()
    if reduction == "mean":
        if shares is not None:
            total = total / shares.sum()
        else:
            total = total / (target.shape[0] if counted is None else counted.sum())
    return scores.log_p.to(dtype), total.to(dtype)


def _scores(
    layout: ClusterLayout,
    scorer: Weights | Called,
    hidden: Tensor,
    target: Tensor,
    counted: Tensor | None,
    terms: LossTerms,
    in_tiles: bool,
) -> Scores:
    """Scores of every row, 0 in rows that do not count; NaN for targets out of range that cannot raise."""
    if torch.compiler.is_compiling() or cannot_read(target):
        if counted is not None:
            hidden = torch.where(counted.unsqueeze(1), hidden, 0)
            target = torch.where(counted, target, 0)
        inside = (target >= 0) & (target < layout.n_classes)
        scores = _scores_of_counted(
            layout, scorer, hidden, torch.where(inside, target, 0), terms, in_tiles, True
        )
        scores = Scores(torch.where(inside, scores.log_p, torch.nan), *scores[1:])
        if counted is None:
            return scores
        return Scores(*(torch.where(counted, part, 0) for part in scores))
    check_targets(target if counted is None else target[counted], layout.n_classes, None)
    every_row = terms.label_smoothing > 0
    if counted is None:
        return _scores_of_counted(layout, scorer, hidden, target, terms, in_tiles, every_row)
    rows = counted.nonzero().squeeze(1)
    hidden, seen = hidden.index_select(0, rows), target.index_select(0, rows)
    scores = _scores_of_counted(layout, scorer, hidden, seen, terms, in_tiles, every_row)
    return Scores(*(part.new_zeros(target.shape).index_copy(0, rows, part) for part in scores))


def _scores_of_counted(
    layout: ClusterLayout,
    scorer: Weights | Called,
    hidden: Tensor,
    target: Tensor,
    terms: LossTerms,
    in_tiles: bool,
    every_row: bool,
) -> Scores:
    """Scores of rows that all count; `every_row` meets every cluster, or else only that of its target."""
    head_coefficients, coefficients = terms.coefficients(layout, hidden)
    found: list[tuple[Tensor | None, Tensor, Scores]] = []
    head_target = target
    tail_scorers: Sequence[TailScorer] = scorer.tails
    for tail, tail_scorer in zip(layout, tail_scorers, strict=True):
        member = (target >= tail.start) & (target < tail.stop)
        head_target = torch.where(member, tail.slot, head_target)
        rows = None if every_row else member.nonzero().squeeze(1)
        if rows is not None and rows.numel() == 0:
            continue
        x, local = hidden, (target - tail.start).clamp(0, tail.size - 1)
        if rows is not None:
            x, local, member = (tensor.index_select(0, rows) for tensor in (hidden, local, member))
        part = None if coefficients is None else coefficients[tail.start : tail.stop]
        if in_tiles:
            assert isinstance(tail_scorer, TailWeights)
            projected = F.linear(x, tail_scorer.projection, tail_scorer.projection_bias)
            scores = _in_tiles(projected, tail_scorer.output, tail_scorer.output_bias, local, part)
        else:
            scores = _of_logits(tail_scorer.logits(x), local, part)
        found.append((rows, member, scores))
    if in_tiles:
        assert isinstance(scorer, Weights)
        total = _in_tiles(hidden, scorer.head, scorer.head_bias, head_target, head_coefficients)
    else:
        total = _of_logits(scorer.head_logits(hidden), head_target, head_coefficients)
    for rows, member, (log_p, weighted, squared) in found:
        log_p, squared = torch.where(member, log_p, 0), torch.where(member, squared, 0)
        if rows is None:
            parts = zip(total, (log_p, weighted, squared), strict=True)
            total = Scores(*(whole + part for whole, part in parts))
        else:
            total = Scores(
                total.log_p.index_add(0, rows, log_p),
                total.weighted_log_p,
                total.squared_lse.index_add(0, rows, squared),
            )
    return total


def _of_logits(logits: Tensor, target: Tensor, coefficients: Tensor | None) -> Scores:
    """Scores under one softmax, from its logits [n, V]."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_p = F.log_softmax(logits, dim=1, dtype=dtype)
    of_target = log_p.gather(1, target.unsqueeze(1)).squeeze(1)
    squared = logits.to(dtype).logsumexp(dim=1).square()
    if coefficients is None:
        return Scores(of_target, torch.zeros_like(of_target), squared)
    return Scores(of_target, (log_p * coefficients).sum(dim=1), squared)


def _in_tiles(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, coefficients: Tensor | None
) -> Scores:
    """The same from x [n, K], weight [V, K] and bias [V], with a tile of logits in memory at a time."""
    log_sum_exp, logit = linear_statistics(x, weight, bias, target, tiled.workspace_bytes)
    weighted = torch.zeros_like(logit)
    if coefficients is not None:
        weighted = weighted_logits(x, weight, bias, coefficients) - coefficients.sum() * log_sum_exp
    return Scores(logit - log_sum_exp, weighted, log_sum_exp.square())


def weighted_logits(x: Tensor, weight: Tensor, bias: Tensor | None, coefficients: Tensor) -> Tensor:
    """Sum over the classes of coefficient [V] times logit, [n], without the logits."""
    dtype = coefficients.dtype
    total = x.to(dtype) @ (coefficients @ weight.to(dtype))
    return total if bias is None else total + (coefficients * bias.to(dtype)).sum()
