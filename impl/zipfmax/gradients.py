"""What a layer tells its backend of gradients: where backward starts, and zeros in place of absent ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from zipfmax.weights import Weights

Gradients = Literal["auto", "loss", "output"]
GRADIENTS = ("auto", "loss", "output")


class Upstream:
    """Which of a call's results, output or loss, its backward is expected to start from.

    A backend that takes the gradients of the loss during the forward, while the probabilities exist, does so
    where the backward is expected to start from the loss only. A wrong expectation costs time, not accuracy.
    """

    def __init__(self, told: Gradients = "auto") -> None:
        self.told = told
        self.from_output = told == "output"
        """Whether a gradient of `output` is expected: the forward then takes none."""

    @property
    def output_needs_gradient(self) -> bool:
        """False where the user said that `output` is never differentiated."""
        return self.told != "loss"

    def learn(self, from_output: bool) -> None:
        """What a backward started from, unless the user said it beforehand."""
        if self.told == "auto":
            self.from_output = from_output


class _Identity(torch.autograd.Function):
    """The tensors themselves. Autograd hands its backward a zero for each gradient that nobody computed."""

    @staticmethod
    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


def with_zeros_for_absent(weights: Weights) -> Weights:
    """The same weights, every one of which receives a gradient as soon as one of them does.

    Without this the weights of a cluster that no target falls into get none, as in torch.nn: an optimiser
    then leaves them alone, but DistributedDataParallel waits for them unless it is told to search for
    unused parameters.
    """
    return weights.with_tensors(_Identity.apply(*weights.tensors()))  # type: ignore[no-untyped-call]


class _ZerosFor(torch.autograd.Function):
    """(output, loss) of a call, and zero gradients for tensors that they may not depend on."""

    @staticmethod
    def forward(output: Tensor, loss: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return output.view_as(output), loss.view_as(loss)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return (*gradients, *(torch.zeros_like(tensor) for tensor in ctx.saved_tensors))


def zeros_besides(output: Tensor, loss: Tensor, parameters: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The results themselves; every parameter gets a gradient from them, zero where they do not use it.

    For submodules that are called, where `with_zeros_for_absent` cannot stand before the weights.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    results: tuple[Tensor, Tensor] = _ZerosFor.apply(output, loss, *wanted)  # type: ignore[no-untyped-call]
    return results
