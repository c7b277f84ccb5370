"""The specification: adaptive softmax in plain, differentiable torch operations.

log p(y | h) = log_softmax(head(h))[y]                                   for y in the shortlist,
             = log_softmax(head(h))[slot_i] + log_softmax(tail_i(h))[y]  for y in tail i

(Grave et al. 2016, section 4). Every other backend is checked against this file's meaning; this one is
checked against a float64 definition that never touches torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.backends.targets import check_targets, reduce_loss
from zipfmax.clusters import ClusterLayout
from zipfmax.gradients import Upstream
from zipfmax.weights import TailWeights, Weights


def refusal(hidden: Tensor, weights: Weights) -> str | None:
    """Serves any device and any floating dtype that torch's linear serves."""
    return None


def nll(
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
    """Log-probability of each row's target, and the loss; see `Backend.nll`.

    Reads the targets on the host, as torch.nn does: one synchronisation a cluster on a GPU. Clusters
    without targets take no part, so their weights' gradients stay None.
    """
    counted = check_targets(target, layout.n_classes, ignore_index)
    if counted is None:
        output = _target_log_prob(layout, weights, hidden, target)
    else:
        # Selecting the rows, not masking their results, keeps a NaN in an ignored row out of the gradients.
        rows = counted.nonzero().squeeze(1)
        seen = _target_log_prob(layout, weights, hidden.index_select(0, rows), target.index_select(0, rows))
        output = seen.new_zeros(target.shape).index_copy(0, rows, seen)
    loss = reduce_loss(output, counted, reduction)
    return output.to(dtype or hidden.dtype), loss.to(dtype or hidden.dtype)


def log_prob(layout: ClusterLayout, weights: Weights, hidden: Tensor) -> Tensor:
    """Log-probabilities of all classes, [N, n_classes]; see `Backend.log_prob`."""
    head = head_log_prob(weights, hidden)
    parts = [head[:, : layout.shortlist_size]]
    for tail, tail_weights in zip(layout, weights.tails, strict=True):
        parts.append(tail_log_prob(tail_weights, hidden) + head[:, tail.slot, None])
    return torch.cat([part.to(hidden.dtype) for part in parts], dim=1)


def predict(layout: ClusterLayout, weights: Weights, hidden: Tensor) -> Tensor:
    """Most probable class of each row, [N] int64; see `Backend.predict`.

    A row whose head prefers a shortlist word needs no tail: no class of a tail can beat its slot.
    """
    if torch.compiler.is_compiling():  # a graph cannot branch on which rows need a tail
        return log_prob(layout, weights, hidden).argmax(dim=1)
    best = F.linear(hidden, weights.head, weights.head_bias).argmax(dim=1)
    rows = (best >= layout.shortlist_size).nonzero().squeeze(1)
    if rows.numel():
        undecided = log_prob(layout, weights, hidden.index_select(0, rows)).argmax(dim=1)
        best = best.index_copy(0, rows, undecided)
    return best


def head_log_prob(weights: Weights, hidden: Tensor) -> Tensor:
    """Log-probabilities of the shortlist's classes and of the clusters' slots, [N, head_size]."""
    return _log_softmax(F.linear(hidden, weights.head, weights.head_bias))


def tail_log_prob(tail: TailWeights, hidden: Tensor) -> Tensor:
    """Log-probabilities of a cluster's classes given the cluster, [N, cluster size]."""
    projected = F.linear(hidden, tail.projection, tail.projection_bias)
    return _log_softmax(F.linear(projected, tail.output, tail.output_bias))


def _log_softmax(logits: Tensor) -> Tensor:
    """In float32 at least: the sum of a head's and a tail's is rounded once, by who wants it narrower."""
    return F.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _target_log_prob(layout: ClusterLayout, weights: Weights, hidden: Tensor, target: Tensor) -> Tensor:
    """log p(target | hidden), [N], for targets that are all in [0, n_classes)."""
    # In the head a shortlist label is scored by its own row and a tail label by its cluster's slot.
    head_target = target
    for tail in layout:
        member = (target >= tail.start) & (target < tail.stop)
        head_target = head_target.masked_fill(member, tail.slot)
    output = head_log_prob(weights, hidden).gather(1, head_target.unsqueeze(1)).squeeze(1)

    for tail, tail_weights in zip(layout, weights.tails, strict=True):
        rows = ((target >= tail.start) & (target < tail.stop)).nonzero().squeeze(1)
        if rows.numel():
            within = tail_log_prob(tail_weights, hidden.index_select(0, rows))
            local = target.index_select(0, rows) - tail.start
            output = output.index_add(0, rows, within.gather(1, local.unsqueeze(1)).squeeze(1))
    return output
