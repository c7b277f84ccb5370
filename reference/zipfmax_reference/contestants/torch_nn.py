"""Torch modules behind the interface: torch.nn's layer, zipfmax's, and anyone's with the same constructor."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zipfmax import AdaptiveLogSoftmaxWithLoss, backends
from zipfmax_reference.contestants import surroundings
from zipfmax_reference.contestants.implementation import Family
from zipfmax_reference.contestants.tensors import is_dtensor, plain, to_numpy
from zipfmax_reference.contestants.torch_use import TorchUse
from zipfmax_reference.runs.arrays import CLASSES, Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case

DEFAULTS = {"div_value": 4.0, "head_bias": False}
"""torch.nn's."""


class ParameterMismatchError(RuntimeError):
    """A module's parameters are not torch.nn's; `tensor` names the one that is not."""

    def __init__(self, tensor: str, fault: str) -> None:
        super().__init__(f"{fault} the parameter {tensor}")
        self.tensor = tensor


class TorchModule:
    """Any torch module with the constructor, results and parameter names of torch.nn's layer.

    Args:
        name: what it is known by.
        factory: makes the module for a case, with any weights, on any device.
        refusal: why it cannot do a case, or None; asked after the device is known to be here.
    """

    family: Family = "adaptive"

    def __init__(
        self,
        name: str,
        factory: Callable[[Case], nn.Module],
        refusal: Callable[[Case], str | None] = lambda case: None,
    ) -> None:
        self.name = name
        self._factory = factory
        self._refusal = refusal

    def unsupported_reason(self, case: Case) -> str | None:
        """The device is absent, or the module's own reason."""
        return missing_device(case) or self._refusal(case)

    def build(self, case: Case, inputs: Inputs) -> TorchRunner:
        """The module with the case's weights copied in.

        Raises:
            ParameterMismatchError: its parameters are not torch.nn's by name or shape.
        """
        module = _quietly(self._factory, case).to(device=case.device, dtype=torch_dtype(case))
        copy_weights(module, case, inputs)
        return TorchRunner(module, case, inputs)

    def use(self, case: Case, inputs: Inputs) -> TorchUse:
        """The module with the case's weights, for many calls."""

        def make() -> nn.Module:
            return self.build(replace(case, task="train"), inputs).module

        before = surroundings.read()
        return TorchUse(make(), case, before, make)


class ArgumentChangedError(RuntimeError):
    """A constructor changed what it was given; `tensor` names the argument."""

    def __init__(self, argument: str, given: object, left: object) -> None:
        super().__init__(f"the constructor changed the caller's {argument} from {given} to {left}")
        self.tensor = argument


class TorchRunner:
    """A torch module and a batch."""

    def __init__(self, module: nn.Module, case: Case, inputs: Inputs) -> None:
        self.module = module
        self._case = case
        self._computed: dict[str, Tensor] = {}
        self._batches = Batches(case)
        self.load(inputs.hidden, inputs.target)

    def load(self, hidden: Array, target: Labels) -> None:
        """Copy a batch to new tensors of the case's dtype, device and memory layout."""
        self._hidden, self._target = self._batches.load(hidden, target)

    def refill(self, hidden: Array, target: Labels) -> None:
        """Copy a batch into the tensors of the last `load`, which a captured CUDA graph reads."""
        self._batches.refill(self._hidden, self._target, hidden, target)

    def changed(self) -> str | None:
        """Which of the loaded tensors no longer holds what was loaded, in words, or None."""
        return self._batches.changed(self._hidden, self._target)

    def run(self) -> None:
        """Do the task once; a tensor subclass, which may compute when it is read, is read here."""
        if self._case.task == "train":
            self._train()
            for leaf in (self._hidden, *self.module.parameters()):
                if leaf.grad is not None and type(leaf.grad) is not Tensor and not is_dtensor(leaf.grad):
                    leaf.grad = plain(leaf.grad)
        else:
            self._evaluate()
        self._computed = {name: plain(value) for name, value in self._computed.items()}

    def _evaluate(self) -> None:
        with torch.no_grad():
            if self._case.task == "forward":
                output, loss = self.module(self._hidden, self._target)
                self._computed = {"output": output, "loss": loss}
            elif self._case.task == "log_prob":
                self._computed = {"log_prob": self.module.log_prob(self._hidden)}  # type: ignore[operator]
            elif self._case.task == "predict":
                self._computed = {"predict": self.module.predict(self._hidden)}  # type: ignore[operator]
            else:
                values, classes = self._topk()
                self._computed = {"topk.values": values, "topk.classes": classes}

    def results(self) -> Results:
        """The last run's tensors on the host."""
        return {name: to_numpy(plain(value)) for name, value in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The last run's tensors where they are."""
        found = dict(self._computed)
        if self._case.task == "train":
            found |= {f"grad.{name}": gradient for name, gradient in self._gradients().items()}
        return found

    def mismatches(self) -> dict[str, str]:
        """Dtype and device of each tensor of the last run against the input's."""
        faults = {
            name: fault for name, value in self.tensors().items() if (fault := self._fault(name, value))
        }
        if self._case.task == "train":
            for name, parameter in self.module.named_parameters():
                if not parameter.requires_grad:
                    faults[f"grad.{name}"] = "the parameter is frozen: its requires_grad is False"
        return faults

    def _train(self) -> None:
        self._hidden.grad = None
        for parameter in self.module.parameters():
            parameter.grad = None
        output, loss = self.module(self._hidden, self._target)
        loss.backward()
        # Detached, or the graph would live on, and its nodes would tie a CUDA graph to this run's stream.
        self._computed = {"output": output.detach(), "loss": loss.detach()}

    def _topk(self) -> tuple[Tensor, Tensor]:
        """The module's own topk, or where it has none the best of all its log-probabilities."""
        k = self._case.k
        if hasattr(self.module, "topk"):
            values, classes = self.module.topk(self._hidden, k)  # type: ignore[operator]
            return values, classes
        return self.module.log_prob(self._hidden).topk(k, dim=1)  # type: ignore[operator, no-any-return]

    def _gradients(self) -> dict[str, Tensor]:
        leaves = {"input": self._hidden, **dict(self.module.named_parameters())}
        return {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()
        }

    def _fault(self, name: str, value: Tensor) -> str | None:
        expected = torch.int64 if name in CLASSES else self._hidden.dtype
        if value.dtype != expected:
            return f"dtype {value.dtype}, expected {expected}"
        if value.device != self._hidden.device:
            return f"device {value.device}, expected {self._hidden.device}"
        return None


class Batches:
    """A batch as tensors of a case's dtype, device and memory layout.

    The last few stay allocated, so that a new batch does not get the address of one that was seen before.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._kept: deque[tuple[Tensor, Tensor]] = deque(maxlen=6)

    def load(self, hidden: Array, target: Labels) -> tuple[Tensor, Tensor]:
        """[N, d], which takes a gradient in a training step, and [N], in storage of their own."""
        made = tensor(hidden, self._case), self._labels(target)
        self._given = hidden, target
        self._kept.append((made[0].detach(), made[1]))
        return made[0].requires_grad_(self._case.task == "train"), made[1]

    def refill(self, to_hidden: Tensor, to_target: Tensor, hidden: Array, target: Labels) -> None:
        """Copy a batch into tensors that `load` made."""
        self._given = hidden, target
        with torch.no_grad():
            to_hidden.copy_(tensor(hidden, self._case))
            to_target.copy_(self._labels(target))

    def changed(self, hidden: Tensor, target: Tensor) -> str | None:
        """Which of two tensors no longer holds the batch that was loaded last, in words, or None."""
        given_hidden, given_target = self._given
        if not np.array_equal(to_numpy(target), given_target):
            return "the target was changed in place"
        if not np.array_equal(to_numpy(hidden), to_numpy(tensor(given_hidden, self._case)), equal_nan=True):
            return "the input was changed in place"
        return None

    def _labels(self, target: Labels) -> Tensor:
        return torch.from_numpy(np.array(target, dtype=np.int64)).to(self._case.device)


def torch_layer() -> TorchModule:
    """torch.nn.AdaptiveLogSoftmaxWithLoss."""
    return TorchModule("torch", lambda case: nn.AdaptiveLogSoftmaxWithLoss(**arguments(case)))


def zipfmax_layer(backend: str = "auto") -> TorchModule:
    """zipfmax's layer on a backend, by name or chosen by the input."""

    def factory(case: Case) -> nn.Module:
        return AdaptiveLogSoftmaxWithLoss(**arguments(case), backend=backend)

    def refusal(case: Case) -> str | None:
        if backend == "auto":
            return None
        if backend not in backends.BACKENDS:
            return f"this zipfmax has no backend {backend!r}"
        with torch.device(case.device):
            hidden = torch.empty(case.batch_size, case.in_features, dtype=torch_dtype(case))
        return backends.load(backend).refusal(hidden, _quietly(factory, case).weights())  # type: ignore[operator]

    return TorchModule("zipfmax" if backend == "auto" else f"zipfmax:{backend}", factory, refusal)


def users_layer(name: str, constructor: Callable[..., Any]) -> TorchModule:
    """Anyone's class with torch.nn's constructor, which need not take device and dtype: they are set later.

    Raises at build:
        TypeError: what it makes is not a torch module.
        ArgumentChangedError: the constructor changed the caller's list of cutoffs.
    """

    def factory(case: Case) -> nn.Module:
        in_features, n_classes, cutoffs = _sizes(case)
        module = constructor(in_features, n_classes, cutoffs, **_options(case))
        if tuple(cutoffs) != case.cutoffs:
            raise ArgumentChangedError("cutoffs", [*case.cutoffs], cutoffs)
        if isinstance(cutoffs, list):
            cutoffs[:] = cutoffs[::-1]  # it is the caller's, who may go on with it
        if not isinstance(module, nn.Module):
            raise TypeError(f"{name} makes a {type(module).__name__}, which is not a torch.nn.Module")
        return module

    return TorchModule(name, factory)


def arguments(case: Case) -> dict[str, Any]:
    """Keywords of torch.nn's constructor for a case."""
    return {
        "in_features": case.in_features,
        "n_classes": case.n_classes,
        "cutoffs": _cutoffs(case),
        "div_value": case.div_value,
        "head_bias": case.head_bias,
        "device": case.device,
        "dtype": torch_dtype(case),
    }


def _cutoffs(case: Case) -> Sequence[int]:
    """A list, or in cases with a head bias a tuple: a constructor takes any sequence."""
    return case.cutoffs if case.head_bias else list(case.cutoffs)


def _sizes(case: Case) -> tuple[int, int, Sequence[int]]:
    """What a user gives by position."""
    return case.in_features, case.n_classes, _cutoffs(case)


def _options(case: Case) -> dict[str, Any]:
    """What a user gives by name: nothing where a case has torch.nn's defaults, which then have to be the layer's."""
    given = arguments(case)
    if all(given[name] == default for name, default in DEFAULTS.items()):
        return {}
    return {name: given[name] for name in DEFAULTS}


def torch_dtype(case: Case) -> torch.dtype:
    """The case's dtype as torch knows it."""
    dtype: torch.dtype = getattr(torch, case.dtype)
    return dtype


def missing_device(case: Case) -> str | None:
    """Why the case's device cannot be used here, or None."""
    if case.device.startswith("cuda"):
        if not torch.cuda.is_available():
            return "no CUDA or ROCm device here"
        index = torch.device(case.device).index or 0
        if index >= torch.cuda.device_count():
            return f"there is no {case.device} here: torch sees {torch.cuda.device_count()} of them"
    return None


def tensor(values: Array, case: Case) -> Tensor:
    """Hidden states as a fresh tensor of the case's dtype and device, laid out as `case.hidden` says."""
    dtype, device = torch_dtype(case), case.device
    if case.hidden == "expanded" and len(values):
        row = torch.from_numpy(np.array(values[:1])).to(device=device, dtype=dtype)
        return row.expand(len(values), -1)
    made = torch.from_numpy(np.array(values)).to(device=device, dtype=dtype)
    if case.hidden == "strided":
        # Every other column of a wider tensor whose gaps are NaN: reading a gap shows.
        wide = torch.full((made.shape[0], 2 * made.shape[1]), torch.nan, dtype=dtype, device=device)
        wide[:, ::2] = made
        return wide[:, ::2]
    return made


def copy_weights(module: nn.Module, case: Case, inputs: Inputs) -> None:
    """Copy a case's weights into a module by name.

    Raises:
        ParameterMismatchError: a parameter is missing, is not torch.nn's, or has another shape.
    """
    own = dict(module.named_parameters())
    given = {name: array for name, array in inputs.weights.items() if not name.startswith("full.")}
    for name in sorted(own.keys() ^ given.keys()):
        raise ParameterMismatchError(name, "it lacks" if name in given else "it has, unlike torch.nn,")
    with torch.no_grad():
        for name, parameter in own.items():
            if parameter.shape != given[name].shape:
                shapes = f"with shape {tuple(parameter.shape)}, not {given[name].shape},"
                raise ParameterMismatchError(name, f"it has {shapes}")
            parameter.copy_(torch.from_numpy(given[name]))


def _quietly(factory: Callable[[Case], nn.Module], case: Case) -> nn.Module:
    """Make a module without torch's note on initialising nothing: a projection of width 0 is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        return factory(case)
