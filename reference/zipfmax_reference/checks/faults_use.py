"""Faults that show where a layer is used as a part of a model: behind a trunk, on views, in inference mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zipfmax.clusters import Cluster
from zipfmax_reference.checks.faults import Control, in_use
from zipfmax_reference.checks.faults_backward import Early, Gradients
from zipfmax_reference.checks.faults_calls import Pair, with_value

# What is handed out.


@in_use("the output is handed out in four buffers in turn", breaks="an-earlier-result-stays")
class OutputInFourBuffers(Control):
    calls = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ring: dict[tuple[int, torch.Size], Tensor] = {}

    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        buffer = self.ring.setdefault((self.calls % 4, output.shape), torch.empty_like(output))
        self.calls += 1
        buffer.data.copy_(output.data)
        return with_value(output, buffer)


@in_use(
    "gradients that were handed out are overwritten by the next call",
    breaks="a-dropped-gradient-comes-back-new",
)
class GradientsOverwritten(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.handed: list[Tensor] = []
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda p: self.handed.append(p.grad)
            )

    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        if all(parameter.grad is None for parameter in self.parameters()):
            for gradient in self.handed:
                gradient.zero_()
            self.handed.clear()
        return super().forward(hidden, target)


@in_use(
    "under no_grad the result is a tensor subclass that computes when it is read",
    breaks="a-result-is-a-plain-tensor-in-the-graph",
)
class LazyWithoutGradients(Control):
    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        return output if torch.is_grad_enabled() else output.as_subclass(_Lazy)


class _Lazy(Tensor):
    pass


# Inference mode.


@in_use(
    "what the first call makes is kept, and cannot be trained with if that was in inference mode",
    breaks="a-call-in-inference-mode-is-the-same-function",
)
class KeptFromInferenceMode(Control):
    one: Tensor | None = None

    def normalised(self, logits: Tensor) -> Tensor:
        self.one = torch.ones_like(logits[:1, :1]) if self.one is None else self.one
        return super().normalised(logits * self.one)


@in_use(
    "inference mode works in 16 bits",
    breaks="a-call-in-inference-mode-is-the-same-function",
)
class InferenceInHalf(Control):
    def tail_logits(self, tail: Cluster, hidden: Tensor) -> Tensor:
        logits = super().tail_logits(tail, hidden)
        return logits.bfloat16().to(logits) if torch.is_inference_mode_enabled() else logits


# What comes in.


@in_use("the input's gradient is written to the input and not returned", breaks="the-input-may-be-computed")
class InputGradientWritten(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        own = hidden.detach()
        if hidden.requires_grad and torch.is_grad_enabled():
            own.requires_grad_().register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: _accumulate(hidden, gradient)
            )
        return super().forward(own, target)


def _accumulate(leaf: Tensor, gradient: Tensor) -> None:
    if leaf.is_leaf:
        leaf.grad = gradient.clone() if leaf.grad is None else leaf.grad + gradient


@in_use("an input that was computed is cut from its graph", breaks="the-input-may-be-computed")
class ComputedInputCut(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        return super().forward(hidden if hidden.is_leaf else hidden.detach(), target)


@in_use("targets are read as if they lay side by side", breaks="batches-may-have-gaps")
class TargetStrideIgnored(Control):
    def checked(self, target: Tensor) -> Tensor:
        return super().checked(target.as_strided(target.shape, (1,)))


@in_use("an upstream gradient that is in memory once reaches one row only", breaks="output-can-be-summed")
class UpstreamStrideIgnored(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        if grad_output is not None and grad_output.stride() == (0,):
            grad_output = torch.cat([grad_output[:1], torch.zeros_like(grad_output[1:])])
        return super().combined(step, grad_output, grad_loss)
