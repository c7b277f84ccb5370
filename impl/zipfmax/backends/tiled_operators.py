"""The tiled computation as torch.library operators, for torch.compile, which cannot look into it.

A graph asks for the log-probabilities and, in its backward, for the gradients: two operators. Unlike eager
mode they do the tiles again for the backward, since a graph that returns both output and loss would discard
what the forward took for the loss only; and they give zeros for clusters without targets, since an operator
returns tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zipfmax.backends import eager
from zipfmax.backends.context import is_differentiated
from zipfmax.backends.tiled_batch import Batch, log_p_and_gradients
from zipfmax.backends.tiled_gradient import statistics_dtype
from zipfmax.weights import TailWeights, Weights


def log_p(
    bounds: Sequence[int],
    weights: Weights,
    hidden: Tensor,
    target: Tensor,
    ignore_index: int | None,
    workspace_bytes: int,
) -> Tensor:
    """log p of each row's target, [N] in the statistics' dtype, 0 in ignored rows; differentiable once."""
    tensors, biases = weights.tensors(), _biases(weights)
    found: Tensor = _tiled_log_p(hidden, target, tensors, biases, list(bounds), ignore_index, workspace_bytes)
    return found


def _biases(weights: Weights) -> list[bool]:
    """Which of the optional tensors are there: the head's bias, then two a tail."""
    optional = [weights.head_bias, *(bias for tail in weights.tails for bias in tail[2:])]
    return [bias is not None for bias in optional]


def _weights(tensors: Sequence[Tensor], biases: Sequence[bool]) -> Weights:
    """The weights that `_biases` and `Weights.tensors` took apart."""
    remaining = iter(tensors)

    def optional(there: bool) -> Tensor | None:
        return next(remaining) if there else None

    head, head_bias = next(remaining), optional(biases[0])
    tails = tuple(
        TailWeights(next(remaining), next(remaining), optional(projection), optional(output))
        for projection, output in zip(biases[1::2], biases[2::2], strict=True)
    )
    return Weights(head, head_bias, tails)


@torch.library.custom_op("zipfmax::tiled_log_p", mutates_args=())
def _tiled_log_p(
    hidden: Tensor,
    target: Tensor,
    tensors: list[Tensor],
    biases: list[bool],
    bounds: list[int],
    ignore_index: int | None,
    workspace_bytes: int,
) -> Tensor:
    batch = Batch.route(bounds, target, ignore_index)
    return log_p_and_gradients(_weights(tensors, biases), hidden, batch, workspace_bytes)[0]


@_tiled_log_p.register_fake
def _(
    hidden: Tensor,
    target: Tensor,
    tensors: list[Tensor],
    biases: list[bool],
    bounds: list[int],
    ignore_index: int | None,
    workspace_bytes: int,
) -> Tensor:
    return hidden.new_empty(target.shape, dtype=statistics_dtype(hidden.dtype))


@torch.library.custom_op("zipfmax::tiled_log_p_gradients", mutates_args=())
def _tiled_log_p_gradients(
    scale: Tensor,
    hidden: Tensor,
    target: Tensor,
    tensors: list[Tensor],
    biases: list[bool],
    bounds: list[int],
    ignore_index: int | None,
    workspace_bytes: int,
    wanted: list[bool],
) -> list[Tensor]:
    batch = Batch.route(bounds, target, ignore_index)
    weights = _weights(tensors, biases)
    _, gradients = log_p_and_gradients(weights, hidden, batch, workspace_bytes, scale, wanted)
    return [
        torch.zeros_like(tensor, memory_format=torch.contiguous_format) if gradient is None else gradient
        for tensor, gradient, want in zip((hidden, *tensors), gradients, wanted, strict=True)
        if want
    ]


@_tiled_log_p_gradients.register_fake
def _(
    scale: Tensor,
    hidden: Tensor,
    target: Tensor,
    tensors: list[Tensor],
    biases: list[bool],
    bounds: list[int],
    ignore_index: int | None,
    workspace_bytes: int,
    wanted: list[bool],
) -> list[Tensor]:
    return [
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor, want in zip((hidden, *tensors), wanted, strict=True)
        if want
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, target, tensors, *ctx.options = inputs
    ctx.save_for_backward(hidden, target, *tensors)


def _backward(ctx: Any, grad_log_p: Tensor) -> tuple[Any, ...]:
    hidden, target, *tensors = ctx.saved_tensors
    wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2]]
    if is_differentiated(grad_log_p):
        gradients = _differentiable_gradients(grad_log_p, hidden, target, tensors, *ctx.options)
    else:
        found = iter(_tiled_log_p_gradients(grad_log_p, hidden, target, tensors, *ctx.options, wanted))
        gradients = [next(found) if want else None for want in wanted]
    return gradients[0], None, gradients[1:], None, None, None, None


def _differentiable_gradients(
    grad_log_p: Tensor,
    hidden: Tensor,
    target: Tensor,
    tensors: Sequence[Tensor],
    biases: list[bool],
    bounds: list[int],
    ignore_index: int | None,
    workspace_bytes: int,
) -> list[Tensor | None]:
    """The gradients by the eager backend, for a backward that is itself differentiated or batched."""
    gradients = eager.gradients(
        bounds,
        _weights(tensors, biases),
        hidden,
        target,
        (grad_log_p, None),
        ignore_index=ignore_index,
        dtype=statistics_dtype(hidden.dtype),
    )
    # An operator's gradients are tensors, also those of clusters without targets.
    return eager.zeros_for_absent((hidden, *tensors), gradients)


_tiled_log_p.register_autograd(_backward, setup_context=_setup_context)
