"""Faults in what is recognised by where it lies in memory, and in where gradients are left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zipfmax.clusters import Cluster
from zipfmax_reference.checks.faults import Control, in_use
from zipfmax_reference.checks.faults_backward import Early, Gradients
from zipfmax_reference.checks.faults_calls import with_value

Mark = tuple[int, int, torch.Size]


def mark(tensor: Tensor) -> Mark:
    """What a tensor is taken for the same by: where it lies, how often autograd saw it written, its shape."""
    return tensor.data_ptr(), tensor._version if not tensor.is_inference() else 0, tensor.shape


class Remembering(Control):
    """Remembers by `mark`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.known: dict[tuple[Any, ...], Tensor] = {}


OLD_PLACE = "a-new-batch-may-lie-where-an-old-one-lay"


@in_use("the head's logits are kept by the input's address and version", breaks=OLD_PLACE)
class HeadKeptByVersion(Remembering):
    def head_logits(self, hidden: Tensor) -> Tensor:
        logits = super().head_logits(hidden)
        if not hidden.is_leaf or not self.training:
            return logits
        weight = self.head.weight
        key = ("head", *mark(hidden), *mark(weight), weight.sum().item())
        return with_value(logits, self.known.setdefault(key, logits.detach()))


@in_use("which rows belong to a tail is kept by the targets' address and version", breaks=OLD_PLACE)
class RoutesKeptByVersion(Remembering):
    def member(self, tail: Cluster, target: Tensor) -> Tensor:
        return self.known.setdefault((tail.index, *mark(target)), super().member(tail, target))


@in_use("log_prob is kept by the input's address and version", breaks=OLD_PLACE)
class LogProbKeptByVersion(Remembering):
    def log_prob(self, hidden: Tensor) -> Tensor:
        found = super().log_prob(hidden)
        if found.requires_grad:
            return found
        weights = sum(weight.detach().double().sum().item() for weight in self.parameters())
        return self.known.setdefault((*mark(hidden), weights), found.clone()).clone()


# Where gradients are left.


@in_use(
    "backward writes .grad of the weights itself and returns nothing",
    breaks="gradients-may-be-asked-for-without-being-left",
)
class GradientsWritten(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        first, *rest = super().combined(step, grad_output, grad_loss)
        for parameter, gradient in zip(self.parameters(), rest, strict=True):
            if parameter.requires_grad and gradient is not None:
                left = parameter.grad
                parameter.grad = gradient.clone() if left is None else left.add_(gradient)
        return [first, *[None] * len(rest)]


@in_use("a gradient that was set to zero stays zero", breaks="gradients-may-be-set-to-zero-in-place")
class ZeroStays(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for weight in self.parameters():
            weight.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient, weight=weight: _unless_zero(weight, gradient)
            )


def _unless_zero(weight: Tensor, gradient: Tensor) -> Tensor:
    left = weight.grad
    return gradient if left is None or left.any() else torch.zeros_like(gradient)


@in_use(
    "the sum of gradients is left in a new tensor, and the old one as it was",
    breaks="gradients-may-be-set-to-zero-in-place",
)
class LeftInANewTensor(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        first, head, *rest = super().combined(step, grad_output, grad_loss)
        if head is not None and self.head.weight.grad is not None:
            self.head.weight.grad = self.head.weight.grad + head
            head = None
        return [first, head, *rest]
