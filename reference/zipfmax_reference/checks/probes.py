"""One run for each entry of the conformance table: a feature, an implementation, what came of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.child import Child
from zipfmax_reference.contestants.implementation import Implementation
from zipfmax_reference.contestants.paddle_nn import import_paddle
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.truth.oracle import Oracle, fault

TORCH_LAYERS: dict[str, type[nn.Module]] = {
    "zipfmax": AdaptiveLogSoftmaxWithLoss,
    "torch": nn.AdaptiveLogSoftmaxWithLoss,
}

FIRST_INEXACT = 2**24 + 1
"""The smallest whole number that float32 does not hold."""


@dataclass(frozen=True)
class ProbeResult:
    """What came of a probe."""

    verdict: Literal["agrees", "differs", "cannot", "not run"]
    """With the definition, or with torch.nn's documented behaviour where the definition says nothing."""
    detail: str = ""


Probe = Callable[[str], ProbeResult]


class parity:  # noqa: N801 - written as the other probes are
    """Agreement with the definition on a case; `fields` are the case's that are not usual."""

    USUAL: ClassVar[dict[str, Any]] = {
        "n_classes": 203,
        "in_features": 24,
        "batch_size": 33,
        "cutoffs": (7, 30, 202),
        "div_value": 2.0,
        "labels": "zipf:1.0",
    }

    def __init__(self, *tasks: str, **fields: Any) -> None:
        self._tasks, self._fields = tasks or ("train", "log_prob"), fields

    def __call__(self, name: str) -> ProbeResult:
        """What came of it for an implementation of this process."""
        return self.of(registry.implementation(name))

    def of(self, implementation: Implementation) -> ProbeResult:
        """What came of it."""
        worst, where = 0.0, ""
        for task in self._tasks:
            case = Case(**{**self.USUAL, **self._fields, "task": task})
            for record in Oracle(case, ("definition",)).check(implementation):
                if record["status"] == "skipped":
                    return ProbeResult("cannot", record["reason"])
                if record["status"] == "fail":
                    return ProbeResult("differs", f"{record['tensor']}: {fault(record)}")
                share = record["error"] / record["budget"] if record["budget"] else 0.0
                if share >= worst:
                    worst, where = share, record["tensor"]
        return ProbeResult("agrees", f"at most {worst:.0%} of its budget, {where}")


def parameters_hold_every_weight(name: str) -> ProbeResult:
    """Whether an optimiser that is given `parameters()` sees every weight."""
    expected = 6  # the head and its bias, and two of each tail
    if name in TORCH_LAYERS:
        found = len(list(_layer(name, 24, 60, [7, 20], head_bias=True).parameters()))
    elif name == "paddle":
        layer = import_paddle().nn.AdaptiveLogSoftmaxWithLoss(24, 60, [7, 20], head_bias=True)
        found = len(layer.parameters())
    else:
        return ProbeResult("not run", "its parameters are whatever variables its user makes")
    return ProbeResult(
        "agrees" if found == expected else "differs",
        f"parameters() holds {found} of {expected} tensors"
        + ("" if found == expected else ": the tails are neither optimised nor saved"),
    )


def class_above_float32(name: str) -> ProbeResult:
    """`predict` of a class whose index float32 does not hold, beside a row of the shortlist."""
    n_classes, best = FIRST_INEXACT + 3, FIRST_INEXACT
    # One feature: its sign chooses between the shortlist's only word and one class of the tail.
    head = np.array([[9.0], [-9.0]], dtype=np.float32)
    projection = np.array([[-1.0]], dtype=np.float32)
    output = np.zeros((n_classes - 1, 1), dtype=np.float32)
    output[best - 1] = 40.0
    hidden = np.array([[1.0], [-1.0]], dtype=np.float32)
    if name in TORCH_LAYERS:
        layer = _bare(name, n_classes)
        with torch.no_grad():
            for weight, value in zip(layer.parameters(), (head, projection, output), strict=True):
                weight.copy_(torch.from_numpy(value))
            found = layer.predict(torch.from_numpy(hidden))  # type: ignore[operator]
        dtype = str(found.dtype).removeprefix("torch.")
    elif name == "paddle":
        paddle = import_paddle()
        paddle.set_default_dtype("float32")
        layer = paddle.nn.AdaptiveLogSoftmaxWithLoss(1, 3, [1], div_value=1.0)
        layer.head_weight.set_value(head.T)
        # Its log_softmax over so many classes takes minutes: predict is given their log-probabilities.
        log_prob = np.zeros((1, n_classes), dtype=np.float32)
        log_prob[0, best] = 40.0
        layer._get_full_log_prob = lambda *arguments: paddle.to_tensor(log_prob)
        found = layer.predict(paddle.to_tensor(hidden))
        dtype = str(found.dtype).removeprefix("paddle.")
    else:
        return ProbeResult("not run", "its variables would take several copies of 2**24 classes")
    got = int(found[1])
    return ProbeResult(
        "agrees" if got == best and "int" in dtype else "differs",
        f"class {best} comes back as {got}, {dtype}",
    )


def synchronisations(name: str) -> ProbeResult:
    """Operations of a training step that wait for the device on a GPU, counted as they are dispatched."""
    if name not in TORCH_LAYERS:
        return ProbeResult("not run", "counted in torch's dispatcher only")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = _layer(name, 64, 203, [7, 30, 100], device=device)
    hidden = torch.randn(64, 64, device=device, requires_grad=True)
    target = 3 * torch.arange(64, device=device)  # some of each cluster
    with _Synchronising() as counted:
        layer(hidden, target).loss.backward()
    total = sum(counted.calls.values())
    what = ", ".join(f"{count} {op}" for op, count in sorted(counted.calls.items()))
    if name == "zipfmax" and device == "cpu":
        return ProbeResult("not run", "another backend serves a GPU, and there is none here")
    return ProbeResult("agrees" if total == 0 else "differs", f"{total}: {what}" if total else "none")


def compiles_whole(name: str) -> ProbeResult:
    """`torch.compile(fullgraph=True)` of the layer; graphs are captured and run, not lowered."""
    if name not in TORCH_LAYERS:
        return ProbeResult("cannot", "no torch module")
    layer = _layer(name, 24, 60, [7, 20])
    hidden, target = torch.randn(9, 24), torch.arange(9) * 6
    torch._dynamo.reset()
    try:
        loss = torch.compile(layer, backend="eager", fullgraph=True)(hidden, target).loss
    except Exception as error:  # how the layer is refused is the finding
        return ProbeResult("cannot", f"refused: {type(error).__name__}")
    same = torch.allclose(loss, layer(hidden, target).loss)
    return ProbeResult("agrees" if same else "differs", "captured as one graph")


def absent_cluster(name: str) -> ProbeResult:
    """The gradient of a cluster that no label of the batch falls in."""
    if name not in TORCH_LAYERS:
        return parity("train", labels="only:0-6")(name)
    layer = _layer(name, 24, 60, [7, 20])
    layer(torch.randn(5, 24), torch.tensor([0, 1, 2, 8, 9])).loss.backward()
    gradient = layer.tail[1][1].weight.grad  # type: ignore[index, union-attr]
    if gradient is None:
        return ProbeResult("agrees", "None, as in torch.nn")
    return ProbeResult(
        "differs" if gradient.any() else "agrees", "zeros" if not gradient.any() else "not zero"
    )


def loads_torch_checkpoint(name: str) -> ProbeResult:
    """A state_dict of torch.nn's layer, loaded unchanged."""
    source = nn.AdaptiveLogSoftmaxWithLoss(24, 60, [7, 20], head_bias=True)
    if name in TORCH_LAYERS:
        layer = _layer(name, 24, 60, [7, 20], head_bias=True)
        layer.load_state_dict(source.state_dict())
        hidden, target = torch.randn(9, 24), torch.arange(9) * 6
        same = torch.allclose(layer(hidden, target).loss, source(hidden, target).loss)
        return ProbeResult("agrees" if same else "differs", "names, shapes and values")
    if name == "paddle":
        layer = import_paddle().nn.AdaptiveLogSoftmaxWithLoss(24, 60, [7, 20], head_bias=True)
        missing = source.state_dict().keys() - layer.state_dict().keys()
        return ProbeResult("differs", f"{len(missing)} of 6 names are missing, and weights are transposed")
    return ProbeResult("differs", "kernels are transposed, and every Dense has a bias")


def refuses_bad_target(name: str) -> ProbeResult:
    """A label outside the classes."""
    target, hidden = np.array([0, 60]), np.zeros((2, 24), dtype=np.float32)
    try:
        if name in TORCH_LAYERS:
            _layer(name, 24, 60, [7, 20])(torch.from_numpy(hidden), torch.from_numpy(target))
        elif name == "paddle":
            paddle = import_paddle()
            paddle.set_default_dtype("float32")
            layer = paddle.nn.AdaptiveLogSoftmaxWithLoss(24, 60, [7, 20])
            layer(paddle.to_tensor(hidden), paddle.to_tensor(target))
        else:
            case = Case(60, 24, 2, (7, 20), task="forward")
            runner = registry.implementation(name).build(case, draw_inputs(case))
            runner.load(hidden, target)
            runner.run()
    except (RuntimeError, ValueError) as error:
        return ProbeResult("agrees", f"refused by {type(error).__name__}")
    return ProbeResult("differs", "accepted in silence")


def cutoffs_with_n_classes(name: str) -> ProbeResult:
    """Cutoffs that list n_classes itself, which torch.nn refuses."""
    if name == "tensorflow":
        return ProbeResult("differs", "asks for it: its cutoffs end in n_classes")
    try:
        if name == "paddle":
            import_paddle().nn.AdaptiveLogSoftmaxWithLoss(24, 60, [7, 20, 60])
        else:
            _layer(name, 24, 60, [7, 20, 60])
    except ValueError:
        return ProbeResult("agrees", "refused by ValueError")
    return ProbeResult("differs", "accepted")


def keyword(word: str, value: Any) -> Probe:
    """Whether the layer takes an option that torch.nn's lacks."""

    def probe(name: str) -> ProbeResult:
        try:
            if name in TORCH_LAYERS:
                layer = TORCH_LAYERS[name](24, 60, [7, 20], **{word: value})
                layer(torch.randn(4, 24), torch.tensor([1, 1, 9, 30]))
            elif name == "paddle":
                import_paddle().nn.AdaptiveLogSoftmaxWithLoss(24, 60, [7, 20], **{word: value})
            else:
                return ProbeResult("not run", "its constructor is this project's own")
        except TypeError:
            return ProbeResult("cannot", f"has no {word}")
        return ProbeResult("agrees", f"{word}={value!r}")

    return probe


def padding_label(name: str) -> ProbeResult:
    """What a label 0 costs."""
    case = Case(203, 24, 33, (7, 30, 202), 2.0)
    inputs = draw_inputs(case)
    if name != "tensorflow":
        return parity("forward")(name)
    child = Child("zipfmax_reference.contestants.tensorflow_layer:TensorFlowRunner")
    runner = child.build(case, inputs, 0)
    runner.run()
    results = runner.results()
    right = -results["output"].mean()
    zeros = int((inputs.target == 0).sum())
    return ProbeResult(
        "differs",
        f"label 0 is padding: {zeros} of 33 rows cost nothing, loss {results['loss']:.4f}, not {right:.4f}",
    )


class _Synchronising(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that bring a size or a value to the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if name in ("nonzero", "_local_scalar_dense", "masked_select") or by_mask:
            label = "boolean index" if by_mask else {"_local_scalar_dense": "item"}.get(name, name)
            self.calls[label] = self.calls.get(label, 0) + 1
        return func(*args, **(kwargs or {}))


def _layer(name: str, *arguments: Any, **keywords: Any) -> nn.Module:
    return TORCH_LAYERS[name](*arguments, **keywords)


def _bare(name: str, n_classes: int) -> nn.Module:
    """One feature, one shortlist word, no initialisation of the millions of weights."""
    with torch.device("meta"):
        layer = _layer(name, 1, n_classes, [1], 1.0)
    return layer.to_empty(device="cpu")


def installed(name: str) -> bool:
    """Whether an implementation's framework is there."""
    return name in TORCH_LAYERS or importlib.util.find_spec(name) is not None
