"""The whole computation as a list of launches: no autograd, and no host read of device data.

Everything here takes shapes, strides and plain numbers from the host and leaves the data on the device, so a
step can be captured in a CUDA graph. `operators` wraps it for torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zipfmax.backends.triton.head import head_forward
from zipfmax.backends.triton.head_logits import WORKSPACE_BYTES
from zipfmax.backends.triton.projection import add_input_gradient, project, projection_gradient
from zipfmax.backends.triton.routing import Routes, route
from zipfmax.backends.triton.runtime import padded_width
from zipfmax.backends.triton.tail_backward import weight_gradient
from zipfmax.backends.triton.tail_combine import combine
from zipfmax.backends.triton.tail_forward import GRADIENT, LSE, accumulate
from zipfmax.weights import TailWeights, Weights


class Result(NamedTuple):
    """What a step computed; gradients that were not wanted are empty tensors."""

    output: Tensor
    """[N] float32: log-probability of each target, 0 in rows that do not count."""
    counted: Tensor
    """[] int32: rows that count."""
    hidden: Tensor
    """Gradient of the input, [N, d]."""
    weights: list[Tensor]
    """Gradients in the order of `Weights.tensors`."""


def nll_step(
    hidden: Tensor,
    target: Tensor,
    weights: Weights,
    bounds: Sequence[int],
    ignore_index: int | None,
    *,
    row_weight: Tensor | None = None,
    scale: float = 1.0,
    want: tuple[bool, bool] | None = None,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> Result:
    """Log-probability of each target and, with `want`, the gradients of -scale * sum of row_weight * output.

    Args:
        hidden: [N, d]; target: [N] int64; both on one device with the weights.
        bounds: (cutoffs..., n_classes).
        ignore_index: rows with this target get output 0 and take no part in any gradient.
        row_weight: [N] float32, or None for 1.
        scale: a host number, applied to float32 sums before they are rounded.
        want: whether the gradients of (the input, the weights) are wanted; None for the forward pass only.
        workspace_bytes: bound on the head's logits; at least one row of them exists.
    """
    hidden = rows_of_unit_stride(hidden)
    target = target.contiguous()
    weights = contiguous(weights)
    if ignore_index is not None:
        # A hidden state that does not count may hold anything; 0 * NaN would carry it into dW.
        hidden = torch.where((target != ignore_index).unsqueeze(1), hidden, 0)
    n_rows = hidden.shape[0]
    output = torch.empty(n_rows, dtype=torch.float32, device=hidden.device)
    routes = route(target, bounds, ignore_index)
    head_gradients = head_forward(
        hidden,
        target,
        weights.head,
        weights.head_bias,
        bounds,
        ignore_index,
        output,
        row_weight=row_weight,
        scale=scale,
        want=want,
        workspace_bytes=workspace_bytes,
    )
    empty = hidden.new_empty(0)
    hidden_gradient = empty
    gradients: list[Tensor] = []
    if head_gradients is not None:
        if head_gradients.hidden is not None:
            hidden_gradient = head_gradients.hidden
        gradients = head_gradients.of_weights(weights.head.shape[0], hidden.dtype)
        del head_gradients
    for cluster, tail in enumerate(weights.tails):
        gradients += _tail_step(
            hidden,
            target,
            tail,
            routes,
            cluster,
            bounds[cluster],
            output,
            hidden_gradient,
            row_weight=row_weight,
            scale=scale,
            want=want,
        )
    return Result(output, routes.counted, hidden_gradient, gradients)


def _tail_step(
    hidden: Tensor,
    target: Tensor,
    tail: TailWeights,
    routes: Routes,
    cluster: int,
    label: int,
    output: Tensor,
    hidden_gradient: Tensor,
    *,
    row_weight: Tensor | None,
    scale: float,
    want: tuple[bool, bool] | None,
) -> list[Tensor]:
    """Add one tail's part to `output` and `hidden_gradient`; returns the gradients of its weights.

    `label` is the tail's first.
    """
    k_size, n_rows = tail.projection.shape[0], hidden.shape[0]
    if n_rows == 0 or tail.output.shape[0] == 1:
        # Nothing to add, or a cluster of one class, which is certain.
        return _certain_gradients(hidden, target == label, tail) if want and want[1] else []
    h = project(hidden, tail.projection, tail.projection_bias, routes, cluster, padded_width(k_size))
    # A projection of width 0 has a gradient of no elements, but its output bias, if any, has one.
    mode = LSE if want is None else GRADIENT
    partials = accumulate(h, tail.output, tail.output_bias, routes, cluster, n_rows, mode)
    softmax, dh = combine(
        partials,
        h,
        tail.output,
        tail.output_bias,
        routes,
        cluster,
        n_rows,
        output,
        row_weight,
        gradient=want is not None,
    )
    del partials
    if want is None:
        return []
    want_hidden, want_weights = want
    if want_hidden:
        add_input_gradient(dh, tail.projection, routes, cluster, scale, hidden_gradient)
    if not want_weights:
        return []
    projection, projection_bias = projection_gradient(
        dh, hidden, tail.projection, tail.projection_bias, routes, cluster, scale
    )
    weight, bias = weight_gradient(
        h, softmax, tail.output, tail.output_bias, routes, cluster, row_weight, scale
    )
    return [tensor for tensor in (projection, weight, projection_bias, bias) if tensor is not None]


def _certain_gradients(hidden: Tensor, member: Tensor, tail: TailWeights) -> list[Tensor]:
    """Gradients of a tail of one class: exactly zero, but NaN if a row of it is not finite, as 0 * inf is."""
    zero = torch.where(member.unsqueeze(1), hidden, 0).mul_(0).sum() if tail.projection.shape[0] else 0
    return [torch.zeros_like(tensor) + zero for tensor in tail if tensor is not None]


def rows_of_unit_stride(hidden: Tensor) -> Tensor:
    """hidden, copied only if its columns are not adjacent."""
    return hidden if hidden.stride(1) == 1 or hidden.shape[1] <= 1 else hidden.contiguous()


def contiguous(weights: Weights) -> Weights:
    """The weights, each copied only if it is not contiguous."""

    def each(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.contiguous()

    tails = tuple(
        TailWeights(
            t.projection.contiguous(), t.output.contiguous(), each(t.projection_bias), each(t.output_bias)
        )
        for t in weights.tails
    )
    return Weights(weights.head.contiguous(), each(weights.head_bias), tails)
