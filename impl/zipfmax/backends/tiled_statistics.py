"""What a softmax is joined from, differentiable, with one tile of logits in memory at a time.

    lse = log(sum over classes of exp(x W^T + b)),   t = the target's logit,
    and for upstream gradients g of lse and u of t:   dz = g softmax(z) + u onehot(target)

The backward computes the tiles again. What is summed over all classes of every row, as label smoothing is,
needs no more of the logits than this; nor does a softmax whose classes are spread over several processes.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.backends.context import is_differentiated
from zipfmax.backends.tiled_cluster import ClusterSoftmax
from zipfmax.backends.tiled_gradient import statistics_dtype


def linear_statistics(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, workspace_bytes: int
) -> tuple[Tensor, Tensor]:
    """log-sum-exp over the classes, and the target's logit, of x [N, K] W^T [K, V] + b [V]: [N] each.

    In float32 at least. The logit is 0 where the target [N] is outside [0, V). `workspace_bytes` of logits
    are held at a time.
    """
    found = _LinearStatistics.apply(x, weight, bias, target, workspace_bytes)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], found)


def plain_statistics(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
    """The same by plain operations, with all logits in memory."""
    logits = F.linear(x, weight, bias).to(statistics_dtype(x.dtype))
    if weight.shape[0] == 0:
        nothing = logits.sum(dim=1)  # so that a weight without rows gets a gradient like any other
        return nothing - torch.inf, nothing
    inside = (target >= 0) & (target < weight.shape[0])
    picked = logits.gather(1, torch.where(inside, target, 0).unsqueeze(1)).squeeze(1)
    log_sum_exp = logits.logsumexp(dim=1)
    nothing = log_sum_exp == -torch.inf
    if bool(nothing.any()):  # its gradient there would be NaN
        finite = torch.where(nothing.unsqueeze(1), 0, logits)
        log_sum_exp = torch.where(nothing, -torch.inf, finite.logsumexp(dim=1))
    return log_sum_exp, torch.where(inside, picked, 0)


class _LinearStatistics(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, workspace_bytes: int
    ) -> tuple[Tensor, Tensor]:
        softmax = ClusterSoftmax(weight, bias, x.shape[0], workspace_bytes)
        found = x.new_empty(x.shape[0], dtype=statistics_dtype(x.dtype))
        logit = torch.empty_like(found)
        for rows in softmax.blocks(x.shape[0]):
            parts = softmax.statistics(x[rows].contiguous(), target[rows])
            found[rows], logit[rows] = (part.squeeze(1) for part in parts)
        ctx.workspace_bytes = workspace_bytes
        ctx.save_for_backward(x, weight, bias, target, found)
        return found, logit

    @staticmethod
    def backward(ctx: Any, of_sum: Tensor, of_logit: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, target, log_sum_exp = ctx.saved_tensors
        if is_differentiated(of_sum, of_logit):
            return (*_differentiable(x, weight, bias, target, (of_sum, of_logit)), None, None)
        wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        softmax = ClusterSoftmax(
            weight,
            bias,
            x.shape[0],
            ctx.workspace_bytes,
            wants_input=wants_x,
            wants_weight=wants_weight,
            wants_bias=wants_bias,
        )
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if wants_x else None
        for rows in softmax.blocks(x.shape[0]):
            softmax.add_statistics_gradients(
                x[rows].contiguous(),
                target[rows],
                log_sum_exp[rows].unsqueeze(1),
                (of_sum[rows], of_logit[rows]),
                None if grad_x is None else grad_x[rows],
            )
        return (grad_x, *softmax.gradients(), None, None)


def _differentiable(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, grads: tuple[Tensor, Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    create_graph = torch.is_grad_enabled()
    wanted = [tensor is not None and tensor.requires_grad for tensor in (x, weight, bias)]
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None and tensor.requires_grad]
    with torch.enable_grad():
        values = plain_statistics(x, weight, bias, target)
        found = iter(torch.autograd.grad(values, inputs, grads, create_graph=create_graph))
    of_x, of_weight, of_bias = (next(found) if want else None for want in wanted)
    return of_x, of_weight, of_bias
