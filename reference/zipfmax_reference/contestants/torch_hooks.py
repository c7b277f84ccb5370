"""Whether a torch module runs hooks as torch.nn.Module does: its own, and those of all modules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
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


class OfTensors:
    """Hooks on the gradients of tensors, that double them, and on what is left of them.

    Args:
        leaves: by name.
    """

    def __init__(self, leaves: Mapping[str, Tensor]) -> None:
        self._seen: dict[str, list[str]] = {name: [] for name in leaves}
        self._handles: list[Any] = []
        for name, leaf in leaves.items():
            self._handles += [
                leaf.register_hook(partial(self._doubled, name)),  # type: ignore[no-untyped-call]
                leaf.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    partial(self._noted, name)
                ),
            ]

    def _doubled(self, name: str, gradient: Tensor | None) -> Tensor | None:
        self._seen[name].append("none" if gradient is None else "gradient")
        return None if gradient is None else gradient * 2

    def _noted(self, name: str, leaf: Tensor) -> None:
        self._seen[name].append("left")

    def removed(self) -> str | None:
        """Take them away; of which tensor they did not run once each, if they ran, and with a gradient."""
        for handle in self._handles:
            handle.remove()
        for name, seen in self._seen.items():
            if "none" in seen:
                return f"a hook of the gradient of {name} runs without a gradient"
            if seen not in ([], ["gradient", "left"]):
                return f"hooks of the gradient of {name} do not run once each"
        return None


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
