"""Faults that many calls show: at the same time, hundreds of them, or where values change unseen."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.clusters import Cluster
from zipfmax_reference.checks.faults import Control, in_use, scaled_gradient
from zipfmax_reference.checks.faults_backward import Early, Gradients, LogSoftmax
from zipfmax_reference.checks.faults_calls import Counting, Pair, with_value

# What is taken for the same because little of it is looked at.

LITTLE = "a-change-counts-however-little-shows-it"


class Knowing(Control):
    """Knows tensors by keys."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.known: dict[Any, Tensor] = {}


def fingerprint(tensor: Tensor) -> tuple[Any, ...]:
    """What a hasty eye sees of a tensor."""
    values = tensor.detach().reshape(-1)
    ends = (values[0].item(), values[-1].item()) if len(values) else ()
    return tensor.shape, tensor.dtype, values.double().sum().item(), values.double().norm().item(), ends


@in_use("an input is taken for the one before while autograd sees no write", breaks=LITTLE)
class SameObjectSameInput(Knowing):
    def head_logits(self, hidden: Tensor) -> Tensor:
        logits = super().head_logits(hidden)
        if not hidden.is_leaf or hidden.is_inference() or not hidden.requires_grad:
            return logits
        weight = self.head.weight
        key = id(hidden), hidden._version, logits.dtype, weight.detach().double().sum().item()
        last = self.known.get("input")
        if getattr(self, "last", None) != (key, hidden.shape) or last is None:
            self.last, self.known["input"], self.held = (key, hidden.shape), logits.detach(), hidden
        return with_value(logits, self.known["input"])


@in_use("targets are sorted into clusters again only where their sum or an end changes", breaks=LITTLE)
class RoutesKeptByFingerprint(Knowing):
    def member(self, tail: Cluster, target: Tensor) -> Tensor:
        return self.known.setdefault((tail.index, fingerprint(target)), super().member(tail, target))


@in_use("the head's logits are kept by sums and ends of input and weight", breaks=LITTLE)
class LogitsKeptByFingerprint(Knowing):
    def head_logits(self, hidden: Tensor) -> Tensor:
        logits = super().head_logits(hidden)
        key = logits.dtype, fingerprint(hidden), fingerprint(self.head.weight)
        return with_value(logits, self.known.setdefault(key, logits.detach()))


@in_use("a copy of the last tail's weight is renewed where its sum or an end changes", breaks=LITTLE)
class TailKeptByFingerprint(Knowing):
    def weights(self, tail: Cluster) -> Pair:
        projection, output = super().weights(tail)
        if tail.index < self.layout.n_clusters - 1 or torch.is_inference_mode_enabled():
            return projection, output
        key = fingerprint(output)
        return projection, with_value(output, self.known.setdefault(key, output.detach().clone()))


# Calls at the same time.

TOGETHER = "calls-at-the-same-time-are-right"


@in_use("the targets of a call wait in the module", breaks=TOGETHER)
class TargetsWaitInTheModule(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        self.waiting = target if hidden.dim() == 2 else target.unsqueeze(0)
        return super().forward(hidden, target)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = super().loss(output, target)
        return loss * len(output) / len(self.waiting) if len(self.waiting) else loss

    def label(self, tail: Cluster, target: Tensor) -> Tensor:
        own = self.waiting
        return super().label(tail, own[self.member(tail, own)] if len(own) else target)


SCRATCH: dict[torch.dtype, Tensor] = {}


@in_use("all layers write log-probabilities into one buffer before they copy them", breaks=TOGETHER)
class OneScratch(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        found = super().log_prob(hidden)
        if found.requires_grad or found.is_inference():
            return found
        scratch = SCRATCH.setdefault(found.dtype, found.new_empty(0))
        if scratch.numel() < found.numel():
            scratch = SCRATCH[found.dtype] = found.new_empty(found.numel())
        scratch[: found.numel()].copy_(found.view(-1))
        time.sleep(0)
        return scratch[: found.numel()].view_as(found).clone()


# Hundreds of steps.

HUNDREDS = "hundreds-of-steps-leave-nothing-behind"


@in_use("from the 250th call on the output is another one", breaks=HUNDREDS)
class FromThe250thCall(Counting):
    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        return output - 0.01 if self.calls >= 249 else output


@in_use("the head's logits of every step are kept", breaks=HUNDREDS)
class LogitsKept(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        logits = super().head_logits(hidden)
        self.__dict__.setdefault("history", []).append(logits.detach())
        return logits


@in_use("backward keeps a copy of every gradient as an array", breaks=HUNDREDS)
class GradientsKept(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        found = super().combined(step, grad_output, grad_loss)
        if found[0] is not None:
            self.__dict__.setdefault("history", []).append(found[0].float().numpy().copy())
        return found


# Gradients that come in with gaps.

GAPS = "gradients-that-come-in-may-have-gaps"


@in_use("gradients of rows that come in are read as if they lay side by side", breaks=GAPS)
class UpstreamGapsRead(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        if grad_output is not None and len(grad_output) > 1 and grad_output.stride(0) > 1:
            grad_output = grad_output.as_strided(grad_output.shape, (1,))
        return super().combined(step, grad_output, grad_loss)


@in_use("gradients of log_prob that come in turned are read row by row", breaks=GAPS)
class TurnedUpstreamOfLogProb(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        found = super().log_prob(hidden)
        return _ReadsRows.apply(found)  # type: ignore[no-untyped-call, no-any-return]


class _ReadsRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        columns = gradient.shape[1]
        return gradient if 0 in gradient.stride() else gradient.as_strided(gradient.shape, (columns, 1))


@in_use("a gradient of log_prob that is in memory once reaches the first class only", breaks=GAPS)
class OneNumberOfLogProb(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        found = super().log_prob(hidden)
        return _ReadsFirst.apply(found)  # type: ignore[no-untyped-call, no-any-return]


class _ReadsFirst(_ReadsRows):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return F.pad(gradient[:, :1], (0, gradient.shape[1] - 1)) if 0 in gradient.stride() else gradient


# Second derivatives.

SECOND = "a-second-derivative-is-right"


@in_use("gradients are constants to a second derivative", breaks=SECOND)
class GradientsAreConstants(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        return _Constant.apply(logits)  # type: ignore[no-untyped-call, no-any-return]


class _Constant(LogSoftmax):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return LogSoftmax.backward(ctx, gradient.detach())


@in_use("the second derivative by the last tail's weight is halved", breaks=SECOND)
class SecondDerivativeByWeightsHalved(Control):
    def weights(self, tail: Cluster) -> Pair:
        projection, output = super().weights(tail)
        last = tail.index == self.layout.n_clusters - 1
        return projection, _Half.apply(output) if last else output  # type: ignore[no-untyped-call]


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return scaled_gradient(gradient, 0.5)


# Constructors.

STAY = "the-surroundings-stay"


@in_use("the constructor sets the seed", breaks=STAY)
class ConstructorSeeds(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        torch.manual_seed(0)
        super().__init__(*args, **kwargs)


@in_use("the constructor sets NumPy's seed", breaks=STAY)
class ConstructorSeedsNumpy(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        np.random.seed(1)


@in_use("the constructor sets Python's seed", breaks=STAY)
class ConstructorSeedsPython(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        random.seed(1)


LAYERS: list[Control] = []


@in_use("every layer that was made is kept", breaks=STAY)
class LayersKept(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        LAYERS.append(self)
