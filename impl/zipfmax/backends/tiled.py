"""Adaptive softmax at the speed of its matrix products, on any torch device.

Logits live in one workspace of bounded size, reused from call to call; a tensor of all logits never exists.
The backward is hand-written. Where gradients will be wanted, those of the mean or summed loss are taken
during the forward, from each tile of probabilities while it is in cache, so a training step costs three
products a cluster; so where all rows weigh the same, as in `-output.mean()`. Gradients of any other function of
the results are taken by doing the tiles again.

What a call leaves for the next is the workspace, one a thread: see `workspace_bytes` and `release_workspace`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from zipfmax.backends import eager
from zipfmax.backends import tiled_operators as operators
from zipfmax.backends.context import is_differentiated, is_traced
from zipfmax.backends.targets import reduce_loss
from zipfmax.backends.tiled_batch import Batch, log_p_and_gradients
from zipfmax.backends.tiled_classes import log_prob_of_classes, most_probable_class
from zipfmax.backends.tiled_gradient import statistics_dtype
from zipfmax.backends.tiled_workspace import release
from zipfmax.clusters import ClusterLayout
from zipfmax.gradients import Upstream
from zipfmax.weights import Weights

workspace_bytes = 32 * 2**20
"""Bytes of logits held at a time, in each thread that calls; assign to it to change it. Smaller saves memory,
larger reads the weights less often."""

release_workspace = release


scores = None
"""As `Backend` has it: computed by `zipfmax.losses`."""


def refusal(hidden: Tensor, weights: Weights) -> str | None:
    """Serves every dense floating tensor."""
    for tensor in (hidden, *weights.tensors()):
        if tensor.layout != torch.strided:
            return f"it takes dense tensors, not {tensor.layout}"
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

    Reads the targets on the host. Clusters without targets take no part, so their weights' gradients stay
    None. Second derivatives (`create_graph=True`) are computed by the eager backend.
    """
    dtype = dtype or hidden.dtype
    if is_traced(hidden):
        log_p = operators.log_p(layout.bounds, weights, hidden, target, ignore_index, workspace_bytes)
        counted = None if ignore_index is None else target != ignore_index
        return log_p.to(dtype), reduce_loss(log_p, counted, reduction).to(dtype)
    batch = Batch.route(layout.bounds, target, ignore_index)
    tensors = (hidden, *weights.tensors())
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        job = _Job(layout, weights, batch, ignore_index, reduction, dtype, upstream or Upstream())
        parts = _without_absent(weights, batch, hidden).tensors()
        output, loss = _Nll.apply(job, hidden, target, *parts)  # type: ignore[no-untyped-call]
        return cast(Tensor, output), cast(Tensor, loss)
    log_p, _ = log_p_and_gradients(weights, hidden, batch, workspace_bytes)
    return log_p.to(dtype), reduce_loss(log_p, batch.counted, reduction).to(dtype)


def _without_absent(weights: Weights, batch: Batch, hidden: Tensor) -> Weights:
    """The weights, of which those of clusters without targets are outside the graph, as in torch.nn.

    A gradient of None would still run the hooks on them. Where nothing else takes a gradient they stay.
    """
    if all(part is not None for part in batch.tails):
        return weights
    detached = weights.map(Tensor.detach)
    tails = (
        outside if part is None else tail
        for part, tail, outside in zip(batch.tails, weights.tails, detached.tails, strict=True)
    )
    cut = weights._replace(tails=tuple(tails))
    return cut if any(tensor.requires_grad for tensor in (hidden, *cut.tensors())) else weights


def log_prob(layout: ClusterLayout, weights: Weights, hidden: Tensor) -> Tensor:
    """Log-probabilities of all classes, [N, n_classes]; see `Backend.log_prob`.

    Beside the result only the workspace is held. Where a gradient may be asked for, and in compiled graphs,
    the eager backend computes them.
    """
    tensors = (hidden, *weights.tensors())
    wants_graph = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if wants_graph or is_traced(hidden):
        return eager.log_prob(layout, weights, hidden)
    with torch.no_grad():
        return log_prob_of_classes(layout, weights, hidden, workspace_bytes)


def predict(layout: ClusterLayout, weights: Weights, hidden: Tensor) -> Tensor:
    """Most probable class of each row, [N] int64; see `Backend.predict`.

    Computes a tail only for the rows in which one of its classes may win, and never their log-probabilities.
    Compiled graphs use the eager backend.
    """
    if is_traced(hidden):
        return eager.predict(layout, weights, hidden)
    with torch.no_grad():
        return most_probable_class(layout, weights, hidden, workspace_bytes)


@dataclass(frozen=True)
class _Job:
    """What the autograd function is called with besides tensors."""

    layout: ClusterLayout
    weights: Weights
    """Tells which tensor is which; autograd hands them over one by one."""
    batch: Batch
    ignore_index: int | None
    reduction: str
    dtype: torch.dtype
    """Of the results."""
    upstream: Upstream


class _Nll(torch.autograd.Function):
    """(output, loss) of a batch, from (job, hidden, target, *weights.tensors())."""

    @staticmethod
    def forward(
        ctx: Any, job: _Job, hidden: Tensor, target: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch = job.batch
        wanted = (ctx.needs_input_grad[1], *ctx.needs_input_grad[3:])
        scale = None if job.upstream.from_output else _loss_scale(job, batch)
        log_p, gradients = log_p_and_gradients(job.weights, hidden, batch, workspace_bytes, scale, wanted)
        loss = reduce_loss(log_p, batch.counted, job.reduction)

        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, target.clone(), *tensors)  # the caller may write to its targets now
        ctx.job, ctx.wanted = job, wanted
        ctx.loss_gradients = None if scale is None else gradients
        return log_p.to(job.dtype), loss.to(job.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_output is None and grad_loss is None:
            return (None,) * len(ctx.needs_input_grad)
        hidden, target, *tensors = ctx.saved_tensors
        job, batch = ctx.job, ctx.job.batch
        gradients, ctx.loss_gradients = ctx.loss_gradients, None  # they are handed out once
        if is_differentiated(grad_output, grad_loss):
            gradients = eager.gradients(
                job.layout.bounds,
                job.weights.with_tensors(tensors),
                hidden,
                target,
                (grad_output, grad_loss),
                ignore_index=job.ignore_index,
                reduction=job.reduction,
                dtype=job.dtype,
            )
            return None, gradients[0], None, *gradients[1:]

        weights = job.weights.with_tensors(tensors)
        scale = _loss_scale(job, batch)
        factor = None if scale is None else _factor(scale, grad_output, grad_loss)
        job.upstream.learn(from_output=grad_output is not None and factor is None)
        if scale is None or factor is None:
            row_scale = _row_scale(job, batch, grad_output, grad_loss)
            _, gradients = log_p_and_gradients(weights, hidden, batch, workspace_bytes, row_scale, ctx.wanted)
            return None, gradients[0], None, *gradients[1:]
        if gradients is None:  # a second backward through a retained graph, or none was expected
            _, gradients = log_p_and_gradients(weights, hidden, batch, workspace_bytes, scale, ctx.wanted)
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(factor)
        return None, gradients[0], None, *gradients[1:]


def _factor(scale: float, grad_output: Tensor | None, grad_loss: Tensor | None) -> Tensor | None:
    """What the gradients of sum(scale * log p) are multiplied by; None where rows weigh differently, or too much."""
    if grad_output is None:
        return grad_loss
    first = grad_output[:1]
    if not bool((grad_output == first).all()):
        return None
    factor = first.sum().to(statistics_dtype(first.dtype)) / scale
    if not bool(factor.isfinite()):
        return None
    return factor if grad_loss is None else factor + grad_loss


def _loss_scale(job: _Job, batch: Batch) -> float | None:
    """Gradient of the loss by each log p, where it is one number, known before the backward.

    None for reduction "none"; and for float16, whose gradients of a mean underflow unless a loss scale
    multiplies them first.
    """
    if job.reduction == "none" or job.weights.head.dtype == torch.float16:
        return None
    return -1.0 if job.reduction == "sum" else -1.0 / max(batch.n_counted, 1)


def _row_scale(job: _Job, batch: Batch, grad_output: Tensor | None, grad_loss: Tensor | None) -> Tensor:
    """Gradient by each row's log p, [N], in the statistics' dtype."""
    scale = torch.zeros(
        batch.n_rows, dtype=statistics_dtype(job.weights.head.dtype), device=job.weights.head.device
    )
    if grad_output is not None:
        scale += grad_output
    if grad_loss is not None:
        scale -= grad_loss.to(scale.dtype) / (max(batch.n_counted, 1) if job.reduction == "mean" else 1)
    return scale
