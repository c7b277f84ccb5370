"""A TensorFlow 2 layer with PAR-Transformer-XL's parametrisation, written from its description.

It meets the definition where its differences are switched off or are zero:
- every Dense has a bias: the head's is the case's, those of projections and outputs are set to zero;
- its cutoffs include n_classes;
- its projections are at least 1 wide, where the definition lets them be 0;
- label 0 is padding, whose loss is zeroed but stays in the mean's denominator: here only if asked for.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from zipfmax_reference.contestants.child import Child, ChildRunner
from zipfmax_reference.contestants.implementation import Family
from zipfmax_reference.runs.arrays import Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case


class TensorFlowLayer:
    """PAR-Transformer-XL's adaptive softmax in TensorFlow 2, on the CPU, in a process of its own."""

    name = "tensorflow"
    family: Family = "adaptive"

    _child = Child("zipfmax_reference.contestants.tensorflow_layer:TensorFlowRunner")

    def unsupported_reason(self, case: Case) -> str | None:
        """Not installed, no GPU build, or a projection of width 0, which this layer widens to 1."""
        if find_spec("tensorflow") is None:
            return "tensorflow is not installed (pip install 'zipfmax[tensorflow]')"
        if case.device != "cpu":
            return "this adapter runs TensorFlow on the CPU only"
        if case.dtype in ("bfloat16", "float16"):
            return f"this adapter does not run TensorFlow in {case.dtype}"
        if any(tail.projection_size == 0 for tail in case.layout):
            return "its projections are at least 1 wide: a width of 0 is another function there"
        return None

    def build(self, case: Case, inputs: Inputs) -> ChildRunner:
        """The layer with the case's weights copied in, transposed; biases that the case lacks are zero."""
        return self._child.build(case, inputs)


class AdaptiveSoftmax:
    """The layer's computation on a dictionary of variables, named and shaped as `variables_for` does."""

    def __init__(
        self,
        tf: Any,
        cutoffs_with_n_classes: tuple[int, ...],
        variables: dict[str, Any],
        padding_label: int | None = 0,
    ) -> None:
        self._tf, self.variables, self.padding_label = tf, variables, padding_label
        self._shortlist = cutoffs_with_n_classes[0]
        self._bounds = list(pairwise(cutoffs_with_n_classes))

    def nll(self, hidden: Any, target: Any) -> tuple[Any, Any]:
        """Log-probability of each target [N] and the mean loss []."""
        tf = self._tf
        head = tf.nn.log_softmax(self._dense("head", hidden))
        slot = target
        for i, (start, stop) in enumerate(self._bounds):
            member = (target >= start) & (target < stop)
            slot = tf.where(member, tf.cast(self._shortlist + i, target.dtype), slot)
        output = tf.gather(head, slot, batch_dims=1)
        for i, (start, stop) in enumerate(self._bounds):
            rows = tf.where((target >= start) & (target < stop))
            within = self._tail(i, tf.gather_nd(hidden, rows))
            label = tf.gather_nd(target, rows) - start
            output = tf.tensor_scatter_nd_add(output, rows, tf.gather(within, label, batch_dims=1))
        counted = output
        if self.padding_label is not None:
            counted = tf.where(target == self.padding_label, tf.zeros_like(output), output)
        return output, -tf.reduce_mean(counted)

    def log_prob(self, hidden: Any) -> Any:
        """Log-probabilities of all classes, [N, n_classes]."""
        tf = self._tf
        head = tf.nn.log_softmax(self._dense("head", hidden))
        parts = [head[:, : self._shortlist]]
        for i in range(len(self._bounds)):
            parts.append(head[:, self._shortlist + i, None] + self._tail(i, hidden))
        return tf.concat(parts, axis=1)

    def _tail(self, index: int, hidden: Any) -> Any:
        projected = self._dense(f"tail.{index}.0", hidden)
        return self._tf.nn.log_softmax(self._dense(f"tail.{index}.1", projected))

    def _dense(self, name: str, values: Any) -> Any:
        kernel, bias = self.variables[f"{name}.weight"], self.variables[f"{name}.bias"]
        return self._tf.matmul(values, kernel) + bias


def variables_for(tf: Any, case: Case, inputs: Inputs) -> dict[str, Any]:
    """Kernels [in, out] and biases [out] of every Dense, by torch.nn's names with a bias for each."""
    variables = {}
    for name, weight in inputs.weights.items():
        if name.endswith(".weight") and not name.startswith("full."):
            bias = name.removesuffix("weight") + "bias"
            zero = np.zeros(weight.shape[0], dtype=weight.dtype)
            variables[name] = tf.Variable(np.ascontiguousarray(weight.T), dtype=case.dtype)
            variables[bias] = tf.Variable(inputs.weights.get(bias, zero), dtype=case.dtype)
    return variables


class TensorFlowRunner:
    """The layer and a batch; each task is one traced graph, as Keras runs it."""

    def __init__(self, case: Case, inputs: Inputs, padding_label: int | None = None) -> None:
        self._tf = tf = import_tensorflow()
        self._case = case
        bounds = (*case.cutoffs, case.n_classes)
        self._layer = AdaptiveSoftmax(tf, bounds, variables_for(tf, case, inputs), padding_label)
        self._names = [name for name in inputs.weights if not name.startswith("full.")]
        self._step = tf.function(getattr(self, f"_{case.task}"))
        self._computed: dict[str, Any] = {}
        self.load(inputs.hidden, inputs.target)

    def load(self, hidden: Array, target: Labels) -> None:
        """Copy a batch to TensorFlow's tensors."""
        self._hidden = self._tf.constant(np.array(hidden), dtype=self._case.dtype)
        self._target = self._tf.constant(np.array(target, dtype=np.int64))

    def run(self) -> None:
        """Do the task once."""
        self._computed = self._step(self._hidden, self._target)

    def results(self) -> Results:
        """The last run's tensors, weights' gradients in torch's orientation."""
        return {
            name: value.numpy().T if name.endswith(".weight") else value.numpy()
            for name, value in self._computed.items()
        }

    def mismatches(self) -> dict[str, str]:
        """The arrays of `results` keep their dtype, and the CPU is the one device."""
        return {}

    def _forward(self, hidden: Any, target: Any) -> dict[str, Any]:
        output, loss = self._layer.nll(hidden, target)
        return {"output": output, "loss": loss}

    def _train(self, hidden: Any, target: Any) -> dict[str, Any]:
        leaves = {name: self._layer.variables[name] for name in self._names}
        with self._tf.GradientTape() as tape:
            tape.watch(hidden)
            output, loss = self._layer.nll(hidden, target)
        gradients = tape.gradient(loss, {"input": hidden, **leaves}, unconnected_gradients="zero")
        dense = {f"grad.{name}": self._tf.convert_to_tensor(g) for name, g in gradients.items()}
        return {"output": output, "loss": loss, **dense}

    def _log_prob(self, hidden: Any, target: Any) -> dict[str, Any]:
        return {"log_prob": self._layer.log_prob(hidden)}

    def _predict(self, hidden: Any, target: Any) -> dict[str, Any]:
        return {"predict": self._tf.argmax(self._layer.log_prob(hidden), axis=1)}

    def _topk(self, hidden: Any, target: Any) -> dict[str, Any]:
        values, classes = self._tf.math.top_k(self._layer.log_prob(hidden), self._case.k)
        return {"topk.values": values, "topk.classes": classes}


def import_tensorflow() -> Any:
    """TensorFlow with as many threads as torch has, and without its notes on standard error."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    first = "tensorflow" not in sys.modules
    import tensorflow as tf

    if first:  # TensorFlow takes thread counts only before its first operation
        tf.config.threading.set_intra_op_parallelism_threads(torch.get_num_threads())
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.get_logger().setLevel("ERROR")  # every case is a graph of its own, which it would warn of
    return tf
