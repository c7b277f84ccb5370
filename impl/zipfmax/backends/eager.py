"""The specification: adaptive softmax in plain, differentiable torch operations.

log p(y | h) = log_softmax(head(h))[y]                                   for y in the shortlist,
             = log_softmax(head(h))[slot_i] + log_softmax(tail_i(h))[y]  for y in tail i

(Grave et al. 2016, section 4). Every other backend is checked against this file's meaning; this one is
checked against a float64 definition that never touches torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.backends.context import cannot_read
from zipfmax.backends.targets import check_targets, reduce_loss
from zipfmax.clusters import ClusterLayout
from zipfmax.gradients import Upstream
from zipfmax.weights import Scorer, TailScorer, Weights

scores = None
"""As `Backend` has it: computed by `zipfmax.losses`."""


def refusal(hidden: Tensor, weights: Weights) -> str | None:
    """Serves any device and any floating dtype that torch's linear serves."""
    return None


def nll(
    layout: ClusterLayout,
    scorer: Scorer,
    hidden: Tensor,
    target: Tensor,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
    dtype: torch.dtype | None = None,
    upstream: Upstream | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's target, and the loss; see `Backend.nll`.

    Reads the targets on the host, as torch.nn does: one synchronisation a cluster on a GPU. Clusters
    without targets take no part, so their weights' gradients stay None. Where the targets cannot be read
    (under vmap, in a recording, in an exported program) every row meets every cluster, and a target out of
    range gives NaN instead of an error.
    """
    dtype = dtype or hidden.dtype
    if cannot_read(target):
        counted = None if ignore_index is None else target != ignore_index
        output = _target_log_prob_of_all_clusters(layout, scorer, hidden, target, counted)
        return output.to(dtype), reduce_loss(output, counted, reduction).to(dtype)
    counted = check_targets(target, layout.n_classes, ignore_index)
    if counted is None:
        output = _target_log_prob(layout, scorer, hidden, target)
    else:
        # Selecting the rows, not masking their results, keeps a NaN in an ignored row out of the gradients.
        rows = counted.nonzero().squeeze(1)
        seen = _target_log_prob(layout, scorer, hidden.index_select(0, rows), target.index_select(0, rows))
        output = seen.new_zeros(target.shape).index_copy(0, rows, seen)
    return output.to(dtype), reduce_loss(output, counted, reduction).to(dtype)


def gradients(
    bounds: Sequence[int],
    weights: Weights,
    hidden: Tensor,
    target: Tensor,
    upstream: tuple[Tensor | None, Tensor | None],
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
    dtype: torch.dtype | None = None,
) -> list[Tensor | None]:
    """Gradients of `nll`'s results, for the backward of another backend that is differentiated or batched.

    Args:
        bounds: where the clusters begin and end, as `ClusterLayout.bounds` has them.
        weights, hidden, target, ignore_index, reduction, dtype: as `nll` takes them.
        upstream: gradients of output and of loss, None for none.

    Returns:
        of hidden and of each of `weights.tensors()`; None for those that need none, and for the weights of
        clusters without targets. Functions that autograd can differentiate where grad mode is on.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        results = nll(
            _layout(bounds, weights),
            weights,
            hidden,
            target,
            ignore_index=ignore_index,
            reduction=reduction,
            dtype=dtype,
        )
    return _gradients_of(results, upstream, (hidden, *weights.tensors()), create_graph)


def log_prob_gradients(
    bounds: Sequence[int], weights: Weights, hidden: Tensor, upstream: Tensor
) -> list[Tensor | None]:
    """Gradients of `log_prob`, [N, n_classes], as `gradients` gives those of `nll`."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        results = (log_prob(_layout(bounds, weights), weights, hidden),)
    return _gradients_of(results, (upstream,), (hidden, *weights.tensors()), create_graph)


def zeros_for_absent(tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients, with zeros for tensors that need one and have none: weights of clusters without targets."""
    return [
        torch.zeros_like(tensor) if gradient is None and tensor.requires_grad else gradient
        for tensor, gradient in zip(tensors, gradients, strict=True)
    ]


def _layout(bounds: Sequence[int], weights: Weights) -> ClusterLayout:
    sizes = tuple(tail.projection.shape[0] for tail in weights.tails)
    return ClusterLayout(weights.head.shape[1], bounds[-1], tuple(bounds[1:-1]), projection_sizes=sizes)


def _gradients_of(
    results: Sequence[Tensor],
    upstream: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    create_graph: bool,
) -> list[Tensor | None]:
    seeds = [(r, g) for r, g in zip(results, upstream, strict=True) if g is not None]
    found = iter(
        torch.autograd.grad(
            [result for result, _ in seeds],
            [tensor for tensor in tensors if tensor.requires_grad],
            [gradient for _, gradient in seeds],
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return [next(found) if tensor.requires_grad else None for tensor in tensors]


def log_prob(layout: ClusterLayout, scorer: Scorer, hidden: Tensor) -> Tensor:
    """Log-probabilities of all classes, [N, n_classes]; see `Backend.log_prob`."""
    return log_prob_given_head(layout, scorer, hidden, head_log_prob(scorer, hidden))


def predict(layout: ClusterLayout, scorer: Scorer, hidden: Tensor) -> Tensor:
    """Most probable class of each row, [N] int64; see `Backend.predict`.

    A row whose head prefers a shortlist word needs no tail: no class of a tail can beat its slot.
    """
    logits = scorer.head_logits(hidden)
    # A graph cannot branch on which rows need a tail.
    if torch.compiler.is_compiling() or cannot_read(logits):
        return log_prob_given_head(layout, scorer, hidden, _log_softmax(logits)).argmax(dim=1)
    best = logits.argmax(dim=1)
    # On a CPU the question whether any row does is cheaper than which.
    if logits.is_cpu and best.numel() and int(best.max()) < layout.shortlist_size:
        return best
    rows = (best >= layout.shortlist_size).nonzero().squeeze(1)
    if rows.numel():
        head = _log_softmax(logits.index_select(0, rows))
        undecided = log_prob_given_head(layout, scorer, hidden.index_select(0, rows), head)
        best = best.index_copy(0, rows, undecided.argmax(dim=1))
    return best


def head_log_prob(scorer: Scorer, hidden: Tensor) -> Tensor:
    """Log-probabilities of the shortlist's classes and of the clusters' slots, [N, head_size]."""
    return _log_softmax(scorer.head_logits(hidden))


def tail_log_prob(tail: TailScorer, hidden: Tensor) -> Tensor:
    """Log-probabilities of a cluster's classes given the cluster, [N, cluster size]."""
    return _log_softmax(tail.logits(hidden))


def log_prob_given_head(layout: ClusterLayout, scorer: Scorer, hidden: Tensor, head: Tensor) -> Tensor:
    """Log-probabilities of all classes, [N, n_classes], from what `head_log_prob` gave."""
    parts = [head[:, : layout.shortlist_size]]
    for tail, tail_scorer in zip(layout, scorer.tails, strict=True):
        parts.append(tail_log_prob(tail_scorer, hidden) + head[:, tail.slot, None])
    return torch.cat([part.to(hidden.dtype) for part in parts], dim=1)


def _log_softmax(logits: Tensor) -> Tensor:
    """In float32 at least: the sum of a head's and a tail's is rounded once, by who wants it narrower."""
    return F.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _target_log_prob(layout: ClusterLayout, scorer: Scorer, hidden: Tensor, target: Tensor) -> Tensor:
    """log p(target | hidden), [N], for targets that are all in [0, n_classes).

    Tails before the head, as torch.nn calls them: modules that draw random numbers draw the same.
    """
    # In the head a shortlist label is scored by its own row and a tail label by its cluster's slot.
    head_target = target
    found = []
    for tail, tail_scorer in zip(layout, scorer.tails, strict=True):
        member = (target >= tail.start) & (target < tail.stop)
        head_target = head_target.masked_fill(member, tail.slot)
        rows = member.nonzero().squeeze(1)
        if rows.numel():
            within = tail_log_prob(tail_scorer, hidden.index_select(0, rows))
            local = target.index_select(0, rows) - tail.start
            found.append((rows, within.gather(1, local.unsqueeze(1)).squeeze(1)))
    output = head_log_prob(scorer, hidden).gather(1, head_target.unsqueeze(1)).squeeze(1)
    for rows, within in found:
        output = output.index_add(0, rows, within)
    return output


def _target_log_prob_of_all_clusters(
    layout: ClusterLayout, scorer: Scorer, hidden: Tensor, target: Tensor, counted: Tensor | None
) -> Tensor:
    """The same, with no branch on a value: 0 in rows that do not count, NaN for a target out of range."""
    if counted is not None:
        hidden = torch.where(counted.unsqueeze(1), hidden, 0)  # keeps a NaN there out of the gradients
        target = torch.where(counted, target, 0)
    inside = (target >= 0) & (target < layout.n_classes)
    head_target = torch.where(inside, target, 0)
    within = hidden.new_zeros(()).float()
    for tail, tail_scorer in zip(layout, scorer.tails, strict=True):
        member = (target >= tail.start) & (target < tail.stop)
        head_target = torch.where(member, tail.slot, head_target)
        local = (target - tail.start).clamp(0, tail.size - 1)
        scored = tail_log_prob(tail_scorer, hidden).gather(1, local.unsqueeze(1)).squeeze(1)
        within = within + torch.where(member, scored, 0)
    output = head_log_prob(scorer, hidden).gather(1, head_target.unsqueeze(1)).squeeze(1) + within
    output = torch.where(inside, output, torch.nan)
    return output if counted is None else torch.where(counted, output, 0)
