"""Paddle's layer in use, by torch's names and in torch's orientation: as far as Paddle has what `Use` asks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np

from zipfmax_reference.contestants import surroundings
from zipfmax_reference.contestants.use import (
    LABELS,
    CallMode,
    Gaps,
    Manner,
    Misfit,
    NotApplicableError,
    NotPromisedError,
    Setting,
)
from zipfmax_reference.runs.arrays import Array, Labels, Results
from zipfmax_reference.runs.case import Case


class PaddleUse(surroundings.InThisProcess):
    """Paddle's layer.

    Args:
        paddle: the framework.
        layer: with the case's weights.
        parameters: gives a layer's tensors by torch.nn's names.
        case: the cell.
        before: the surroundings before the layer was made.
    """

    def __init__(
        self,
        paddle: Any,
        layer: Any,
        parameters: Callable[[Any], dict[str, Any]],
        case: Case,
        before: dict[str, str],
    ) -> None:
        super().__init__(before)
        self._paddle, self._layer, self._parameters, self._case = paddle, layer, parameters, case
        self._copy = None
        self._batches: dict[str, tuple[Any, Any]] = {}
        self._results: dict[str, dict[str, Any]] = {}
        self._differentiated: set[str] = set()

    def batch(
        self,
        name: str,
        hidden: Array,
        target: Labels,
        leaf: bool = True,
        gaps: Gaps = "none",
        labels: str = LABELS,
        column: bool = False,
        over: str | None = None,
        dtype: str | None = None,
    ) -> None:
        """Make a batch's tensors."""
        if dtype is not None:
            raise NotApplicableError("Paddle's products take what dtypes Paddle says")
        if gaps != "none" or over is not None:
            raise NotApplicableError("Paddle's tensors are placed by Paddle")
        made = self._paddle.to_tensor(np.array(hidden), dtype=self._case.dtype, stop_gradient=not leaf)
        classes = np.array(target, dtype=labels)
        self._batches[name] = made, self._paddle.to_tensor(classes[:, None] if column else classes)

    def refill(self, name: str, hidden: Array, target: Labels, seen: bool = True) -> None:
        """By set_value."""
        if not seen:
            raise NotApplicableError("Paddle's tensors have no .data that is written past autograd")
        own, labels = self._batches[name]
        own.set_value(np.array(hidden, dtype=self._case.dtype))
        labels.set_value(np.array(target, dtype=np.int64))

    def call(
        self, name: str, batch: str, mode: CallMode = "record", through: bool = False, row: int | None = None
    ) -> Results:
        """Call the layer."""
        hidden, target = self._batches[batch]
        if row is not None:
            hidden, target = hidden[row], target[row]

        def computed() -> Any:
            return self._layer(hidden * 1.0 if through else hidden, target)

        with self._within(mode):
            try:
                output, loss = surroundings.in_a_thread(computed) if mode == "thread" else computed()
            except Exception as error:
                if row is not None:
                    raise NotPromisedError(str(error)) from error
                raise
        self._results[name] = {"output": output, "loss": loss}
        self._differentiated.discard(name)
        return self.read(name)

    def _within(self, mode: CallMode) -> Any:
        # Paddle's log_prob allocates its result in the default dtype, whatever the input's.
        self._paddle.set_default_dtype(self._case.dtype)
        if mode not in ("record", "no_grad", "thread"):
            raise NotApplicableError(f"torch's {mode} mode is none of Paddle's")
        return self._paddle.no_grad() if mode == "no_grad" else nullcontext()

    def setting(self, setting: Setting) -> None:
        """Paddle's flags are others."""
        raise NotApplicableError("torch's settings are none of Paddle's")

    def read(self, name: str) -> Results:
        """The results of a call."""
        return {what: _array(value) for what, value in self._results[name].items()}

    def form(self, name: str) -> str | None:
        """Dtype and kind of the results."""
        for what, result in self._results[name].items():
            if not isinstance(result, self._paddle.Tensor) or str(result.numpy().dtype) != self._case.dtype:
                return f"{what} is a {type(result).__name__} of {result.dtype}"
        return None

    def evaluate(self, method: str, batch: str, name: str = "", mode: CallMode = "no_grad") -> Array:
        """Another method than forward."""
        with self._within(mode):
            found = getattr(self._layer, method)(self._batches[batch][0])
        if name:
            self._results[name] = {method: found}
            self._differentiated.discard(name)
        return _array(found)

    def backward(
        self,
        name: str,
        grad_output: Array | float | None,
        grad_loss: float | None,
        retain: bool = False,
        gaps: Gaps = "none",
    ) -> None:
        """One backward."""
        if gaps != "none":
            raise NotApplicableError("Paddle's tensors are placed by Paddle")
        of_name = self._results[name]
        given = [
            (of_name.get("output", of_name.get("log_prob")), grad_output),
            (of_name.get("loss"), grad_loss),
        ]
        pairs = [(result, value) for result, value in given if value is not None and result is not None]
        upstream = [
            self._paddle.to_tensor(np.broadcast_to(value, result.shape).astype(self._case.dtype))
            for result, value in pairs
        ]
        try:
            self._paddle.autograd.backward([result for result, _ in pairs], upstream, retain)
        except Exception as error:
            if name in self._differentiated:
                raise NotPromisedError(str(error)) from error
            raise
        self._differentiated.add(name)

    def asked(self, name: str, batch: str) -> Results:
        """By paddle.grad."""
        leaves = self._leaves(batch)
        before = {n: _gradient(leaf) for n, leaf in leaves.items()}
        found = self._paddle.grad(self._results[name]["loss"], [*leaves.values()], allow_unused=True)
        if any(not np.array_equal(_gradient(leaf), before[n]) for n, leaf in leaves.items()):
            raise ValueError("paddle.grad left a gradient in a leaf")
        pairs = zip(leaves.items(), found, strict=True)
        return {
            f"grad.{n}": np.zeros_like(before[n]) if g is None else _turned(n, g.numpy())
            for (n, _), g in pairs
        }

    def backward_of_sum(self, names: Sequence[str]) -> None:
        """One backward of several calls."""
        self._paddle.add_n([self._results[name]["loss"] for name in names]).backward()

    def curvature(self, batch: str) -> tuple[Results, list[str]]:
        """Paddle's operations have no second derivatives, and say so."""
        hidden, target = self._batches[batch]
        try:
            loss = self._layer(hidden, target)[1]
            (first,) = self._paddle.grad(loss, [hidden], create_graph=True)
            self._paddle.grad((first * first).sum() / 2, [hidden])
        except Exception as error:
            raise NotPromisedError(str(error)) from error
        raise NotPromisedError("Paddle's second derivatives by weights are not asked for")

    def together(self, batches: Sequence[str], rounds: int) -> dict[str, list[Results]]:
        """Paddle documents none."""
        raise NotApplicableError("Paddle's documentation says nothing of calls at the same time")

    def repeat(self, batch: str, times: int, collected: bool = False) -> int:
        """Paddle's allocator keeps memory for later."""
        raise NotApplicableError("what Paddle's tensors hold is not known")

    def repeated(self) -> list[Results]:
        """Nothing was repeated."""
        return []

    def make_again(self) -> bool:
        """Paddle's layers draw from Paddle's own generator, and take no weak references."""
        return False

    def gradients(self, batch: str) -> Results:
        """Of a batch's input and of the weights."""
        return {f"grad.{n}": _turned(n, _gradient(leaf)) for n, leaf in self._leaves(batch).items()}

    def clear(self, to_zero: bool = False) -> None:
        """Unset every gradient, or set it to zero."""
        hiddens = (hidden for hidden, _ in self._batches.values())
        for leaf in (*self._parameters(self._layer).values(), *hiddens):
            if not to_zero or leaf.grad is not None:
                leaf.clear_gradient(set_to_zero=to_zero)

    def keep(self, batch: str) -> None:
        """Paddle clears a gradient where it lies, and leaves a sum in another tensor."""
        raise NotApplicableError("Paddle keeps no gradient that it clears")

    def kept(self) -> Results:
        """Nothing was kept."""
        return {}

    def _leaves(self, batch: str) -> dict[str, Any]:
        return {"input": self._batches[batch][0], **self._parameters(self._layer)}

    def weights(self) -> Results:
        """What the parameters hold."""
        return {n: _turned(n, _array(weight)) for n, weight in self._parameters(self._layer).items()}

    def state(self) -> Results:
        """The state dict's entries, told by which tensor they are."""
        held = {id(value): _array(value) for value in self._layer.state_dict().values()}
        lacking = [n for n, weight in self._parameters(self._layer).items() if id(weight) not in held]
        if lacking:
            raise KeyError(f"the state dict lacks {', '.join(lacking)}")
        return {n: _turned(n, held[id(weight)]) for n, weight in self._parameters(self._layer).items()}

    def write(self, weights: Results, manner: Manner = "copy") -> None:
        """By set_value."""
        if manner != "copy":
            raise NotApplicableError("Paddle's parameters have no .data that is written past autograd")
        for n, weight in self._parameters(self._layer).items():
            weight.set_value(np.ascontiguousarray(_turned(n, weights[n])))

    def load(self, weights: Results, assign: bool = False, partly: bool = False) -> None:
        """By the state dict, which has to hold them all."""
        if assign or partly:
            raise NotApplicableError("Paddle assigns no state dict, and takes any part of one")
        self.state()
        self.write(weights)

    def takes(self, misfit: Misfit, name: str) -> bool:
        """Paddle answers with the names that do not fit."""
        raise NotApplicableError("Paddle's set_state_dict raises for nothing, by its documentation")

    def duplicate(self, manner: Literal["deepcopy", "pickle"] = "deepcopy") -> None:
        """By copy.deepcopy."""
        if manner == "pickle":
            raise NotApplicableError("Paddle's layers are saved by paddle.save")
        try:
            self._copy = copy.deepcopy(self._layer)
        except Exception as error:
            raise NotPromisedError(str(error)) from error

    def exchange(self) -> None:
        """Go on with the copy, or with the first."""
        self._layer, self._copy = self._copy, self._layer

    def convert(self, dtype: str) -> None:
        """Paddle's layer converts what parameters() holds, which is the head."""
        raise NotApplicableError("Paddle's layer is made in one dtype")

    def step(self, rate: float) -> None:
        """By paddle.optimizer.SGD."""
        self._paddle.optimizer.SGD(rate, parameters=self._layer.parameters()).step()

    def mode(self, training: bool) -> None:
        """Training or evaluation mode."""
        (self._layer.train if training else self._layer.eval)()

    def require(self, weights: bool, names: Sequence[str] = ()) -> None:
        """By stop_gradient."""
        for n, weight in self._parameters(self._layer).items():
            if not names or n in names:
                weight.stop_gradient = not weights

    def traits(self, batch: str) -> dict[str, str]:
        """Modes, names and flags."""
        found = {
            f"the mode of {n or 'the layer'}": str(one.training) for n, one in self._layer.named_sublayers()
        }
        found["the names in the state dict"] = str([*self._layer.state_dict()])
        flags = {
            f"whether {n} takes a gradient": str(not t.stop_gradient) for n, t in self._leaves(batch).items()
        }
        return found | flags

    def hooks_fault(self, batch: str, of_all: bool = False) -> str | None:
        """Paddle's hooks are others."""
        raise NotApplicableError("torch's hooks of modules are none of Paddle's")

    def hook_gradients(self, batch: str) -> None:
        """Paddle's hooks are others."""
        raise NotApplicableError("torch's hooks of tensors are none of Paddle's")

    def unhook_gradients(self) -> str | None:
        """There are none."""
        return None

    def methods_fault(self, batch: str) -> str | None:
        """Paddle's methods are others."""
        raise NotApplicableError("torch's methods of modules are none of Paddle's")

    def scribble(self, name: str) -> None:
        """By set_value."""
        for result in self._results[name].values():
            result.set_value(np.ones_like(result.numpy()))

    def halve_loss(self, name: str) -> None:
        """Paddle's in-place operations are others."""
        raise NotApplicableError("Paddle has no division in place")

    def clear_output(self, name: str) -> None:
        """By set_value, of which Paddle's autograd knows nothing."""
        raise NotApplicableError("Paddle's autograd does not see what is written by set_value")

    def drop(self, batch: str) -> None:
        """Paddle's tensors take no weak references."""
        raise NotApplicableError("Paddle's tensors take no weak references")

    def alive(self) -> int:
        """None was dropped."""
        return 0

    def inputs(self, batch: str) -> Results:
        """A batch's tensors."""
        hidden, target = self._batches[batch]
        return {"hidden": _array(hidden), "target": _array(target)}


def _turned(name: str, values: Array) -> Array:
    """A weight, or its gradient, in the other framework's orientation."""
    return np.ascontiguousarray(values.T) if name.endswith(".weight") else values


def _array(tensor: Any) -> Array:
    found: Array = tensor.numpy().copy()
    return found


def _gradient(tensor: Any) -> Array:
    return np.zeros(tensor.shape, tensor.numpy().dtype) if tensor.grad is None else _array(tensor.grad)
