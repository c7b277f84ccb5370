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


def with_penalty(loss: Tensor, leaves: Mapping[str, Tensor]) -> tuple[Results, list[str]]:
    """Gradients of the loss and half the squared norm of its gradients, as grad.NAME, by two backwards.

    And names of gradients that torch does not differentiate, unless they are zeros; the norm leaves them out.

    Raises:
        NotPromisedError: torch, or the layer, refuses to differentiate the penalty.
    """
    inputs = [*leaves.values()]
    try:
        first = torch.autograd.grad(
            loss, inputs, create_graph=True, allow_unused=True, materialize_grads=True
        )
        taken = [gradient.square().sum() / 2 for gradient in first if gradient.requires_grad]
        if not taken:
            raise NotPromisedError("gradients are constants, whose penalty cannot be differentiated")
        penalty = torch.stack(taken).sum()
        found = torch.autograd.grad(loss + penalty, inputs, allow_unused=True, materialize_grads=True)
    except (RuntimeError, NotImplementedError) as error:
        raise NotPromisedError(str(error)) from error
    named = zip(leaves, first, strict=True)
    constants = [f"grad.{name}" for name, one in named if not one.requires_grad and one.any()]
    return _named(leaves, found), constants


def _named(leaves: Mapping[str, Tensor], gradients: tuple[Tensor, ...]) -> Results:
    return {f"grad.{name}": to_array(gradient) for name, gradient in zip(leaves, gradients, strict=True)}
