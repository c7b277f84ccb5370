"""No step of the GPU backend reads device data on the host.

The host side of every step runs on tensors of the device "meta", which have no data, with the kernels'
launches recorded in place of run, under a dispatch mode that fails on any operation that hands device data to
the host or whose result's shape depends on device data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("triton")

from zipfmax.backends.triton import operators
from zipfmax.clusters import ClusterLayout
from zipfmax.gradients import Upstream
from zipfmax_bench.kernels.variants import recording

LAYOUT = ClusterLayout(24, 90, (10, 23, 60), 2.0)
BOUNDS = list(LAYOUT.bounds[1:])
PRESENT = [1] * 7

# Operations whose result, or its shape, only the data decides.
READS = ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "masked_select", "unique", "equal")


class NoHostRead(TorchDispatchMode):
    """Fails on an operation that hands device data to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        read = name.startswith(READS) or name.startswith("_unique")
        # A Boolean mask as an index makes a result of as many rows as it has ones.
        read |= name == "index" and any(
            isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(args)[1:]
        )
        read |= (kwargs or {}).get("device") == torch.device("cpu")
        assert not read, f"{name} reads device data on the host"
        return func(*args, **(kwargs or {}))


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)


def weights(layout: ClusterLayout = LAYOUT) -> list[Tensor]:
    found = [empty(layout.head_size, 24), empty(layout.head_size)]
    for c in layout:
        found += [empty(c.projection_size, 24), empty(c.size, c.projection_size)]
        found += [empty(c.projection_size), empty(c.size)]
    return found


def batch() -> tuple[Tensor, Tensor]:
    return empty(33, 24), empty(33, dtype=torch.int64)


def train(ignore_index: int | None, reduction: str, differentiate: str, told: str = "auto") -> None:
    """A step of the layer in training, as `nll` runs it outside compiled graphs, forward and backward."""
    hidden, target = batch()
    tensors = weights()
    output, loss = operators.TrainStep.apply(
        hidden, target, PRESENT, BOUNDS, ignore_index, reduction, torch.float32, Upstream(told), *tensors
    )
    loss = loss.sum()
    {"loss": loss, "output": output.sum(), "both": loss + output.sum()}[differentiate].backward()
    assert hidden.grad is not None
    assert all(tensor.grad is not None for tensor in tensors)


@torch.no_grad()
def compiled_train(operator: str) -> None:
    """The same as the operators of a compiled graph."""
    hidden, target = batch()
    arguments = (hidden, target, weights(), PRESENT, BOUNDS, -100, "mean")
    if operator == "train":
        operators._train_operator(*arguments, torch.bfloat16, True, True)
    else:
        output, loss = operators.forward(*arguments, torch.bfloat16)
        operators._gradients_operator(*arguments, output, loss, None, [], True, True)


@torch.no_grad()
def plainly(operator: str, *arguments: Any) -> None:
    """An operator alone, without gradients."""
    getattr(operators, operator)(*arguments)


STEPS: dict[str, Callable[[], Any]] = {
    "forward": lambda: operators.forward(*batch(), weights(), PRESENT, BOUNDS, -100, "none", torch.float16),
    "loss": lambda: train(None, "mean", "loss"),
    "loss with ignored rows": lambda: train(-100, "mean", "loss"),
    "sum": lambda: train(-100, "sum", "loss"),
    "none": lambda: train(-100, "none", "loss"),
    "output": lambda: train(None, "mean", "output"),
    "output, told": lambda: train(-100, "mean", "both", "output"),
    "loss and output": lambda: train(-100, "mean", "both"),
    "compiled": lambda: compiled_train("train"),
    "compiled, by row": lambda: compiled_train("gradients"),
    "log_prob": lambda: plainly("log_prob", batch()[0], weights(), PRESENT, BOUNDS),
    "log_prob backward": lambda: plainly(
        "log_prob_gradients", batch()[0], weights(), PRESENT, BOUNDS, empty(33, 90)
    ),
    "predict": lambda: plainly("predict", batch()[0], weights(), PRESENT, BOUNDS),
}


@pytest.fixture
def steps_inside_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators as the plain functions in them: a dispatch mode does not see into an operator."""
    for name in ("log_prob", "log_prob_gradients", "predict"):
        monkeypatch.setattr(operators, name, getattr(operators, name)._init_fn)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_reads_no_device_data(step: str, steps_inside_operators: None) -> None:
    with recording("sm_90") as launches, NoHostRead():
        STEPS[step]()
    assert bool(launches) != (step == "log_prob backward")  # which is the vendor's products alone


class DeviceWork(TorchDispatchMode):
    """Counts the operations that launch something on a GPU: all but allocations and views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        allocates = name in ("empty", "empty_like", "empty_strided", "new_empty", "detach")
        # What tests a routing on the host's side of a tensor without data: on a GPU the kernel asserts.
        if not (func.is_view or allocates or name in ("_assert_async", "select")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("cutoffs", [(1000,), (1000, 3000), (1000, 3000, 9000), (1000, 2000, 5000, 9000)])
@pytest.mark.parametrize("d", [256, 512, 1024])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_training_step_launches_at_most_14_kernels_however_many_the_tails(
    cutoffs: tuple[int, ...], d: int, dtype: torch.dtype
) -> None:
    layout = ClusterLayout(d, 20_000, cutoffs)

    def make(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)

    tensors = [make(layout.head_size, d)]
    for c in layout:
        tensors += [make(c.projection_size, d), make(c.size, c.projection_size)]
    target = torch.empty(1024, dtype=torch.int64, device="meta")
    present, bounds = [0] * (1 + 2 * len(cutoffs)), list(layout.bounds[1:])
    with recording("sm_90") as launches, DeviceWork() as work:
        _, loss = operators.TrainStep.apply(
            make(1024, d), target, present, bounds, -100, "mean", dtype, Upstream(), *tensors
        )
        loss.backward(torch.empty((), dtype=dtype, device="meta"))
    # The head's three products are the vendor's: the only work besides recorded launches.
    assert sorted(work.names) == ["addmm", "addmm", "mm"]
    assert len(launches) + 3 <= 14
    passes = {"tail_forward_kernel", "tail_weight_gradient_kernel"}
    assert sum(launch.name not in passes for launch in launches) == 7


PLANTED: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "nonzero": lambda x: x.nonzero(),
    "a mask as index": lambda x: x[x > 0],
    "unique": lambda x: x.unique(),
    "a branch": lambda x: 1 if x.sum() > 0 else 0,
    "a range": lambda x: range(x[0]),
    "equal": lambda x: torch.equal(x, x + 1),
}


@pytest.mark.parametrize("read", PLANTED)
def test_a_planted_read_is_seen(
    read: str, monkeypatch: pytest.MonkeyPatch, steps_inside_operators: None
) -> None:
    from zipfmax.backends.triton import step

    check = step.check_totals

    def reading(target: Tensor, *rest: Any) -> Any:
        PLANTED[read](target)
        return check(target, *rest)

    monkeypatch.setattr(step, "check_totals", reading)
    with recording("sm_90"), NoHostRead(), pytest.raises(AssertionError, match="reads device data"):
        STEPS["loss"]()
