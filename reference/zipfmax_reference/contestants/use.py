"""A layer as a training loop uses it: many batches, calls and backwards on one module, told step by step.

`Runner` does one task on one batch. `Use` is what the protocol of calls (`truth.protocol`) drives. Batches and calls
are kept under names; arrays go in and come out, so that a layer may live in another process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from zipfmax_reference.runs.arrays import Array, Labels, Results
from zipfmax_reference.runs.case import Case

CallMode = Literal["record", "no_grad", "inference"]
_CONTEXTS: dict[CallMode, Callable[[], AbstractContextManager[Any]]] = {
    "record": nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


class NotPromisedError(RuntimeError):
    """The layer does not do this, and says so."""


class Use(Protocol):
    """A module with a case's weights."""

    def batch(self, name: str, hidden: Array, target: Labels, leaf: bool = True, gaps: bool = False) -> None:
        """Make a batch's tensors; a `leaf` input takes a gradient, and with `gaps` they are not contiguous."""

    def refill(self, name: str, hidden: Array, target: Labels) -> None:
        """Write other values into a batch's tensors."""

    def call(self, name: str, batch: str, mode: CallMode = "record", through: bool = False) -> Results:
        """Call the module on a batch: output and loss. With `through` the input is computed from the batch's."""

    def read(self, name: str) -> Results:
        """Output and loss of an earlier call, from the tensors that it returned."""

    def form(self, name: str) -> str | None:
        """What is wrong with the tensors that a call returned, or None."""

    def evaluate(self, method: str, batch: str) -> Array:
        """`log_prob` or `predict` of a batch, without recording."""

    def backward(
        self,
        name: str,
        grad_output: Array | float | None,
        grad_loss: float | None,
        retain: bool = False,
    ) -> None:
        """Differentiate a call's results, with these gradients coming in; None for a result that is left out.

        One number for output stands for all rows, as where output is summed: it is in memory once.

        Raises:
            NotPromisedError: the layer refuses to be differentiated again, by a kept graph.
        """

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

    def write(self, weights: Results) -> None:
        """Write weights into the parameters in place."""

    def load(self, weights: Results) -> None:
        """Load weights as a state dict."""

    def step(self, rate: float) -> None:
        """A step of gradient descent by torch's optimizer."""

    def mode(self, training: bool) -> None:
        """Training or evaluation mode."""

    def require(self, weights: bool) -> None:
        """Whether the parameters take gradients."""

    def inputs(self, batch: str) -> Results:
        """`hidden` and `target` as they stand in a batch's tensors."""

    def surroundings(self) -> dict[str, str]:
        """Global state that is not a layer's to change: grad mode, default dtype, threads, random numbers."""


class TorchUse:
    """A torch module in use."""

    def __init__(self, module: nn.Module, case: Case) -> None:
        self._module, self._case = module, case
        self._batches: dict[str, tuple[Tensor, Tensor]] = {}
        self._calls: dict[str, tuple[Tensor, Tensor]] = {}
        self._differentiated: set[str] = set()
        self._unrecorded: set[str] = set()
        self._kept: dict[str, Tensor] = {}

    def batch(self, name: str, hidden: Array, target: Labels, leaf: bool = True, gaps: bool = False) -> None:
        """Make a batch's tensors."""
        made = torch.from_numpy(np.array(hidden)).to(self._case.device, getattr(torch, self._case.dtype))
        labels = torch.from_numpy(np.array(target, dtype=np.int64)).to(self._case.device)
        if gaps:  # what lies between is another input's, and shows where it is read
            made = torch.stack([made, made + 1], dim=2)[:, :, 0]
            labels = torch.stack([labels, (labels + 1) % self._case.n_classes], dim=1)[:, 0]
        self._batches[name] = made.requires_grad_(leaf), labels

    def refill(self, name: str, hidden: Array, target: Labels) -> None:
        """Write other values into a batch's tensors."""
        own, labels = self._batches[name]
        with torch.no_grad():
            own.copy_(torch.from_numpy(np.array(hidden)))
            labels.copy_(torch.from_numpy(np.array(target)))

    def call(self, name: str, batch: str, mode: CallMode = "record", through: bool = False) -> Results:
        """Call the module."""
        # Not within set_grad_enabled, which would put back a grad mode that the layer has changed.
        with _CONTEXTS[mode]():
            hidden, target = self._batches[batch]
            output, loss = self._module(hidden * 1.0 if through else hidden, target)
        self._calls[name] = output, loss
        self._differentiated.discard(name)
        (self._unrecorded.discard if mode == "record" else self._unrecorded.add)(name)
        return self.read(name)

    def read(self, name: str) -> Results:
        """Output and loss of a call."""
        output, loss = self._calls[name]
        return {"output": _array(output), "loss": _array(loss)}

    def form(self, name: str) -> str | None:
        """Type, dtype and, of a recorded call, place in the graph of the results."""
        for what, result in zip(("output", "loss"), self._calls[name], strict=True):
            if type(result) is not Tensor:
                return f"{what} is a {type(result).__name__}, not a tensor"
            if result.dtype != getattr(torch, self._case.dtype):
                return f"{what} has dtype {result.dtype}"
            if not result.requires_grad and name not in self._unrecorded:
                return f"{what} cannot be differentiated"
        return None

    def evaluate(self, method: str, batch: str) -> Array:
        """A method that records nothing."""
        with torch.no_grad():
            return _array(getattr(self._module, method)(self._batches[batch][0]))

    def backward(
        self,
        name: str,
        grad_output: Array | float | None,
        grad_loss: float | None,
        retain: bool = False,
    ) -> None:
        """One backward."""
        output, loss = self._calls[name]
        results, upstream = [], []
        if grad_output is not None:
            results.append(output)
            upstream.append(torch.as_tensor(grad_output).to(output).expand_as(output))
        if grad_loss is not None:
            results.append(loss)
            upstream.append(torch.full_like(loss, grad_loss))
        try:
            torch.autograd.backward(results, upstream, retain_graph=retain)
        except RuntimeError as error:
            if name in self._differentiated:
                raise NotPromisedError(str(error)) from error
            raise
        self._differentiated.add(name)

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

    def write(self, weights: Results) -> None:
        """Write into the parameters."""
        with torch.no_grad():
            for name, parameter in self._module.named_parameters():
                parameter.copy_(torch.from_numpy(np.array(weights[name])))

    def load(self, weights: Results) -> None:
        """By load_state_dict."""
        own = self._module.state_dict()
        self._module.load_state_dict(
            own | {n: torch.from_numpy(np.array(w)).to(own[n]) for n, w in weights.items()}
        )

    def step(self, rate: float) -> None:
        """By torch.optim.SGD."""
        torch.optim.SGD(self._module.parameters(), lr=rate).step()

    def mode(self, training: bool) -> None:
        """Training or evaluation mode."""
        self._module.train(training)

    def require(self, weights: bool) -> None:
        """Freeze or unfreeze the parameters."""
        self._module.requires_grad_(weights)

    def inputs(self, batch: str) -> Results:
        """A batch's tensors."""
        hidden, target = self._batches[batch]
        return {"hidden": _array(hidden), "target": _array(target)}

    def surroundings(self) -> dict[str, str]:
        """torch's global state."""
        return {
            "grad mode": str(torch.is_grad_enabled()),
            "the default dtype": str(torch.get_default_dtype()),
            "the number of threads": str(torch.get_num_threads()),
            "the precision of products": torch.get_float32_matmul_precision(),
            "NumPy's error handling": str(np.geterr()),
            "the random numbers": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()[:12],
        }


@contextmanager
def surroundings_kept() -> Iterator[None]:
    """Put back what a layer must not change of torch's and NumPy's global state.

    Within, gradients are recorded and nothing is autocast, whatever the caller's modes are.
    """
    dtype, precision, threads = (
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.get_num_threads(),
    )
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.random.fork_rng(devices=[]),
            np.errstate(),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)


def plain(value: Tensor) -> Tensor:
    """The tensor, or what a tensor subclass holds, read to the host and back."""
    if type(value) is Tensor:
        return value
    return torch.tensor(value.tolist(), dtype=value.dtype, device=value.device)


def to_numpy(value: Tensor) -> Array:
    """A tensor on the host; bfloat16, which NumPy lacks, widened to float32."""
    value = value.detach().cpu()
    array: Array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return array


def _array(value: Tensor) -> Array:
    """A copy on the host, also of what a tensor subclass holds."""
    return to_numpy(plain(value.detach())).copy()
