"""Full softmax, which adaptive softmax has to beat: one matrix over all classes, then cross entropy."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax_reference.contestants.implementation import Array, Family, Inputs, Labels, Results
from zipfmax_reference.contestants.torch_nn import missing_device, tensor, to_numpy, torch_dtype
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.inputs import FULL_WEIGHT
from zipfmax_reference.truth.contract import CLASSES
from zipfmax_reference.truth.definition import full_weight

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden [N, d], weight [V, d], target [N]) -> mean loss []."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """What most models do."""
    return F.cross_entropy(F.linear(hidden, weight), target)


class Full:
    """Linear and cross entropy; also log_prob, predict and topk."""

    name = "full"
    family: Family = "full"

    def lacks(self, case: Case) -> str | None:
        """The device is absent, the task is not computed, or what the variant itself needs is."""
        reason = missing_device(case) or self._needs(case)
        if reason is None and case.task not in self._tasks():
            reason = f"{self.name} computes the loss alone, not {case.task}"
        return reason

    def build(self, case: Case, inputs: Inputs) -> FullRunner:
        """The case's `full.weight` on its device."""
        weight = torch.from_numpy(full_weight(case, inputs)).to(case.device, torch_dtype(case), copy=True)
        return FullRunner(self._loss(), weight, case, inputs)

    def _tasks(self) -> tuple[str, ...]:
        return ("forward", "train", "log_prob", "predict", "topk")

    def _needs(self, case: Case) -> str | None:
        return None

    def _loss(self) -> Loss:
        return linear_cross_entropy


class _LossAlone(Full):
    def _tasks(self) -> tuple[str, ...]:
        return ("forward", "train")


class Chunked(_LossAlone):
    """torch's own chunked F.linear_cross_entropy, which never holds all logits at once."""

    name = "full:chunked"

    def _needs(self, case: Case) -> str | None:
        if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
            return f"torch {torch.__version__} has no chunked F.linear_cross_entropy"
        return None

    def _loss(self) -> Loss:
        options = torch.nn.LinearCrossEntropyOptions()
        return lambda hidden, weight, target: F.linear_cross_entropy(hidden, weight, target, options=options)


class Compiled(_LossAlone):
    """Linear and cross entropy under torch.compile."""

    name = "full:compiled"

    def _needs(self, case: Case) -> str | None:
        if case.device != "cpu":
            return None if find_spec("triton") else "torch.compile needs Triton for a GPU"
        if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
            return "torch.compile needs a C++ compiler on the CPU, and none is on the path"
        if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
            return "torch.compile needs Python's C headers on the CPU, and Python.h is not installed"
        return None

    def _loss(self) -> Loss:
        return torch.compile(linear_cross_entropy, dynamic=False)


class Liger(_LossAlone):
    """liger-kernel's fused linear cross entropy (Triton)."""

    name = "full:liger"

    def _needs(self, case: Case) -> str | None:
        return _needs_gpu_package(case, "liger_kernel", "liger-kernel")

    def _loss(self) -> Loss:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        fused: Any = LigerFusedLinearCrossEntropyLoss()
        return lambda hidden, weight, target: fused(weight, hidden, target)


class CutCrossEntropy(_LossAlone):
    """Apple's cut cross entropy (Triton), which computes in 16 bits alone."""

    name = "full:cce"

    def _needs(self, case: Case) -> str | None:
        reason = _needs_gpu_package(case, "cut_cross_entropy", "cut-cross-entropy")
        if reason is None and case.dtype not in ("bfloat16", "float16"):
            reason = "cut-cross-entropy computes in bfloat16 and float16 alone"
        return reason

    def _loss(self) -> Loss:
        from cut_cross_entropy import linear_cross_entropy as cut

        return lambda hidden, weight, target: cut(hidden, weight, target)


class FullRunner:
    """A loss over one matrix, and a batch."""

    def __init__(self, loss: Loss, weight: Tensor, case: Case, inputs: Inputs) -> None:
        self._loss, self._case = loss, case
        self._weight = weight.requires_grad_(case.task == "train")
        self._computed: dict[str, Tensor] = {}
        self.load(inputs.hidden, inputs.target)

    def load(self, hidden: Array, target: Labels) -> None:
        """Copy a batch to the device."""
        self._hidden = tensor(hidden, self._case).requires_grad_(self._case.task == "train")
        self._target = torch.from_numpy(np.array(target, dtype=np.int64)).to(self._case.device)

    def run(self) -> None:
        """Do the task once."""
        if self._case.task == "train":
            self._hidden.grad = None
            self._weight.grad = None
            loss = self._loss(self._hidden, self._weight, self._target)
            loss.backward()  # type: ignore[no-untyped-call]
            self._computed = {"loss": loss.detach()}  # or the graph would live on
            return
        with torch.no_grad():
            if self._case.task == "forward":
                self._computed = {"loss": self._loss(self._hidden, self._weight, self._target)}
            elif self._case.task == "log_prob":
                logits = F.linear(self._hidden, self._weight)
                self._computed = {"log_prob": F.log_softmax(logits, dim=1)}
            elif self._case.task == "predict":
                self._computed = {"predict": F.linear(self._hidden, self._weight).argmax(dim=1)}
            else:
                logits = F.linear(self._hidden, self._weight)
                values, classes = logits.topk(self._case.k, dim=1)
                values -= logits.logsumexp(dim=1, keepdim=True)
                self._computed = {"topk.values": values, "topk.classes": classes}

    def results(self) -> Results:
        """The last run's tensors on the host."""
        return {name: to_numpy(value) for name, value in self._tensors().items()}

    def mismatches(self) -> dict[str, str]:
        """Dtype of each tensor against the input's; the loss may be wider, as some fused losses make it."""
        return {
            name: f"dtype {value.dtype}, expected {self._hidden.dtype}"
            for name, value in self._tensors().items()
            if name not in (*CLASSES, "loss") and value.dtype != self._hidden.dtype
        }

    def _tensors(self) -> dict[str, Tensor]:
        tensors = dict(self._computed)
        if self._case.task == "train":
            for name, leaf in (("grad.input", self._hidden), (f"grad.{FULL_WEIGHT}", self._weight)):
                tensors[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        return tensors


def _needs_gpu_package(case: Case, package: str, distribution: str) -> str | None:
    if find_spec(package) is None:
        return f"{distribution} is not installed (pip install {distribution})"
    return None if case.device != "cpu" else f"{distribution} needs a GPU"
