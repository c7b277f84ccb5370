"""Faults that show in one mode of a module or of torch only, and in what a layer leaves of the process's state."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.clusters import Cluster
from zipfmax_reference.checks.faults import Control, in_use
from zipfmax_reference.checks.faults_calls import Pair, of_four_bits


@in_use("evaluation mode softens the distribution", breaks="evaluation-mode-is-the-same-function")
class EvaluationSoftens(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        return super().normalised(logits if self.training else 0.99 * logits)


@in_use("evaluation mode softens log_prob", breaks="evaluation-mode-is-the-same-function")
class EvaluationSoftensLogProb(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        return super().log_prob(hidden if self.training else 0.99 * hidden)


@in_use("in evaluation mode predict knows the shortlist only", breaks="evaluation-mode-is-the-same-function")
class EvaluationPredictsShortlist(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        known = self.layout.n_classes if self.training else self.layout.shortlist_size
        return self.log_prob(hidden)[:, :known].argmax(dim=1)


@in_use(
    "evaluation without gradients scores with the head that it met first",
    breaks="evaluation-without-gradients-follows-the-weights",
)
class EvaluationHeadKept(Control):
    met: Tensor | None = None

    def head_logits(self, hidden: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled():
            return super().head_logits(hidden)
        self.met = self.head.weight.detach().clone() if self.met is None else self.met
        return F.linear(hidden, self.met, self.head.bias)


@in_use(
    "evaluation in inference mode softens the distribution",
    breaks="evaluation-without-gradients-follows-the-weights",
)
class EvaluationInferenceSoftens(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        soft = torch.is_inference_mode_enabled() and not self.training
        return super().normalised(0.99 * logits if soft else logits)


@in_use(
    "where gradients are recorded predict knows the shortlist only",
    breaks="log-prob-and-predict-follow-the-weights",
)
class RecordedPredictsShortlist(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        known = self.layout.shortlist_size if torch.is_grad_enabled() else self.layout.n_classes
        return self.log_prob(hidden)[:, :known].argmax(dim=1)


@in_use("under autocast the logits have 4 bits", breaks="autocast-keeps-to-its-precision")
class AutocastCoarse(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        coarse = torch.is_autocast_enabled("cpu")
        return super().normalised(of_four_bits(logits) if coarse else logits)


@in_use("one row's output lacks its cluster's part", breaks="one-row-is-a-batch-of-one")
class OneRowLacksItsCluster(Control):
    single = False

    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        self.single = hidden.dim() == 1
        return super().forward(hidden, target)

    def joint(self, tail: Cluster, prior: Tensor, within: Tensor) -> Tensor:
        return within if self.single else super().joint(tail, prior, within)


@in_use(
    "a call under no_grad turns gradients off for good",
    breaks="a-call-without-gradients-is-the-same-function",
)
class NoGradStays(Control):
    off = False

    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        self.off |= not torch.is_grad_enabled()
        return super().forward(hidden.detach() if self.off else hidden, target)


@in_use("a call under no_grad skips the tails", breaks="a-call-without-gradients-is-the-same-function")
class NoGradSkipsTails(Control):
    def joint(self, tail: Cluster, prior: Tensor, within: Tensor) -> Tensor:
        mixed = not torch.is_grad_enabled() and getattr(self, "trained", False)
        self.trained = torch.is_grad_enabled() or getattr(self, "trained", False)
        return prior if mixed else prior + within


@in_use("a call leaves the grad mode off", breaks="the-surroundings-stay")
class GradModeLeaks(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = super().loss(output, target)
        torch.set_grad_enabled(False)
        return loss


@in_use("a call leaves another default dtype", breaks="the-surroundings-stay")
class DefaultDtypeLeaks(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        torch.set_default_dtype(
            torch.float64 if torch.get_default_dtype() == torch.float32 else torch.float32
        )
        return super().loss(output, target)


@in_use("a call sets the seed", breaks="the-surroundings-stay")
class SeedLeaks(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        torch.manual_seed(0)
        return super().loss(output, target)


@in_use("a call sets NumPy's seed", breaks="the-surroundings-stay")
class NumpySeedLeaks(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        np.random.seed(0)
        return super().loss(output, target)


@in_use("in evaluation mode a call draws one of Python's random numbers", breaks="the-surroundings-stay")
class PythonDraws(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        if not self.training:
            random.random()
        return super().loss(output, target)


@in_use("log_prob leaves another number of threads", breaks="the-surroundings-stay")
class ThreadsLeak(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().log_prob(hidden)


@in_use("the constructor leaves another default dtype", breaks="the-surroundings-stay")
class DefaultDtypeOfTheConstructor(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        torch.set_default_dtype(torch.float16)


@in_use("a call leaves NumPy's errors off", breaks="the-surroundings-stay")
class NumpyErrorsLeak(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        np.seterr(all="ignore")
        return super().loss(output, target)


@in_use("predict draws random numbers", breaks="the-surroundings-stay")
class PredictDraws(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        torch.rand(1)
        return super().predict(hidden)
