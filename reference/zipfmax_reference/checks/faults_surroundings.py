"""Faults in what a layer does to the process around it, and in which targets it takes."""

from __future__ import annotations

import gc
import os
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax_reference.checks.faults import Control, in_use
from zipfmax_reference.checks.faults_calls import Pair

STAY = "the-surroundings-stay"


@in_use("a call leaves warnings off", breaks=STAY)
class WarningsOff(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        warnings.simplefilter("ignore")
        return super().loss(output, target)


@in_use("log_prob leaves garbage collection off", breaks=STAY)
class CollectionOff(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        gc.disable()
        return super().log_prob(hidden)


@in_use("a call leaves garbage collection on", breaks=STAY)
class CollectionOn(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        gc.enable()
        return super().loss(output, target)


@in_use("a call has denormal numbers flushed to zero", breaks=STAY)
class DenormalsFlushed(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = super().loss(output, target)
        torch.set_flush_denormal(True)
        return loss


@in_use("predict leaves another working directory", breaks=STAY)
class DirectoryLeaks(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        found = super().predict(hidden)
        os.chdir("/")
        return found


@in_use("a call sets an environment variable", breaks=STAY)
class EnvironmentLeaks(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        os.environ["OMP_WAIT_POLICY"] = "ACTIVE"
        return super().loss(output, target)


@in_use("a call leaves autocast in another dtype", breaks=STAY)
class AutocastDtypeLeaks(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        torch.set_autocast_dtype("cpu", torch.float16)
        return super().loss(output, target)


@in_use("a call leaves nondeterministic algorithms to warn only", breaks=STAY)
class DeterminismLeaks(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = super().loss(output, target)
        torch.backends.cudnn.benchmark = True
        return loss


@in_use("a call sets the number of threads to what it was when torch was imported", breaks=STAY)
class ThreadsReset(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.threads = torch.get_num_threads()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        torch.set_num_threads(self.threads)
        return super().loss(output, target)


@in_use("a call prints arrays in another way from then on", breaks=STAY)
class PrintingLeaks(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        np.set_printoptions(precision=3)
        return super().loss(output, target)


@in_use("a call replaces a function of torch", breaks=STAY)
class FunctionReplaced(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        plain = F.dropout
        F.dropout = lambda *args, **kwargs: plain(*args, **kwargs)
        return super().loss(output, target)


@in_use("a call under no_grad records gradients from then on", breaks=STAY)
class GradModeOn(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        return super().loss(output, target)


@in_use("a target that is refused leaves the grad mode off", breaks=STAY)
class RefusalLeavesGradModeOff(Control):
    def checked(self, target: Tensor) -> Tensor:
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        target = super().checked(target)
        torch.set_grad_enabled(before)
        return target


# Targets.

RAISES = "a-target-out-of-range-raises"
KINDS = "targets-of-other-kinds-are-right-or-refused"


class Wrapping(Control):
    """Takes what is out of range for another class."""

    def wrapped(self, target: Tensor) -> Tensor:
        return target % self.layout.n_classes


@in_use("under no_grad targets are not checked", breaks=RAISES)
class UncheckedWithoutGradients(Wrapping):
    def checked(self, target: Tensor) -> Tensor:
        return super().checked(target) if torch.is_grad_enabled() else self.wrapped(target)


@in_use("in evaluation mode targets are not checked", breaks=RAISES)
class UncheckedInEvaluation(Wrapping):
    def checked(self, target: Tensor) -> Tensor:
        return super().checked(target) if self.training else self.wrapped(target)


@in_use("a target of -2 is left out of the loss", breaks=RAISES)
class MinusTwoIsPadding(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        there = target != -2
        if hidden.dim() == 1 or there.all():
            return super().forward(hidden, target)
        return super().forward(hidden[there], target[there])


@in_use("targets are cut to 32 bits before they are checked", breaks=RAISES)
class CutTo32Bits(Control):
    def checked(self, target: Tensor) -> Tensor:
        return super().checked(target.int().long())


@in_use("the first target is not checked", breaks=RAISES)
class FirstUnchecked(Wrapping):
    def checked(self, target: Tensor) -> Tensor:
        super().checked(target[1:])
        return self.wrapped(target)


@in_use("targets of 16 bits are taken for places in the head", breaks=KINDS)
class ShortTargetsTaken(Control):
    def checked(self, target: Tensor) -> Tensor:
        short = target.dtype == torch.int16
        return super().checked(target.long() % self.layout.head_size if short else target)


@in_use("targets in a column are cut to their first", breaks=KINDS)
class ColumnTaken(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        return super().forward(hidden, target[:1, 0].expand(len(hidden)) if target.dim() == 2 else target)


@in_use("targets that are no whole numbers are rounded", breaks=KINDS)
class FloatTargetsRounded(Control):
    def checked(self, target: Tensor) -> Tensor:
        return super().checked(target.long() - 1 if target.is_floating_point() else target)


@in_use("a target too few is filled up", breaks=KINDS)
class FilledUp(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        missing = len(hidden) - len(target) if hidden.dim() == 2 else 0
        return super().forward(hidden, F.pad(target, (0, missing)) if missing > 0 else target)
