"""log-sum-exp of a linear layer's logits, differentiable, with one tile of logits in memory at a time.

    lse = log(sum over classes of exp(x W^T + b)),   and for an upstream gradient g:   dz = g softmax(z)

The backward computes the tiles again. What is summed over all classes of every row, as label smoothing is,
needs no more of the logits than this.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.backends.context import is_differentiated
from zipfmax.backends.tiled_cluster import ClusterSoftmax, statistics_dtype


def linear_log_sum_exp(x: Tensor, weight: Tensor, bias: Tensor | None, workspace_bytes: int) -> Tensor:
    """log-sum-exp over the classes of x [N, K] times weight [V, K] transposed plus bias [V]: [N].

    In float32 at least. `workspace_bytes` of logits are held at a time.
    """
    result: Tensor = _LinearLogSumExp.apply(x, weight, bias, workspace_bytes)  # type: ignore[no-untyped-call]
    return result


class _LinearLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, workspace_bytes: int) -> Tensor:
        softmax = ClusterSoftmax(weight, bias, x.shape[0], workspace_bytes)
        found = x.new_empty(x.shape[0], dtype=statistics_dtype(x.dtype))
        for rows in softmax.blocks(x.shape[0]):
            found[rows] = softmax.log_sum_exp(x[rows].contiguous()).squeeze(1)
        ctx.workspace_bytes = workspace_bytes
        ctx.save_for_backward(x, weight, bias, found)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, log_sum_exp = ctx.saved_tensors
        if is_differentiated(grad):
            return (*_differentiable(x, weight, bias, grad), None)
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
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
            softmax.add_log_sum_exp_gradients(
                x[rows].contiguous(),
                log_sum_exp[rows].unsqueeze(1),
                grad[rows],
                None if grad_x is None else grad_x[rows],
            )
        return (grad_x, *softmax.gradients(), None)


def _differentiable(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    create_graph = torch.is_grad_enabled()
    wanted = [tensor is not None and tensor.requires_grad for tensor in (x, weight, bias)]
    inputs = [tensor for tensor in (x, weight, bias) if tensor is not None and tensor.requires_grad]
    with torch.enable_grad():
        value = F.linear(x, weight, bias).to(statistics_dtype(x.dtype)).logsumexp(dim=1)
        found = iter(torch.autograd.grad(value, inputs, grad, create_graph=create_graph))
    of_x, of_weight, of_bias = (next(found) if want else None for want in wanted)
    return of_x, of_weight, of_bias
