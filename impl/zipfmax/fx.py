"""torch.fx.symbolic_trace meets the layer: one node that calls it, as for a module of torch.nn."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy


def is_proxy(value: object) -> bool:
    """Whether symbolic_trace is recording."""
    return isinstance(value, Proxy)


def leaf(layer: nn.Module, *arguments: Any) -> Any:
    """The graph's node for a call of the layer; torch.fx itself makes leaves of torch.nn's modules only."""
    tracer: Any = next(argument for argument in arguments if is_proxy(argument)).tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(layer), arguments, {})


def refuse_proxy(value: object) -> None:
    """Raise TypeError where symbolic_trace records a method that is not the layer's call."""
    if isinstance(value, Proxy):
        raise TypeError(
            "torch.fx.symbolic_trace cannot follow this method; call the layer itself in the traced model"
        )
