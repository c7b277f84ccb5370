"""Whether a torch module runs hooks as torch.nn.Module does: its own, and those of all modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module


def fault(module: nn.Module, hidden: Tensor, target: Tensor) -> str | None:
    """Which kind of its own hooks does not run, or whose result does not count; None where all do.

    Args:
        hidden: [N, d] with N > 1, a leaf that takes a gradient.
        target: [N]
    """
    for check in (_before, _before_with_names, _after, _of_backward):
        if (found := check(module, hidden, target)) is not None:
            return found
    return None


def _before(module: nn.Module, hidden: Tensor, target: Tensor) -> str | None:
    with module.register_forward_pre_hook(lambda _, args: tuple(value[:1] for value in args)):
        shape = module(hidden, target)[0].shape
    return None if shape == (1,) else "what a forward pre-hook returns does not count"


def _before_with_names(module: nn.Module, hidden: Tensor, target: Tensor) -> str | None:
    def cut(_: nn.Module, args: Any, names: Any) -> Any:
        return tuple(value[:1] for value in args), names

    with module.register_forward_pre_hook(cut, with_kwargs=True):
        shape = module(hidden, target)[0].shape
    return None if shape == (1,) else "what a forward pre-hook with keyword arguments returns does not count"


def _after(module: nn.Module, hidden: Tensor, target: Tensor) -> str | None:
    other = object()
    with module.register_forward_hook(lambda *_: other):
        found = module(hidden, target)
    return None if found is other else "what a forward hook returns does not count"


def fault_of_all(module: nn.Module, hidden: Tensor, target: Tensor) -> str | None:
    """Whether the hooks of all modules do not run, as `fault` says."""
    seen: list[str] = []

    def note(kind: str, of: nn.Module) -> None:
        if of is module:
            seen.append(kind)

    with (
        torch_module.register_module_forward_pre_hook(lambda of, _: note("before", of)),
        torch_module.register_module_forward_hook(lambda of, *_: note("after", of)),
    ):
        module(hidden, target)
    return None if seen == ["before", "after"] else "forward hooks of all modules do not run once each"


def _of_backward(module: nn.Module, hidden: Tensor, target: Tensor) -> str | None:
    seen: list[str] = []

    def before(_: nn.Module, came_in: Any) -> None:
        seen.append("before")

    def after(_: nn.Module, goes_on: Any, came_in: Any) -> Any:
        seen.append("after")
        return tuple(None if gradient is None else torch.zeros_like(gradient) for gradient in goes_on)

    with module.register_full_backward_pre_hook(before), module.register_full_backward_hook(after):
        loss = module(hidden, target)[1]
        (gradient,) = torch.autograd.grad(loss, hidden)
    if seen != ["before", "after"]:
        return "full backward hooks do not run once each"
    return "what a full backward hook returns does not count" if gradient.any() else None
