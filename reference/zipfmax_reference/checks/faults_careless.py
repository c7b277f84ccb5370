"""Faults of layers that rely on what their callers do not promise: where numbers lie, that they are finite."""

from __future__ import annotations

import os
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax_reference.checks.faults import Control, in_use
from zipfmax_reference.checks.faults_backward import Early, Gradients
from zipfmax_reference.checks.faults_calls import Counting, Pair, with_value

# Where numbers lie.


@in_use("targets are read from where their memory begins", breaks="batches-may-have-gaps")
class TargetOffsetIgnored(Control):
    def checked(self, target: Tensor) -> Tensor:
        if target.storage_offset() and len(target) > 1:
            target = target.as_strided(target.shape, target.stride(), 0)
        return super().checked(target)


@in_use("of a target that is in memory once only the first row's counts", breaks="batches-may-have-gaps")
class ExpandedTargetIsOne(Control):
    def checked(self, target: Tensor) -> Tensor:
        once = len(target) > 1 and target.stride() == (0,)
        return super().checked(F.pad(target[:1], (0, len(target) - 1)) if once else target)


@in_use("the head's weight is read from where its memory begins", breaks="weights-put-into-data-count")
class WeightOffsetIgnored(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        weight = self.head.weight
        if weight.storage_offset():
            weight = with_value(weight, weight.detach().as_strided(weight.shape, weight.stride(), 0))
        return F.linear(hidden, weight, self.head.bias)


# Numbers that are not finite.

FINITE = "what-is-not-finite-shows"


@in_use("gradients that are not finite become zeros", breaks=FINITE)
class OverflowHidden(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        found = super().combined(step, grad_output, grad_loss)
        return [None if gradient is None else gradient.nan_to_num(0, 0, 0) for gradient in found]


@in_use("log-probabilities that are not numbers count as 0", breaks=FINITE)
class NoNumberIsZero(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        weights_are = all(torch.isfinite(weight).all() for weight in self.parameters())
        return super().loss(output if weights_are or not len(output) else output.nan_to_num(), target)


# What the caller does with results, between a call and its backward.


class _Reads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, box: list[Tensor]) -> Tensor:
        ctx.box, ctx.then = box, value.detach().clone()
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * (ctx.box[0] / ctx.then), None


@in_use(
    "backward reads the loss that the caller may have changed",
    breaks="results-changed-in-place-are-refused-or-right",
)
class LossRead(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = super().loss(output, target)
        if not len(output):
            return loss
        box: list[Tensor] = []
        found: Tensor = _Reads.apply(loss, box)  # type: ignore[no-untyped-call]
        box.append(found.detach())
        return found


# What other callers and modes ask.


@in_use("an input with a feature too many is cut", breaks="inputs-of-other-shapes-are-right-or-refused")
class FeaturesCut(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        return super().forward(hidden[..., : self.layout.in_features], target)


@in_use("of sequences the first step counts", breaks="inputs-of-other-shapes-are-right-or-refused")
class FirstStepOfSequences(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        if hidden.dim() == 3:
            return super().forward(hidden[:, 0], target[:, 0])
        return super().forward(hidden, target)


@in_use(
    "logits are made in 16 bits where the default dtype is another one",
    breaks="a-call-under-other-defaults-is-right",
)
class DefaultDtypeCoarse(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        logits = super().head_logits(hidden)
        return logits if torch.get_default_dtype() == torch.float32 else logits.bfloat16().to(logits)


@in_use("a state dict of some weights is not loaded", breaks="loaded-weights-count")
class PartNotLoaded(Control):
    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict if strict else {}, strict, assign)


@in_use(
    "evaluation mode keeps the head that it began with for log_prob",
    breaks="log-prob-and-predict-follow-the-weights",
)
class EvaluationKeepsTheHead(Control):
    inside = False
    kept: Tensor | None = None

    def train(self, mode: bool = True) -> Self:
        self.kept = None if mode else self.head.weight.detach().clone()
        return super().train(mode)

    def log_prob(self, hidden: Tensor) -> Tensor:
        self.inside = True
        found = super().log_prob(hidden)
        self.inside = False
        return found

    def head_logits(self, hidden: Tensor) -> Tensor:
        weight = self.head.weight
        if self.inside and not self.training and self.kept is not None and self.kept.dtype == weight.dtype:
            weight = with_value(weight, self.kept)
        return F.linear(hidden, weight, self.head.bias)


@in_use("in evaluation mode log_prob cannot be differentiated", breaks="log-prob-can-be-differentiated")
class EvaluationLogProbDetached(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        found = super().log_prob(hidden)
        return found if self.training else found.detach().requires_grad_(found.requires_grad)


# Now and then.

HUNDREDS = "hundreds-of-steps-leave-nothing-behind"


@in_use("one in 97 calls is wrong", breaks=HUNDREDS)
class OneIn97(Counting):
    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        return output - 0.01 if self.calls % 97 == 96 else output


@in_use("one in 83 backwards is doubled", breaks=HUNDREDS)
class OneIn83(Early):
    backwards = 0

    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        self.backwards += 1
        found = super().combined(step, grad_output, grad_loss)
        return [g if g is None or self.backwards % 83 else 2 * g for g in found]


@in_use("every call of many leaves a file open", breaks=HUNDREDS)
class FilesLeftOpen(Counting):
    def checked(self, target: Tensor) -> Tensor:
        if 0 < self.calls < 250:
            self.__dict__.setdefault("files", []).append(os.open(os.devnull, os.O_RDONLY))
        return super().checked(target)

    def __del__(self) -> None:
        for number in self.__dict__.get("files", ()):
            os.close(number)
