"""Gradients of a torch module that are asked for and left nowhere: the first, and those of a penalty on them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from zipfmax_reference.contestants.tensors import to_array
from zipfmax_reference.contestants.use import NotPromisedError
from zipfmax_reference.runs.arrays import Results


def asked(loss: Tensor, leaves: Mapping[str, Tensor]) -> Results:
    """By torch.autograd.grad, as grad.NAME.

    Raises:
        ValueError: a gradient was left in .grad.
    """
    before = {name: leaf.grad for name, leaf in leaves.items()}
    found = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True, materialize_grads=True)
    for name, leaf in leaves.items():
        if leaf.grad is not before[name]:
            raise ValueError(f"a gradient of {name} was left in .grad, where torch.autograd.grad leaves none")
    return _named(leaves, found)


def with_penalty(loss: Tensor, leaves: Mapping[str, Tensor]) -> Results:
    """Gradients of the loss and half the squared norm of its gradients, as grad.NAME, by two backwards.

    Gradients that are cut from the graph add nothing, as in a user's penalty.

    Raises:
        NotPromisedError: torch, or the layer, refuses to differentiate the penalty.
    """
    inputs = [*leaves.values()]
    try:
        first = torch.autograd.grad(
            loss, inputs, create_graph=True, allow_unused=True, materialize_grads=True
        )
        penalty = torch.stack([gradient.square().sum() / 2 for gradient in first]).sum()
        if not penalty.requires_grad:
            raise NotPromisedError("gradients are constants, whose penalty cannot be differentiated")
        found = torch.autograd.grad(loss + penalty, inputs, allow_unused=True, materialize_grads=True)
    except (RuntimeError, NotImplementedError) as error:
        raise NotPromisedError(str(error)) from error
    return _named(leaves, found)


def _named(leaves: Mapping[str, Tensor], gradients: tuple[Tensor, ...]) -> Results:
    return {f"grad.{name}": to_array(gradient) for name, gradient in zip(leaves, gradients, strict=True)}
