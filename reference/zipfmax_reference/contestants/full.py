"""Full softmax, which adaptive softmax has to beat: one matrix over all classes, then cross entropy.

`Full` is what most models do. Its subclasses in `fused` and `sampled` are what others do in its place; each
has settings, and is timed with those that are fastest while exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax_reference.contestants.implementation import Family, GradientSupport
from zipfmax_reference.contestants.settings import (
    Choice,
    ExactnessCheck,
    LossOverMatrix,
    Setting,
    choose,
    linear_cross_entropy,
    seconds_of,
)
from zipfmax_reference.contestants.tensors import to_numpy
from zipfmax_reference.contestants.torch_nn import Batches, missing_device, torch_dtype
from zipfmax_reference.runs.arrays import CLASSES, Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import FULL_WEIGHT, full_weight

_CHOICES: dict[tuple[Any, ...], Choice] = {}
"""What was found in this process, by name, device, dtype, task and shape."""


class Full:
    """Linear and cross entropy, as written; also log_prob, predict and topk."""

    name = "full"
    family: Family = "full"
    gradients = GradientSupport(True, "autograd of linear and cross entropy")
    tasks: tuple[str, ...] = ("forward", "train", "log_prob", "predict", "topk")

    def unsupported_reason(self, case: Case) -> str | None:
        """The device is absent, the task is not computed, or what the variant itself needs is."""
        reason = missing_device(case) or self.needs(case)
        if reason is None and case.task not in self.tasks:
            reason = f"{self.name} computes only the loss, not {case.task}"
        return reason

    def needs(self, case: Case) -> str | None:
        """What the variant itself needs and is not there, or None."""
        return None

    def settings(self, case: Case) -> Sequence[Setting]:
        """The settings that may be fastest for a case, in the order of preference."""
        return [Setting("", lambda: linear_cross_entropy)]

    def build(self, case: Case, inputs: Inputs) -> FullRunner:
        """The case's `full.weight` on its device, with the first of the settings."""
        first = Choice(self.settings(case)[0])
        return self._runner(first, self._weight(case, inputs), case, inputs)

    def build_fastest(self, case: Case, inputs: Inputs) -> FullRunner:
        """As `build`, with the fastest exact setting: what is timed is built so.

        The settings are tried when a device, dtype, task and shape are built first; what was found is kept.
        """
        weight = self._weight(case, inputs)
        key = (
            *(self.name, case.device, case.dtype, case.task),
            *(case.n_classes, case.in_features, case.batch_size),
        )
        if key not in _CHOICES:
            _CHOICES[key] = self._search(case, inputs, weight)
        return self._runner(_CHOICES[key], weight, case, inputs)

    @staticmethod
    def _weight(case: Case, inputs: Inputs) -> Tensor:
        return torch.from_numpy(full_weight(case, inputs)).to(case.device, torch_dtype(case), copy=True)

    @staticmethod
    def _runner(choice: Choice, weight: Tensor, case: Case, inputs: Inputs) -> FullRunner:
        return FullRunner(choice.setting, weight, case, inputs, choice.text(case.n_classes))

    def _search(self, case: Case, inputs: Inputs, weight: Tensor) -> Choice:
        settings, check = self.settings(case), None

        def inexact(setting: Setting) -> str | None:
            if not self.gradients.exact:
                return None  # it says so itself
            nonlocal check
            check = check or ExactnessCheck(case)
            return check.fault(setting)

        def seconds(setting: Setting, best: float) -> float:
            return seconds_of(FullRunner(setting, weight, case, inputs).run, weight.device, best)

        return choose(settings, inexact, seconds)


class FullRunner:
    """A loss over one matrix, and a batch.

    Args:
        setting: how the loss is computed.
        weight: [V, d].
        case, inputs: what is computed.
        settings: the setting in words, as it is recorded.
    """

    def __init__(
        self, setting: Setting, weight: Tensor, case: Case, inputs: Inputs, settings: str = ""
    ) -> None:
        self.settings = settings
        self._case = case
        self._model = LossOverMatrix(setting, weight, case.task == "train")
        self._computed: dict[str, Tensor] = {}
        self._batches = Batches(case)
        self.load(inputs.hidden, inputs.target)

    def load(self, hidden: Array, target: Labels) -> None:
        """Copy a batch to new tensors on the device."""
        self._hidden, self._target = self._batches.load(hidden, target)

    def refill(self, hidden: Array, target: Labels) -> None:
        """Copy a batch into the tensors of the last `load`, which a captured CUDA graph reads."""
        self._batches.refill(self._hidden, self._target, hidden, target)

    def changed(self) -> str | None:
        """Which of the loaded tensors no longer holds what was loaded, in words, or None."""
        return self._batches.changed(self._hidden, self._target)

    def run(self) -> None:
        """Do the task once."""
        if self._case.task == "train":
            self._hidden.grad = None
            self._model.weight.grad = None
            loss = self._model.loss(self._hidden, self._target)
            loss.backward()  # type: ignore[no-untyped-call]
            self._computed = {"loss": loss.detach()}  # or the graph would live on
            return
        with torch.no_grad():
            if self._case.task == "forward":
                self._computed = {"loss": self._model.loss(self._hidden, self._target)}
                return
            logits = F.linear(self._hidden, self._model.weight)
            if self._case.task == "log_prob":
                self._computed = {"log_prob": F.log_softmax(logits, dim=1)}
            elif self._case.task == "predict":
                self._computed = {"predict": logits.argmax(dim=1)}
            else:
                values, classes = logits.topk(self._case.k, dim=1)
                values -= logits.logsumexp(dim=1, keepdim=True)
                self._computed = {"topk.values": values, "topk.classes": classes}

    def results(self) -> Results:
        """The last run's tensors on the host."""
        return {name: to_numpy(value) for name, value in self.tensors().items()}

    def mismatches(self) -> dict[str, str]:
        """Dtype of each tensor against the input's; the loss may be wider, as some fused losses make it."""
        return {
            name: f"dtype {value.dtype}, expected {self._hidden.dtype}"
            for name, value in self.tensors().items()
            if name not in (*CLASSES, "loss") and value.dtype != self._hidden.dtype
        }

    def tensors(self) -> dict[str, Tensor]:
        """The last run's tensors where they are."""
        tensors = dict(self._computed)
        if self._case.task == "train":
            own = self._hidden.grad
            tensors["grad.input"] = torch.zeros_like(self._hidden) if own is None else own
            tensors[f"grad.{FULL_WEIGHT}"] = self._model.gradient()
        return tensors
