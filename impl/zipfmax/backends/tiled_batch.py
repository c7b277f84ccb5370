"""One batch through head and tails: log p of every target, and the gradients that are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zipfmax.backends.targets import check_targets
from zipfmax.backends.tiled_cluster import ClusterSoftmax
from zipfmax.backends.tiled_gradient import TiledWeightGradient, result_of, statistics_dtype
from zipfmax.backends.tiled_products import linear
from zipfmax.backends.tiled_workspace import empty
from zipfmax.weights import TailWeights, Weights


@dataclass(frozen=True)
class ClusterRows:
    """The rows that one cluster scores."""

    rows: Tensor | None
    """[n] row numbers; None for all rows in their order."""
    target: Tensor
    """[n] class within the cluster."""


@dataclass(frozen=True)
class Batch:
    """Targets partitioned once: the head's part, and the part of each tail that has targets."""

    n_rows: int
    counted: Tensor | None
    """[N] bool: not ignored; None where all rows count."""
    head: ClusterRows
    tails: tuple[ClusterRows | None, ...]

    @property
    def n_counted(self) -> int:
        """Rows that are not ignored."""
        return self.head.target.shape[0]

    @classmethod
    def route(cls, bounds: Sequence[int], target: Tensor, ignore_index: int | None) -> Batch:
        """Sort the rows by cluster.

        Args:
            bounds: `ClusterLayout.bounds`.
            target: [N], int64.
            ignore_index: as `Backend.nll` takes it.

        Raises:
            RuntimeError: a target out of range; see `check_targets`.
        """
        counted = check_targets(target, bounds[-1], ignore_index)
        rows = None if counted is None else counted.nonzero().squeeze(1)
        label = target if rows is None else target.index_select(0, rows)
        label = label.contiguous()  # or bucketize warns
        cutoffs = torch.tensor(bounds[1:-1], device=target.device)
        part = torch.bucketize(label, cutoffs, right=True)
        head_target = torch.where(part == 0, label, part + (bounds[1] - 1))
        counts = torch.bincount(part, minlength=len(bounds) - 1).tolist()
        order = part.argsort(stable=True)
        tails: list[ClusterRows | None] = []
        for start, members in zip(bounds[1:-1], torch.split(order, counts)[1:], strict=True):
            if members.shape[0] == 0:
                tails.append(None)
                continue
            local = label.index_select(0, members) - start
            tails.append(ClusterRows(members if rows is None else rows.index_select(0, members), local))
        return cls(target.shape[0], counted, ClusterRows(rows, head_target), tuple(tails))


def log_p_and_gradients(
    weights: Weights,
    hidden: Tensor,
    batch: Batch,
    workspace_bytes: int,
    scale: float | Tensor | None = None,
    wanted: Sequence[bool] = (),
) -> tuple[Tensor, list[Tensor | None]]:
    """log p of each row's target, and gradients of sum(scale * log p).

    Args:
        weights: the operator.
        hidden: [N, d].
        batch: its targets.
        workspace_bytes: bytes of logits held at a time.
        scale: one number, or [N] in the statistics' dtype; None takes no gradients.
        wanted: for hidden and for each of `weights.tensors()`, whether its gradient is wanted.

    Returns:
        [N] in the statistics' dtype, 0 in rows that do not count; and the gradients in the order of `wanted`,
        None for what is not wanted and for the weights of clusters without targets.
    """
    flags = iter(wanted if scale is not None else [False] * (1 + len(weights.tensors())))
    job = _Job(hidden, batch, workspace_bytes, scale, wants_hidden=next(flags))
    gradients = [job.grad_hidden]

    def wants(*tensors: Tensor | None) -> list[bool]:
        return [tensor is not None and next(flags) for tensor in tensors]

    def collect(tensors: Sequence[Tensor | None], found: Sequence[Tensor | None]) -> None:
        gradients.extend(g for t, g in zip(tensors, found, strict=True) if t is not None)

    head = (weights.head, weights.head_bias)
    collect(head, job.head(*head, *wants(*head)))
    for part, tail in zip(batch.tails, weights.tails, strict=True):
        tail_wants = wants(*tail)
        collect(tail, job.tail(tail, part, tail_wants) if part is not None else [None] * 4)
    return 0 - job.nll, gradients


class _Job:
    """What head and tails add to: -log p, and the gradient of the hidden states."""

    def __init__(
        self,
        hidden: Tensor,
        batch: Batch,
        workspace_bytes: int,
        scale: float | Tensor | None,
        *,
        wants_hidden: bool,
    ) -> None:
        self._hidden, self._batch = hidden, batch
        self._workspace_bytes, self._scale = workspace_bytes, scale
        self.nll = hidden.new_zeros(batch.n_rows, dtype=statistics_dtype(hidden.dtype))
        self.grad_hidden: Tensor | None = None
        if wants_hidden:
            self.grad_hidden = empty(tuple(hidden.shape), hidden.dtype, hidden.device)
            if batch.counted is not None:
                self.grad_hidden.zero_()

    def head(
        self, weight: Tensor, bias: Tensor | None, wants_weight: bool, wants_bias: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Add the head's share; its gradients by weight and bias."""
        rows, target = self._batch.head.rows, self._batch.head.target
        softmax = ClusterSoftmax(
            weight,
            bias,
            target.shape[0],
            self._workspace_bytes,
            wants_input=self.grad_hidden is not None,
            wants_weight=wants_weight,
            wants_bias=wants_bias,
            narrow=True,
        )
        for block in softmax.blocks(target.shape[0]):
            if rows is None:
                x, scale = self._hidden[block].contiguous(), self._scale
                scale = scale[block] if isinstance(scale, Tensor) else scale
                out = None if self.grad_hidden is None else self.grad_hidden[block]
                self.nll[block], _ = softmax(x, target[block], scale, out)
            else:
                members = rows[block]
                x, scale = self._rows(members)
                nll, grad = softmax(x, target[block], scale)
                self.nll.index_copy_(0, members, nll)
                if grad is not None and self.grad_hidden is not None:
                    self.grad_hidden.index_copy_(0, members, grad)
        return softmax.gradients()

    def tail(self, tail: TailWeights, part: ClusterRows, wants: Sequence[bool]) -> list[Tensor | None]:
        """Add a tail's share; its gradients in the order of `TailWeights`."""
        assert part.rows is not None
        wants_projection, wants_output, wants_projection_bias, wants_output_bias = wants
        wants_projected = self.grad_hidden is not None or wants_projection or wants_projection_bias
        n_rows = part.target.shape[0]
        softmax = ClusterSoftmax(
            tail.output,
            tail.output_bias,
            n_rows,
            self._workspace_bytes,
            wants_input=wants_projected,
            wants_weight=wants_output,
            wants_bias=wants_output_bias,
            narrow=True,
        )
        projection = TiledWeightGradient(tail.projection) if wants_projection else None
        projection_bias = (
            TiledWeightGradient(tail.projection_bias)
            if wants_projection_bias and tail.projection_bias is not None
            else None
        )
        for block in softmax.blocks(n_rows):
            members = part.rows[block]
            x, scale = self._rows(members)
            projected = linear(x, tail.projection, tail.projection_bias)
            nll, grad = softmax(projected, part.target[block], scale)
            self.nll.index_add_(0, members, nll)
            if grad is None:
                continue
            if projection is not None:
                projection.start_block()
                projection.add_product(grad.t(), x, 1.0)
            if projection_bias is not None:
                projection_bias.start_block()
                projection_bias.add(grad.sum(dim=0))
            if self.grad_hidden is not None:
                self.grad_hidden.index_add_(0, members, linear(grad, tail.projection.t()))
        output, output_bias = softmax.gradients()
        return [result_of(projection), output, result_of(projection_bias), output_bias]

    def _rows(self, members: Tensor) -> tuple[Tensor, float | Tensor | None]:
        """Hidden states and scale of some rows."""
        scale = self._scale.index_select(0, members) if isinstance(self._scale, Tensor) else self._scale
        return self._hidden.index_select(0, members), scale
