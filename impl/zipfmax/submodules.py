"""The layer's submodules: whether they are still what its constructor made, and computing through them.

A fast backend reads `head.weight` and the tails' weights and never calls the modules that hold them. That is
the same function only while nothing stands between a weight and its module's result: no adapter, hook,
parametrisation, replaced `forward` or tensor subclass. `plain_weights` tells; where something does, `Called`
scores by calling the submodules, as torch.nn's layer does.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

from zipfmax.clusters import ClusterLayout
from zipfmax.weights import TailWeights, Weights

_TENSORS = (nn.Parameter, Tensor)
_LINEAR, _SEQUENTIAL = nn.Linear.forward, nn.Sequential.forward


class Replaced(NamedTuple):
    """A submodule that must be called to be right."""

    name: str
    why: str


def plain_weights(
    layer: nn.Module, layout: ClusterLayout, types: tuple[type, ...] = _TENSORS
) -> Weights | Replaced:
    """The weights, where reading them says all that the submodules do; else the first submodule that differs.

    Args:
        layer: has `head` and `tail`.
        layout: which shapes they should have.
        types: which the weights may be of.
    """
    if (
        _module._global_forward_hooks
        or _module._global_forward_pre_hooks
        or _module._global_backward_hooks
        or _module._global_backward_pre_hooks
    ):
        return Replaced("head", "is under a hook of all modules")
    if nn.Linear.forward is not _LINEAR or nn.Sequential.forward is not _SEQUENTIAL:
        return Replaced("head", "has a class whose forward was replaced")
    modules, in_features = layer._modules, layout.in_features
    head = _read(modules.get("head"), layout.head_size, in_features, types)
    if isinstance(head, str):
        return Replaced("head", head)
    pairs = modules.get("tail")
    if type(pairs) is not nn.ModuleList or len(pairs._modules) != layout.n_clusters:
        return Replaced("tail", f"is {_described(pairs)}, not a ModuleList of {layout.n_clusters}")
    tails = []
    for cluster, pair in zip(layout.tails, pairs._modules.values(), strict=True):
        if why := _no_plain_pair(pair):
            return Replaced(f"tail.{cluster.index}", why)
        width = cluster.projection_size
        first, second = pair._modules.values()
        projection = _read(first, width, in_features, types)
        if isinstance(projection, str):
            return Replaced(f"tail.{cluster.index}.0", projection)
        output = _read(second, cluster.stop - cluster.start, width, types)
        if isinstance(output, str):
            return Replaced(f"tail.{cluster.index}.1", output)
        tails.append(TailWeights(projection[0], output[0], projection[1], output[1]))
    return Weights(*head, tuple(tails))


def _no_plain_pair(pair: nn.Module | None) -> str | None:
    """Why a tail is not a plain Sequential of two modules, or None."""
    if type(pair) is not nn.Sequential or len(pair._modules) != 2:
        return f"is {_described(pair)}, not a Sequential of 2 modules"
    if pair._forward_hooks or pair._forward_pre_hooks or pair._backward_hooks or pair._backward_pre_hooks:
        return "has a hook"
    return "has a forward of its own" if "forward" in pair.__dict__ else None


def _read(
    module: nn.Module | None, n_outputs: int, n_inputs: int, types: tuple[type, ...]
) -> tuple[Tensor, Tensor | None] | str:
    """Weight and bias of a plain nn.Linear of that shape that does what its class says, or why it is none."""
    if type(module) is not nn.Linear:
        return f"is {_described(module)}, not a plain Linear"
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return "has a hook"
    own = module.__dict__
    if "forward" in own:
        return "has a forward of its own"
    parameters = module._parameters
    if "weight" in own or "bias" in own or "bias" not in parameters:
        return "has a weight that is computed, not a parameter"
    weight, bias = parameters.get("weight"), parameters["bias"]
    for tensor in (weight, bias):
        if tensor is not None and type(tensor) not in types and not _stands_for_a_tensor(tensor):
            return f"has a weight of type {type(tensor).__name__}"
    if weight is None:
        return "has no weight"
    if weight.shape != (n_outputs, n_inputs):
        return f"has a weight of shape {tuple(weight.shape)}, not {(n_outputs, n_inputs)}"
    if bias is not None and bias.shape != (n_outputs,):
        return f"has a bias of shape {tuple(bias.shape)}, not {(n_outputs,)}"
    return weight, bias


def computes_itself(tensor: Tensor) -> bool:
    """Whether it is of a tensor subclass that brings operations of its own, which no backend but eager calls."""
    return type(tensor) not in _TENSORS and not _stands_for_a_tensor(tensor)


def _stands_for_a_tensor(tensor: Tensor) -> bool:
    """Whether it is what torch's own tracers put in a tensor's place."""
    from torch._subclasses.fake_tensor import FakeTensor  # slow to import, and seldom asked
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(tensor, (FakeTensor, FunctionalTensor))


def _described(module: object) -> str:
    cls = type(module)
    return "absent" if module is None else f"a {cls.__module__}.{cls.__qualname__}"


def announce(replaced: Replaced, backend: str, announced: set[str]) -> None:
    """Say that submodules will be called: once for each name, which is added to `announced`.

    Raises:
        RuntimeError: the layer's backend was named, and calls no submodules.
    """
    if backend == "eager" or torch.compiler.is_compiling():
        return
    if backend != "auto":
        raise RuntimeError(
            f"backend {backend!r} cannot serve this layer: it reads weights and calls no submodule, "
            f"but submodule {replaced.name!r} {replaced.why}; backend='eager' calls the submodules, "
            "and backend='auto' takes that here"
        )
    if replaced.name not in announced:
        announced.add(replaced.name)
        warnings.warn(
            f"AdaptiveLogSoftmaxWithLoss computes through its submodules because {replaced.name!r} "
            f"{replaced.why}: right, but as slow as torch.nn's layer and with all logits of a step in "
            "memory. backend='eager' says that this is meant",
            stacklevel=5,
        )


@dataclass(frozen=True)
class _CalledTail:
    module: nn.Module
    name: str
    n_classes: int

    def logits(self, hidden: Tensor) -> Tensor:
        return _called(self.module, self.name, hidden, self.n_classes)


class Called:
    """Scores by the submodules themselves; what `Weights` is, for a layer whose weights do not say it all."""

    def __init__(self, layer: nn.Module, layout: ClusterLayout) -> None:
        self._head, self._head_size = layer.get_submodule("head"), layout.head_size
        tails = layer.get_submodule("tail")
        if not isinstance(tails, nn.ModuleList) or len(tails) != layout.n_clusters:
            held = f" of {len(tails)}" if isinstance(tails, nn.ModuleList) else ""
            raise RuntimeError(
                f"submodule 'tail' should be a ModuleList of {layout.n_clusters} modules, one a cluster, "
                f"but is {_described(tails)}{held}"
            )
        self.tails = tuple(
            _CalledTail(module, f"tail.{cluster.index}", cluster.size)
            for cluster, module in zip(layout, tails, strict=True)
        )

    def head_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the shortlist and of the clusters' slots: [N, d] -> [N, head_size]."""
        return _called(self._head, "head", hidden, self._head_size)


def _called(module: nn.Module, name: str, hidden: Tensor, n_classes: int) -> Tensor:
    try:
        logits: Tensor = module(hidden)
    except Exception as error:
        error.add_note(
            f"raised by submodule {name!r} of AdaptiveLogSoftmaxWithLoss, a {type(module).__name__}"
        )
        raise
    if logits.shape != (hidden.shape[0], n_classes):
        raise RuntimeError(
            f"submodule {name!r} should give logits of size {(hidden.shape[0], n_classes)}, "
            f"but gave {tuple(logits.shape)}"
        )
    return logits
