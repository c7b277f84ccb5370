"""All classes of some rows, block after block of rows: log-probabilities, and the most probable class."""

from __future__ import annotations

import torch
from torch import Tensor

from zipfmax.backends.tiled_cluster import ClusterSoftmax
from zipfmax.backends.tiled_products import linear
from zipfmax.clusters import ClusterLayout
from zipfmax.weights import Weights


def log_prob_of_classes(
    layout: ClusterLayout, weights: Weights, hidden: Tensor, workspace_bytes: int
) -> Tensor:
    """Log-probabilities of all classes, [N, n_classes] in hidden's dtype; not differentiable."""
    n_rows, shortlist = hidden.shape[0], layout.shortlist_size
    result = hidden.new_empty(n_rows, layout.n_classes)
    head = ClusterSoftmax(weights.head, weights.head_bias, n_rows, workspace_bytes)
    slots = hidden.new_empty(n_rows, layout.n_clusters, dtype=head.statistics_dtype)
    for rows in head.blocks(n_rows):
        for classes, z in head.log_probabilities(hidden[rows].contiguous()):
            stop = min(classes.stop, shortlist)
            if classes.start < shortlist:
                result[rows, classes.start : stop] = z[:, : stop - classes.start]
            if classes.stop > shortlist:
                first = max(classes.start, shortlist)
                slots[rows, first - shortlist : classes.stop - shortlist] = z[:, first - classes.start :]

    for tail, w in zip(layout, weights.tails, strict=True):
        softmax = ClusterSoftmax(w.output, w.output_bias, n_rows, workspace_bytes)
        for rows in softmax.blocks(n_rows):
            x = linear(hidden[rows], w.projection, w.projection_bias)
            slot = slots[rows, tail.index, None]
            for classes, z in softmax.log_probabilities(x):
                result[rows, tail.start + classes.start : tail.start + classes.stop] = z.add_(slot)
    return result


def most_probable_class(
    layout: ClusterLayout, weights: Weights, hidden: Tensor, workspace_bytes: int
) -> Tensor:
    """Most probable class of each row, [N] int64.

    A class of tail i is at most as probable as the tail's slot in the head. So a tail is computed only for
    the rows whose best class so far is less probable than its slot, and most rows need none. Probabilities
    are compared by their logits in the head, which differ from their logarithms by the same number.
    """
    n_rows, shortlist = hidden.shape[0], layout.shortlist_size
    head = ClusterSoftmax(weights.head, weights.head_bias, n_rows, workspace_bytes)
    highest = hidden.new_full((n_rows,), -torch.inf, dtype=head.statistics_dtype)
    best = torch.zeros(n_rows, dtype=torch.int64, device=hidden.device)
    slots = hidden.new_empty(n_rows, layout.n_clusters, dtype=head.statistics_dtype)
    for rows in head.blocks(n_rows):
        for classes, z in head.logits(hidden[rows].contiguous()):
            words = max(0, min(classes.stop, shortlist) - classes.start)
            if words:
                _keep_higher(highest[rows], best[rows], z[:, :words], classes.start)
            if classes.stop > shortlist:
                first = max(classes.start, shortlist)
                slots[rows, first - shortlist : classes.stop - shortlist] = z[:, words:]

    for tail, w in zip(layout, weights.tails, strict=True):
        slot = slots[:, tail.index]
        # A NaN anywhere in the head makes every comparison false; torch's argmax would pick the NaN.
        members = (slot > highest).nonzero().squeeze(1)
        softmax = ClusterSoftmax(w.output, w.output_bias, members.shape[0], workspace_bytes)
        for block in softmax.blocks(members.shape[0]):
            chosen = members[block]
            x = linear(hidden.index_select(0, chosen), w.projection, w.projection_bias)
            of_cluster = slot.index_select(0, chosen)
            value, label = highest.index_select(0, chosen) - of_cluster, best.index_select(0, chosen)
            for classes, z in softmax.log_probabilities(x):
                _keep_higher(value, label, z, tail.start + classes.start)
            highest.index_copy_(0, chosen, value + of_cluster)
            best.index_copy_(0, chosen, label)
    return best


def _keep_higher(highest: Tensor, best: Tensor, z: Tensor, start: int) -> None:
    """Where a row of z exceeds `highest`, put its maximum there and the class in `best`."""
    value, label = z.max(dim=1)
    better = value > highest
    highest.copy_(torch.where(better, value, highest))
    best.copy_(torch.where(better, label + start, best))
