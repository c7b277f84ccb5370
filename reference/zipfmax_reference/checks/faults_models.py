"""Faults that show where a model relies on a layer: on its hooks, on one row, on scaled gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zipfmax_reference.checks.faults import Control, in_use
from zipfmax_reference.checks.faults_backward import Early, Gradients
from zipfmax_reference.checks.faults_calls import Pair

HOOKS = "hooks-of-modules-run"
ONE = "a-batch-of-one-row-is-a-batch"
METHODS = "methods-of-modules-are-kept"
LEAVES = "a-call-leaves-the-module-and-its-inputs-as-they-are"


class Without(Control):
    """Calls itself without hooks of some kinds."""

    kinds: tuple[str, ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        held = {kind: getattr(self, kind) for kind in self.kinds}
        try:
            for kind in self.kinds:
                setattr(self, kind, type(held[kind])())
            return nn.Module.__call__(self, *args, **kwargs)
        finally:
            for kind, hooks in held.items():
                setattr(self, kind, hooks)


@in_use("a call runs no hooks", breaks=HOOKS)
class HooksSkipped(Control):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


@in_use("a call runs no forward pre-hooks", breaks=HOOKS)
class PreHooksSkipped(Without):
    kinds = ("_forward_pre_hooks",)


@in_use("a call runs no forward hooks", breaks=HOOKS)
class ForwardHooksSkipped(Without):
    kinds = ("_forward_hooks",)


@in_use("a call runs no backward hooks", breaks=HOOKS)
class BackwardHooksSkipped(Without):
    kinds = ("_backward_hooks", "_backward_pre_hooks")


@in_use("a call runs the hooks and drops what they return", breaks=HOOKS)
class HookResultsDropped(Control):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = self.forward(*args, **kwargs)
        for before in self._forward_pre_hooks.values():
            before(self, args)
        for after in self._forward_hooks.values():
            after(self, args, found)
        return found


@in_use("a call runs its own hooks only, not those of all modules", breaks="hooks-of-all-modules-run")
class HooksOfAllModulesSkipped(Control):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._forward_hooks or self._forward_pre_hooks or self._backward_hooks:
            return nn.Module.__call__(self, *args, **kwargs)
        return self.forward(*args, **kwargs)


@in_use("log_prob of one row is 0.01 too small", breaks=ONE)
class OneRowLogProb(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        found = super().log_prob(hidden)
        return found - 0.01 if len(hidden) == 1 else found


@in_use("predict of one row is the first class", breaks=ONE)
class OneRowPredicts(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        found = super().predict(hidden)
        return found * 0 if len(hidden) == 1 else found


@in_use("one row's gradient is doubled", breaks=ONE)
class OneRowDoubled(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        found = super().combined(step, grad_output, grad_loss)
        twice = len(step.target) == 1
        return [gradient * 2 if twice and gradient is not None else gradient for gradient in found]


@in_use("a gradient of less than 1e-6 that comes in is dropped", breaks="the-incoming-gradient-counts")
class SmallUpstreamDropped(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        if grad_loss is not None and abs(float(grad_loss)) < 1e-6:
            grad_loss = torch.zeros_like(grad_loss)
        return super().combined(step, grad_output, grad_loss)


@in_use("gradients of rows that come in are clipped at 16", breaks="output-can-be-differentiated")
class RowsUpstreamClipped(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        clipped = None if grad_output is None else grad_output.clamp(-16, 16)
        return super().combined(step, clipped, grad_loss)


@in_use("predict keeps its weights while autograd sees no write", breaks="weights-put-into-data-count")
class PredictKeepsWeights(Control):
    met: tuple[Any, Tensor] | None = None

    def predict(self, hidden: Tensor) -> Tensor:
        weight = self.head.weight
        key = id(weight), weight._version, weight.dtype
        if self.met is None or self.met[0] != key:
            self.met = key, weight.detach().clone()
        own = weight.data
        try:
            weight.data = self.met[1]
            return super().predict(hidden)
        finally:
            weight.data = own


@in_use("a target that is refused leaves evaluation mode", breaks="a-target-out-of-range-raises")
class RefusalLeavesEvaluation(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        before = self.training
        self.training = False
        found = super().forward(hidden, target)
        self.training = before
        return found


@in_use("train() returns nothing", breaks=METHODS)
class TrainReturnsNothing(Control):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)


@in_use("eval() reaches no submodule", breaks=METHODS)
class EvalOfItselfAlone(Control):
    def train(self, mode: bool = True) -> Any:
        self.training = mode
        return self


@in_use("a state dict knows no prefix, so that a model's checkpoint loses it", breaks=METHODS)
class StateWithoutPrefix(Control):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return super().state_dict()


@in_use("a state dict holds copies, so that what is written into it is lost", breaks=METHODS)
class StateOfCopies(Control):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        found = super().state_dict(*args, **kwargs)
        return found if kwargs.get("keep_vars") else {name: one.clone() for name, one in found.items()}


@in_use("an optimizer is not given the last projection", breaks=METHODS)
class ParameterKeptBack(Control):
    def parameters(self, recurse: bool = True) -> Any:
        found = list(super().parameters(recurse))
        return iter(found[:-2] + found[-1:])


@in_use("zero_grad zeroes nothing unless it may drop gradients", breaks=METHODS)
class ZeroGradKeeps(Control):
    def zero_grad(self, set_to_none: bool = True) -> None:
        if set_to_none:
            super().zero_grad(True)


@in_use("every output is kept, detached, for a history that nobody reads", breaks=LEAVES)
class OutputsKept(Control):
    def forward(self, input: Tensor, target: Tensor) -> Any:
        found = super().forward(input, target)
        self.__dict__.setdefault("history", []).append(found[0].detach())
        return found


@in_use("every matrix of log-probabilities is kept", breaks=LEAVES)
class LogProbsKept(Control):
    def log_prob(self, input: Tensor) -> Tensor:
        found = super().log_prob(input)
        self.__dict__.setdefault("history", []).append(found.detach())
        return found
