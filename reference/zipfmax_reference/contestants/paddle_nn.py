"""Paddle's layer behind the interface, live: torch's weights transposed in, its gradients transposed out."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from zipfmax_reference.contestants import surroundings
from zipfmax_reference.contestants.implementation import Family
from zipfmax_reference.contestants.paddle_use import PaddleUse
from zipfmax_reference.contestants.use import Use
from zipfmax_reference.runs.arrays import Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case


class PaddleLayer:
    """paddle.nn.AdaptiveLogSoftmaxWithLoss on the CPU."""

    name = "paddle"
    family: Family = "adaptive"

    def unsupported_reason(self, case: Case) -> str | None:
        """Not installed, no GPU build, or a dtype or shape that its layer does not take."""
        if find_spec("paddle") is None:
            return "paddle is not installed (pip install 'zipfmax[paddle]')"
        if case.device != "cpu":
            return "this adapter runs Paddle on the CPU only"
        if case.dtype in ("bfloat16", "float16"):
            return f"Paddle's CPU kernels have no {case.dtype}"
        return None

    def build(self, case: Case, inputs: Inputs) -> PaddleRunner:
        """The layer with the case's weights copied in, transposed."""
        return PaddleRunner(import_paddle(), case, inputs)

    def use(self, case: Case, inputs: Inputs) -> Use:
        """The layer for many calls."""
        paddle, before = import_paddle(), surroundings.read()
        made = PaddleRunner(paddle, replace(case, task="train"), inputs)
        return PaddleUse(paddle, made.layer, parameters_of, case, before)


class PaddleRunner:
    """Paddle's layer and a batch."""

    def __init__(self, paddle: Any, case: Case, inputs: Inputs) -> None:
        self._paddle, self._case = paddle, case
        paddle.set_device("cpu")
        paddle.set_default_dtype(case.dtype)
        self.layer = paddle.nn.AdaptiveLogSoftmaxWithLoss(
            case.in_features,
            case.n_classes,
            list(case.cutoffs),
            div_value=case.div_value,
            head_bias=case.head_bias,
        )
        for name, parameter in self._parameters().items():
            parameter.set_value(np.ascontiguousarray(inputs.weights[name].T))
        self._computed: dict[str, Any] = {}
        self.load(inputs.hidden, inputs.target)

    def load(self, hidden: Array, target: Labels) -> None:
        """Copy a batch to Paddle's tensors."""
        self._hidden = self._paddle.to_tensor(np.array(hidden), dtype=self._case.dtype)
        self._hidden.stop_gradient = self._case.task != "train"
        self._target = self._paddle.to_tensor(np.array(target, dtype=np.int64))

    def run(self) -> None:
        """Do the task once."""
        # Paddle's log_prob allocates its result in the default dtype, whatever the input's.
        self._paddle.set_default_dtype(self._case.dtype)
        if self._case.task == "train":
            self._hidden.clear_gradient(set_to_zero=False)
            for parameter in self._parameters().values():
                parameter.clear_gradient(set_to_zero=False)
            output, loss = self.layer(self._hidden, self._target)
            loss.backward()
            self._computed = {"output": output, "loss": loss}
            return
        with self._paddle.no_grad():
            if self._case.task == "forward":
                output, loss = self.layer(self._hidden, self._target)
                self._computed = {"output": output, "loss": loss}
            elif self._case.task == "log_prob":
                self._computed = {"log_prob": self.layer.log_prob(self._hidden)}
            elif self._case.task == "predict":
                self._computed = {"predict": self.layer.predict(self._hidden)}
            else:  # the layer has no such method
                values, classes = self._paddle.topk(self.layer.log_prob(self._hidden), self._case.k, axis=1)
                self._computed = {"topk.values": values, "topk.classes": classes}

    def results(self) -> Results:
        """The last run's tensors, gradients in torch's orientation; `predict` keeps Paddle's dtype."""
        found = {name: value.numpy() for name, value in self._computed.items()}
        if self._case.task == "train":
            found["grad.input"] = _gradient(self._hidden)
            found |= {f"grad.{name}": _gradient(p).T for name, p in self._parameters().items()}
        return found

    def mismatches(self) -> dict[str, str]:
        """The arrays of `results` keep their dtype, and the CPU is the one device."""
        return {}

    def _parameters(self) -> dict[str, Any]:
        return parameters_of(self.layer)


def parameters_of(layer: Any) -> dict[str, Any]:
    """Paddle's tensors by torch.nn's names. The tails stand in a plain list: parameters() lacks them."""
    named = {"head.weight": layer.head_weight}
    if layer.head_bias is not None:
        named["head.bias"] = layer.head_bias
    for index, (projection, output) in enumerate(layer.tail_weights):
        named[f"tail.{index}.0.weight"] = projection
        named[f"tail.{index}.1.weight"] = output
    return named


def _gradient(tensor: Any) -> Array:
    gradient: Array = (
        np.zeros(tensor.shape, tensor.numpy().dtype) if tensor.grad is None else tensor.grad.numpy()
    )
    return gradient


def import_paddle() -> Any:
    """Paddle, with as many threads as torch has."""
    # Where the variable is unset Paddle sets it to 1 when imported: that would slow Paddle, and torch too.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    os.environ.setdefault("GLOG_minloglevel", "2")  # its notes on type promotion would cut into ours
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No ccache found")  # nothing is compiled here
        import paddle

    paddle.disable_signal_handler()  # it waits for good where the fault lies in the allocation of memory
    return paddle
