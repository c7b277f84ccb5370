"""A torch module in use: what `Use` asks of it, done as a training loop does it."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from zipfmax_reference.contestants import (
    surroundings,
    torch_calls,
    torch_gradients,
    torch_hooks,
    torch_many,
    torch_methods,
    torch_weights,
)
from zipfmax_reference.contestants.tensors import to_array, with_gaps
from zipfmax_reference.contestants.use import (
    LABELS,
    CallMode,
    Gaps,
    Manner,
    Misfit,
    NotPromisedError,
    Setting,
)
from zipfmax_reference.runs.arrays import Array, Labels, Results
from zipfmax_reference.runs.case import Case


class TorchUse(surroundings.InThisProcess):
    """A torch module in use."""

    def __init__(
        self, module: nn.Module, case: Case, before: dict[str, str], make: Callable[[], object]
    ) -> None:
        super().__init__(before)
        self._module, self._case, self._make = module, case, make
        self._repeated: list[dict[str, Tensor]] = []
        self._batches: dict[str, tuple[Tensor, Tensor]] = {}
        self._results: dict[str, dict[str, Tensor]] = {}
        self._differentiated: set[str] = set()
        self._unrecorded: set[str] = set()
        self._kept: dict[str, Tensor] = {}
        self._computed: dict[str, tuple[Tensor, Array]] = {}
        self._copy: nn.Module | None = None
        self._converted = False
        self._dropped: list[list[Callable[[], bool]]] = []

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
        of_input = getattr(torch, dtype or self._case.dtype)
        made = torch.from_numpy(np.array(hidden)).to(self._case.device, of_input)
        classes = torch.from_numpy(np.array(target, dtype=np.int64)).to(self._case.device)
        if gaps == "once":
            classes = classes[:1].expand(len(classes))
        elif gaps != "none":  # what lies between is another input's, and shows where it is read
            made = with_gaps(made, gaps)
            classes = with_gaps(classes, "before" if gaps == "before" else "columns")
        classes = classes.to(getattr(torch, labels))
        if column:
            classes = classes.unsqueeze(1)
        if over is not None:
            made, classes = self._over(over, made, classes)
        self._batches[name] = made.requires_grad_(leaf), classes

    def _over(self, batch: str, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """These values where a batch lies, in tensors of which autograd knows no write: as from an allocator."""
        own, labels = self._batches.pop(batch)
        places = own.data, labels.data
        del own, labels
        self._forget()
        for place, values in zip(places, (hidden, target), strict=True):
            place.copy_(values)
        return places[0].data, places[1].data

    def _forget(self) -> None:
        """Drop every result, and with it what its graph holds."""
        for kept in (self._results, self._computed, self._differentiated, self._unrecorded):
            kept.clear()

    def refill(self, name: str, hidden: Array, target: Labels, seen: bool = True) -> None:
        """Write other values into a batch's tensors, or into .data."""
        own, labels = self._batches[name]
        with torch.no_grad():
            (own if seen else own.data).copy_(torch.from_numpy(np.array(hidden)))
            (labels if seen else labels.data).copy_(torch.from_numpy(np.array(target)))

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
        if mode == "parameter":
            hidden = nn.Parameter(hidden.detach())
            self._batches[batch] = hidden, target
        if row is not None:
            hidden, target = hidden[row], target[row]
        self._computed.pop(name, None)

        def computed() -> Any:
            own = hidden
            if through:
                own = hidden * 1.0
                self._computed[name] = own, to_array(own)
            return torch_calls.called(self._module, mode, own, target)

        output, loss = self._within(mode, computed, refusable=row is not None)
        self._results[name] = {"output": output, "loss": loss}
        self._differentiated.discard(name)
        (self._unrecorded.add if mode in ("no_grad", "inference") else self._unrecorded.discard)(name)
        return self.read(name)

    def _within(self, mode: CallMode, call: Callable[[], Any], refusable: bool = False) -> Any:
        """A call in a mode, which has to be the same after it."""
        try:
            # Not within set_grad_enabled, which would put back a grad mode that the layer has changed.
            with torch_calls.context(mode, self._case.device):
                before = surroundings.modes()
                found = surroundings.in_a_thread(call) if mode == "thread" else call()
                after = surroundings.modes()
        except Exception as error:
            if refusable or self._converted or mode in torch_calls.REFUSABLE:
                raise NotPromisedError(str(error)) from error
            raise
        if after != before:
            raise ValueError("a call changed the grad mode or the autocast mode that it was made in")
        return found

    def setting(self, setting: Setting) -> None:
        """As torch has it."""
        torch_calls.SETTINGS[setting]()

    def read(self, name: str) -> Results:
        """The results of a call."""
        return {what: to_array(value) for what, value in self._results[name].items()}

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

    def evaluate(self, method: str, batch: str, name: str = "", mode: CallMode = "no_grad") -> Array:
        """Another method than forward."""
        hidden = self._batches[batch][0]
        found = self._within(mode, lambda: getattr(self._module, method)(hidden))
        if name:
            self._results[name] = {method: found}
            self._differentiated.discard(name)
        return to_array(found)

    def backward(
        self,
        name: str,
        grad_output: Array | float | None,
        grad_loss: float | None,
        retain: bool = False,
        gaps: Gaps = "none",
    ) -> None:
        """One backward."""
        of_name = self._results[name]
        results, upstream = [], []
        if grad_output is not None:
            output = of_name["output" if "output" in of_name else "log_prob"]
            results.append(output)
            came = torch.as_tensor(grad_output).to(output).expand_as(output)
            upstream.append(came if gaps == "none" else with_gaps(came, gaps))
        if grad_loss is not None:
            results.append(of_name["loss"])
            upstream.append(torch.full_like(of_name["loss"], grad_loss))
        came_in = [to_array(gradient) for gradient in upstream]
        try:
            torch.autograd.backward(results, upstream, retain_graph=retain)
        except RuntimeError as error:
            if name in self._differentiated:
                raise NotPromisedError(str(error)) from error
            raise
        self._differentiated.add(name)
        if any(
            to_array(now).tobytes() != then.tobytes() for now, then in zip(upstream, came_in, strict=True)
        ):
            raise ValueError("backward wrote to a gradient that came in")
        computed = self._computed.get(name)
        if computed is not None and not np.array_equal(to_array(computed[0]), computed[1]):
            raise ValueError("the computed input was written to")

    def asked(self, name: str, batch: str) -> Results:
        """By torch.autograd.grad."""
        return torch_gradients.asked(self._results[name]["loss"], self._leaves(batch))

    def backward_of_sum(self, names: Sequence[str]) -> None:
        """One backward of several calls."""
        torch.autograd.backward(torch.stack([self._results[name]["loss"] for name in names]).sum())

    def curvature(self, batch: str) -> tuple[Results, list[str]]:
        """By two backwards."""
        return torch_gradients.with_penalty(self._module(*self._batches[batch])[1], self._leaves(batch))

    def together(self, batches: Sequence[str], rounds: int) -> dict[str, list[Results]]:
        """In as many threads."""
        return torch_many.at_the_same_time(
            self._module, {name: self._batches[name] for name in batches}, rounds
        )

    def repeat(self, batch: str, times: int, collected: bool = False) -> int:
        """One step after another."""
        for _ in range(times):
            torch_many.note(self._repeated, torch_many.step(self._module, *self._batches[batch]))
        gc.collect(2 if collected else 1)
        return torch_many.bytes_held(self._case.device)

    def repeated(self) -> list[Results]:
        """Those that were noted."""
        return [{name: to_array(value) for name, value in found.items()} for found in self._repeated]

    def make_again(self) -> bool:
        """By a weak reference."""
        return torch_many.is_held(self._make)

    def gradients(self, batch: str) -> Results:
        """Of a batch's input and of the weights."""
        return {
            f"grad.{name}": to_array(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
            for name, leaf in self._leaves(batch).items()
        }

    def keep(self, batch: str) -> None:
        """Keep the gradients of a batch's input and of the weights."""
        self._kept = {
            f"grad.{name}": leaf.grad for name, leaf in self._leaves(batch).items() if leaf.grad is not None
        }

    def kept(self) -> Results:
        """What they hold now."""
        return {name: to_array(gradient) for name, gradient in self._kept.items()}

    def _leaves(self, batch: str) -> dict[str, Tensor]:
        return {"input": self._batches[batch][0], **dict(self._module.named_parameters())}

    def clear(self, to_zero: bool = False) -> None:
        """Unset every gradient, or set it to zero."""
        for leaf in (*self._module.parameters(), *(hidden for hidden, _ in self._batches.values())):
            if not to_zero:
                leaf.grad = None
            elif leaf.grad is not None:
                leaf.grad.detach_().zero_()

    def weights(self) -> Results:
        """What the parameters hold."""
        return {name: to_array(parameter) for name, parameter in self._module.named_parameters()}

    def state(self) -> Results:
        """The state dict's entries for the parameters."""
        state = self._module.state_dict()
        return {name: to_array(state[name]) for name, _ in self._module.named_parameters()}

    def write(self, weights: Results, manner: Manner = "copy") -> None:
        """Write into the parameters."""
        torch_weights.write(self._module, weights, manner)

    def load(self, weights: Results, assign: bool = False, partly: bool = False) -> None:
        """By load_state_dict."""
        torch_weights.load(self._module, weights, assign, partly)

    def takes(self, misfit: Misfit, name: str) -> bool:
        """By load_state_dict, which raises for what does not fit."""
        return torch_weights.takes(self._module, misfit, name)

    def duplicate(self, manner: Literal["deepcopy", "pickle"] = "deepcopy") -> None:
        """By copy.deepcopy, or by pickle."""
        try:
            if manner == "deepcopy":
                self._copy = copy.deepcopy(self._module)
            else:
                self._copy = pickle.loads(pickle.dumps(self._module))
        except Exception as error:
            raise NotPromisedError(str(error)) from error

    def exchange(self) -> None:
        """Go on with the copy, or with the first."""
        assert self._copy is not None
        self._module, self._copy = self._copy, self._module

    def convert(self, dtype: str) -> None:
        """By module.to."""
        self._converted = True  # a layer need not serve the dtype that this case is not of
        try:
            self._module.to(getattr(torch, dtype))
        except Exception as error:
            raise NotPromisedError(str(error)) from error
        self._case = replace(self._case, dtype=dtype)
        self._batches.clear()
        self._forget()

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

    def traits(self, batch: str) -> dict[str, str]:
        """Modes, names, identities, flags and hooks."""
        found = {f"the mode of {n or 'the module'}": str(m.training) for n, m in self._module.named_modules()}
        found["the names in the state dict"] = str([*self._module.state_dict()])
        found["which tensors the parameters are"] = str([id(p) for p in self._module.parameters()])
        for name, tensor in {**self._leaves(batch), "target": self._batches[batch][1]}.items():
            found[f"whether {name} takes a gradient"] = str(tensor.requires_grad)
            found[f"the hooks of {name}"] = str(len(tensor._backward_hooks or ()))
        return found

    def hooks_fault(self, batch: str, of_all: bool = False) -> str | None:
        """As torch.nn.Module runs them."""
        if not of_all:
            return torch_hooks.fault(self._module, *self._batches[batch])
        try:
            return torch_hooks.fault_of_all(self._module, *self._batches[batch])
        except Exception as error:
            raise NotPromisedError(str(error)) from error

    def hook_gradients(self, batch: str) -> None:
        """By Tensor.register_hook."""
        self._hooked = torch_hooks.OfTensors(self._leaves(batch))

    def unhook_gradients(self) -> str | None:
        """And by register_post_accumulate_grad_hook."""
        return self._hooked.removed()

    def methods_fault(self, batch: str) -> str | None:
        """Than torch.nn.Module's."""
        return torch_methods.fault(self._module, *self._batches[batch])

    def scribble(self, name: str) -> None:
        """Past autograd."""
        for result in self._results[name].values():
            result.data.fill_(1)

    def halve_loss(self, name: str) -> None:
        """In place."""
        self._results[name]["loss"].div_(2)

    def clear_output(self, name: str) -> None:
        """Under no_grad."""
        with torch.no_grad():
            self._results[name]["output"].zero_()

    def drop(self, batch: str) -> None:
        """Keep weak references."""
        results = [value for found in self._results.values() for value in found.values()]
        self._dropped.append([_reference(tensor) for tensor in (*self._batches.pop(batch), *results)])
        self._forget()

    def alive(self) -> int:
        """Count those of which a reference refers to something."""

        def count() -> int:
            return sum(any(is_there() for is_there in references) for references in self._dropped)

        if count():
            gc.collect()  # what refers to itself
        return count()

    def inputs(self, batch: str) -> Results:
        """A batch's tensors."""
        hidden, target = self._batches[batch]
        return {"hidden": to_array(hidden), "target": to_array(target)}


def _reference(tensor: Tensor) -> Callable[[], bool]:
    """Tells whether a tensor is there; on a CPU, where no graph keeps memory for later, whether its memory is."""
    if tensor.is_cpu and type(tensor) is Tensor:
        storage: Any = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        return lambda: not storage.expired()
    reference = weakref.ref(tensor)
    return lambda: reference() is not None
