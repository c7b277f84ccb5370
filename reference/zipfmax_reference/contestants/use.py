"""A layer as a training loop uses it: many batches, calls and backwards on one module, told step by step.

`Runner` does one task on one batch. `Use` is what the protocol of calls (`truth.protocol`) drives. Batches and calls
are kept under names; arrays go in and come out, so that a layer may live in another process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from zipfmax_reference.contestants import surroundings
from zipfmax_reference.runs.arrays import Array, Labels, Results
from zipfmax_reference.runs.case import Case

CallMode = Literal["record", "no_grad", "inference", "autocast"]
_CONTEXTS: dict[CallMode, Callable[[str], AbstractContextManager[Any]]] = {
    "record": lambda device: nullcontext(),
    "no_grad": lambda device: torch.no_grad(),
    "inference": lambda device: torch.inference_mode(),
    "autocast": lambda device: torch.autocast(device, torch.bfloat16),
}
Manner = Literal["copy", "data", "replace"]
"""How weights are written: by copy_, into .data, or as another tensor in .data."""


class NotPromisedError(RuntimeError):
    """The layer does not do this, and says so."""


class Use(Protocol):
    """A module with a case's weights."""

    def batch(
        self,
        name: str,
        hidden: Array,
        target: Labels,
        leaf: bool = True,
        gaps: bool = False,
        narrow: bool = False,
    ) -> None:
        """Make a batch's tensors.

        A `leaf` input takes a gradient, with `gaps` they are not contiguous, `narrow` targets have 32 bits.
        """

    def refill(self, name: str, hidden: Array, target: Labels) -> None:
        """Write other values into a batch's tensors."""

    def call(
        self,
        name: str,
        batch: str,
        mode: CallMode = "record",
        through: bool = False,
        row: int | None = None,
    ) -> Results:
        """Call the module on a batch: output and loss.

        With `through` the input is computed from the batch's; with `row` one row is called, as [d] and [].

        Raises:
            NotPromisedError: the layer refuses one row, or autocast.
        """

    def read(self, name: str) -> Results:
        """The results of an earlier call, from the tensors that it returned."""

    def form(self, name: str) -> str | None:
        """What is wrong with the tensors that a call returned, or None."""

    def evaluate(self, method: str, batch: str, name: str = "", record: bool = False) -> Array:
        """`log_prob` or `predict` of a batch, kept under a name where there is one; recorded or not."""

    def backward(
        self,
        name: str,
        grad_output: Array | float | None,
        grad_loss: float | None,
        retain: bool = False,
    ) -> None:
        """Differentiate a call's results, with these gradients coming in; None for a result that is left out.

        A recorded `log_prob` is differentiated as output is. One number for output stands for all rows, as where
        output is summed: it is in memory once.

        Raises:
            NotPromisedError: the layer refuses to be differentiated again, by a kept graph.
        """

    def backward_of_sum(self, names: Sequence[str]) -> None:
        """One backward of the sum of these calls' losses."""

    def curvature(self, batch: str) -> Array:
        """Gradient by the input of half the squared norm of the loss's gradient by the input.

        Raises:
            NotPromisedError: the layer refuses to be differentiated twice.
        """

    def gradients(self, batch: str) -> Results:
        """grad.input of a batch and grad.NAME of every weight; zeros where none was left."""

    def clear(self) -> None:
        """Drop every gradient."""

    def keep(self, batch: str) -> None:
        """Keep the tensors that `gradients` reads, as a user does who compares them with later ones."""

    def kept(self) -> Results:
        """What the kept tensors hold now."""

    def weights(self) -> Results:
        """What the parameters hold now."""

    def state(self) -> Results:
        """What the state dict holds under the parameters' names."""

    def write(self, weights: Results, manner: Manner = "copy") -> None:
        """Write weights into the parameters."""

    def load(self, weights: Results) -> None:
        """Load weights as a state dict."""

    def step(self, rate: float) -> None:
        """A step of gradient descent by torch's optimizer."""

    def mode(self, training: bool) -> None:
        """Training or evaluation mode."""

    def require(self, weights: bool, names: Sequence[str] = ()) -> None:
        """Whether the parameters take gradients: those of these names, by default all."""

    def inputs(self, batch: str) -> Results:
        """`hidden` and `target` as they stand in a batch's tensors."""

    def surroundings(self, stirred: bool = False) -> dict[str, str]:
        """Global state that is not a layer's to change; with `stirred`, once the random numbers have moved on."""

    def surroundings_before(self) -> dict[str, str]:
        """What it was before the module was made."""


class TorchUse:
    """A torch module in use."""

    def __init__(self, module: nn.Module, case: Case, before: dict[str, str]) -> None:
        self._module, self._case, self._before = module, case, before
        self._batches: dict[str, tuple[Tensor, Tensor]] = {}
        self._results: dict[str, dict[str, Tensor]] = {}
        self._differentiated: set[str] = set()
        self._unrecorded: set[str] = set()
        self._kept: dict[str, Tensor] = {}
        self._computed: dict[str, tuple[Tensor, Array]] = {}

    def batch(
        self,
        name: str,
        hidden: Array,
        target: Labels,
        leaf: bool = True,
        gaps: bool = False,
        narrow: bool = False,
    ) -> None:
        """Make a batch's tensors."""
        made = torch.from_numpy(np.array(hidden)).to(self._case.device, getattr(torch, self._case.dtype))
        labels = torch.from_numpy(np.array(target, dtype=np.int64)).to(self._case.device)
        if gaps:  # what lies between is another input's, and shows where it is read
            made = torch.stack([made, made + 1], dim=2)[:, :, 0]
            labels = torch.stack([labels, (labels + 1) % self._case.n_classes], dim=1)[:, 0]
        self._batches[name] = made.requires_grad_(leaf), labels.int() if narrow else labels

    def refill(self, name: str, hidden: Array, target: Labels) -> None:
        """Write other values into a batch's tensors."""
        own, labels = self._batches[name]
        with torch.no_grad():
            own.copy_(torch.from_numpy(np.array(hidden)))
            labels.copy_(torch.from_numpy(np.array(target)))

    def call(
        self,
        name: str,
        batch: str,
        mode: CallMode = "record",
        through: bool = False,
        row: int | None = None,
    ) -> Results:
        """Call the module."""
        hidden, target = self._batches[batch]
        if row is not None:
            hidden, target = hidden[row], target[row]
        self._computed.pop(name, None)
        try:
            # Not within set_grad_enabled, which would put back a grad mode that the layer has changed.
            with _CONTEXTS[mode](torch.device(self._case.device).type):
                if through:
                    hidden = hidden * 1.0
                    self._computed[name] = hidden, _array(hidden)
                output, loss = self._module(hidden, target)
        except Exception as error:
            if row is not None or mode == "autocast":
                raise NotPromisedError(str(error)) from error
            raise
        self._results[name] = {"output": output, "loss": loss}
        self._differentiated.discard(name)
        (self._unrecorded.discard if mode in ("record", "autocast") else self._unrecorded.add)(name)
        return self.read(name)

    def read(self, name: str) -> Results:
        """The results of a call."""
        return {what: _array(value) for what, value in self._results[name].items()}

    def form(self, name: str) -> str | None:
        """Type, dtype and, of a recorded call, place in the graph of the results."""
        for what, result in self._results[name].items():
            if type(result) is not Tensor:
                return f"{what} is a {type(result).__name__}, not a tensor"
            if result.dtype != getattr(torch, self._case.dtype):
                return f"{what} has dtype {result.dtype}"
            if not result.requires_grad and name not in self._unrecorded:
                return f"{what} cannot be differentiated"
        return None

    def evaluate(self, method: str, batch: str, name: str = "", record: bool = False) -> Array:
        """Another method than forward."""
        hidden = self._batches[batch][0]
        if record:
            found = getattr(self._module, method)(hidden)
        else:
            with torch.no_grad():
                found = getattr(self._module, method)(hidden)
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
    ) -> None:
        """One backward."""
        of_name = self._results[name]
        results, upstream = [], []
        if grad_output is not None:
            output = of_name["output" if "output" in of_name else "log_prob"]
            results.append(output)
            upstream.append(torch.as_tensor(grad_output).to(output).expand_as(output))
        if grad_loss is not None:
            results.append(of_name["loss"])
            upstream.append(torch.full_like(of_name["loss"], grad_loss))
        came_in = [_array(gradient) for gradient in upstream]
        try:
            torch.autograd.backward(results, upstream, retain_graph=retain)
        except RuntimeError as error:
            if name in self._differentiated:
                raise NotPromisedError(str(error)) from error
            raise
        self._differentiated.add(name)
        if not all(map(np.array_equal, map(_array, upstream), came_in)):
            raise ValueError("backward wrote to a gradient that came in")
        computed = self._computed.get(name)
        if computed is not None and not np.array_equal(_array(computed[0]), computed[1]):
            raise ValueError("the computed input was written to")

    def backward_of_sum(self, names: Sequence[str]) -> None:
        """One backward of several calls."""
        torch.autograd.backward(torch.stack([self._results[name]["loss"] for name in names]).sum())

    def curvature(self, batch: str) -> Array:
        """By two backwards."""
        hidden, target = self._batches[batch]
        (first,) = torch.autograd.grad(self._module(hidden, target)[1], hidden, create_graph=True)
        try:
            (second,) = torch.autograd.grad(
                first.square().sum() / 2, hidden, allow_unused=True, materialize_grads=True
            )
        except (RuntimeError, NotImplementedError) as error:
            raise NotPromisedError(str(error)) from error
        return _array(second)

    def gradients(self, batch: str) -> Results:
        """Of a batch's input and of the weights."""
        return {
            f"grad.{name}": _array(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
            for name, leaf in self._leaves(batch).items()
        }

    def keep(self, batch: str) -> None:
        """Keep the gradients of a batch's input and of the weights."""
        self._kept = {
            f"grad.{name}": leaf.grad for name, leaf in self._leaves(batch).items() if leaf.grad is not None
        }

    def kept(self) -> Results:
        """What they hold now."""
        return {name: _array(gradient) for name, gradient in self._kept.items()}

    def _leaves(self, batch: str) -> dict[str, Tensor]:
        return {"input": self._batches[batch][0], **dict(self._module.named_parameters())}

    def clear(self) -> None:
        """Unset every gradient."""
        for leaf in (*self._module.parameters(), *(hidden for hidden, _ in self._batches.values())):
            leaf.grad = None

    def weights(self) -> Results:
        """What the parameters hold."""
        return {name: _array(parameter) for name, parameter in self._module.named_parameters()}

    def state(self) -> Results:
        """The state dict's entries for the parameters."""
        state = self._module.state_dict()
        return {name: _array(state[name]) for name, _ in self._module.named_parameters()}

    def write(self, weights: Results, manner: Manner = "copy") -> None:
        """Write into the parameters."""
        with torch.no_grad():
            for name, parameter in self._module.named_parameters():
                value = _like(parameter, weights[name])
                if manner == "copy":
                    parameter.copy_(value)
                elif manner == "data" or is_dtensor(parameter):  # whose .data torch cannot replace
                    parameter.data.copy_(value)
                else:
                    parameter.data = value

    def load(self, weights: Results) -> None:
        """By load_state_dict."""
        own = self._module.state_dict()
        self._module.load_state_dict(own | {n: _like(own[n], w) for n, w in weights.items()})

    def step(self, rate: float) -> None:
        """By torch.optim.SGD."""
        torch.optim.SGD(self._module.parameters(), lr=rate).step()

    def mode(self, training: bool) -> None:
        """Training or evaluation mode."""
        self._module.train(training)

    def require(self, weights: bool, names: Sequence[str] = ()) -> None:
        """Freeze or unfreeze parameters."""
        for name, parameter in self._module.named_parameters():
            if not names or name in names:
                parameter.requires_grad_(weights)

    def inputs(self, batch: str) -> Results:
        """A batch's tensors."""
        hidden, target = self._batches[batch]
        return {"hidden": _array(hidden), "target": _array(target)}

    def surroundings(self, stirred: bool = False) -> dict[str, str]:
        """The process's global state."""
        if stirred:
            surroundings.stir()
        return surroundings.read()

    def surroundings_before(self) -> dict[str, str]:
        """What was read before the module was made."""
        return self._before


def is_dtensor(value: Tensor) -> bool:
    """Whether it is split over ranks; where nobody imported DTensor, which is slow, there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and type(value) is module.DTensor


def plain(value: Tensor) -> Tensor:
    """The tensor, or what a tensor subclass holds: all of a DTensor's ranks, or else read to the host and back."""
    if type(value) is Tensor:
        return value
    if is_dtensor(value):
        return cast(Tensor, cast(Any, value).full_tensor())
    return torch.tensor(value.tolist(), dtype=value.dtype, device=value.device)


def _like(tensor: Tensor, values: Array) -> Tensor:
    """Values as a tensor like this one, split over ranks as it is."""
    made = torch.from_numpy(np.array(values)).to(device=tensor.device, dtype=tensor.dtype)
    if not is_dtensor(tensor):
        return made
    from torch.distributed.tensor import distribute_tensor

    whole = cast(Any, tensor)
    return distribute_tensor(made, whole.device_mesh, whole.placements)


def to_numpy(value: Tensor) -> Array:
    """A tensor on the host; bfloat16, which NumPy lacks, widened to float32."""
    value = value.detach().cpu()
    array: Array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return array


def _array(value: Tensor) -> Array:
    """A copy on the host, also of what a tensor subclass holds."""
    return to_numpy(plain(value.detach())).copy()
