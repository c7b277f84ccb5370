"""Zero gradients in place of absent ones, for optimisers and wrappers that want one for every parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zipfmax.weights import Weights


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
