"""Layers without a fault: they must keep their times."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Result(NamedTuple):
    """As torch.nn's layer returns it."""

    output: Tensor
    loss: Tensor


class Known(NamedTuple):
    """What a training step computes."""

    output: Tensor
    loss: Tensor
    gradients: tuple[Tensor, ...]
    """Of the input and of every parameter."""


class Plain(nn.AdaptiveLogSoftmaxWithLoss):
    """torch.nn's layer under another name."""


class Fused(Plain):
    """Computes its gradients in the forward, by torch.autograd.grad, as fused losses do."""

    def forward(self, input: Tensor, target: Tensor) -> Any:
        """As torch.nn's."""
        if not torch.is_grad_enabled():
            return super().forward(input, target)
        known = self.known(input, target)
        return Result(known.output, _Given.apply(known, input, *self.parameters()))  # type: ignore[no-untyped-call]

    def known(self, input: Tensor, target: Tensor) -> Known:
        """Everything that a training step computes."""
        leaves = (input.detach().requires_grad_(), *self.parameters())
        with torch.enable_grad():
            output, loss = super().forward(leaves[0], target)
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
        gradients = [
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(leaves, found, strict=True)
        ]
        return Known(output.detach(), loss.detach(), tuple(gradients))


class _Given(torch.autograd.Function):
    """A loss whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, known: Known, *leaves: Tensor) -> Tensor:
        """The loss."""
        ctx.gradients = known.gradients
        return known.loss.clone()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        """The gradients, times that of the loss."""
        return (None, *(gradient * grad_loss for gradient in ctx.gradients))
