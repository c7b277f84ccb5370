"""zipfmax's layer over several ranks on this machine, `zipfmax@2`, as one implementation.

Every rank is a process of its own that does what all do, through torch.distributed. The parent asks all of
them at once, takes the first rank's answers, and compares them with the others': ranks that differ are wrong
whatever the values are. A collective that some rank does not start ends at a time limit, as an error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import nn

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.errors import UsageError
from zipfmax_reference.contestants import surroundings
from zipfmax_reference.contestants.child import Child, ChildDiedError, ChildError, ChildRunner
from zipfmax_reference.contestants.implementation import Family
from zipfmax_reference.contestants.tensors import plain, to_numpy
from zipfmax_reference.contestants.torch_nn import (
    TorchModule,
    TorchRunner,
    arguments,
    copy_weights,
    tensor,
    zipfmax_layer,
)
from zipfmax_reference.contestants.torch_use import TorchUse
from zipfmax_reference.contestants.use import NotPromisedError, Use
from zipfmax_reference.runs.arrays import Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case

T = TypeVar("T")

COLLECTIVE_LIMIT = 60.0
"""Seconds that a rank waits for the others in a collective."""
LIMIT = 300.0
"""Seconds within which a rank has to answer, its start included."""
MAKE = "zipfmax_reference.contestants.ranked_layer:make"


MOST_RANKS = 256
"""On one machine."""


def check_ranks(world: int, impl: str = "zipfmax") -> None:
    """See that an implementation can be put over so many ranks.

    Raises:
        UsageError: it is none of zipfmax's, names its ranks itself, or the number is none.
    """
    layer, at, _ = impl.partition("@")
    if at:
        raise UsageError(f"--impl {impl} names its ranks itself: leave --world out")
    if layer.partition(":")[0] != "zipfmax":
        raise UsageError(f"only zipfmax's layers can be split over ranks, got --impl {impl}")
    if not 2 <= world <= MOST_RANKS:
        raise UsageError(f"--world should be from 2 to {MOST_RANKS}, got {world}")


class RankedLayer:
    """The layer of that name over so many ranks.

    Args:
        layer: "zipfmax" or "zipfmax:BACKEND".
        world: number of ranks.
        name: what it is known by; "LAYER@WORLD" by default.
        more: further arguments of `make`.
        pool: the processes, which several layers may share.
    """

    family: Family = "adaptive"

    def __init__(
        self,
        layer: str,
        world: int,
        name: str = "",
        more: tuple[Any, ...] = (),
        pool: RankPool | None = None,
    ) -> None:
        self.name = name or f"{layer}@{world}"
        self.layer, self.world = layer, world
        self._inner = _inner(layer)
        self._more = more
        self._pool = pool or RankPool(world)

    def unsupported_reason(self, case: Case) -> str | None:
        """What the layer lacks on one rank, too few devices, or a cluster that is too small."""
        from zipfmax.parallel.shard import refusal

        if case.device.startswith("cuda") and torch.cuda.device_count() < self.world:
            return f"{self.world} ranks need as many devices; torch sees {torch.cuda.device_count()}"
        return self._inner.unsupported_reason(case) or refusal(case.layout, self.world)

    def build(self, case: Case, inputs: Inputs) -> RankedRunner:
        """A runner in every rank."""
        return self.made("build", case, inputs)

    def use(self, case: Case, inputs: Inputs) -> Use:
        """A module in use in every rank."""
        return cast(Use, _RankedUse(self.made("use", case, inputs)))

    def options(self, case: Case, inputs: Inputs) -> RankedRunner:
        """`OptionCalls` in every rank."""
        return self.made("options", case, inputs)

    @property
    def lost(self) -> bool:
        """Whether the ranks did not all do the same in the last call, and new ones have to be started."""
        return self._pool.broken

    def made(self, how: str, case: Case, inputs: Inputs) -> RankedRunner:
        """What `make` makes by that word, in every rank."""
        return RankedRunner(self._pool.ranks(), (self.layer, how, case, inputs, *self._more))


class RankPool:
    """So many processes, replaced by new ones where they have lost each other.

    Args:
        world: how many.
        make: what makes a rank's runner, as `make` does, given as module:function.
    """

    def __init__(self, world: int, make: str = MAKE) -> None:
        self._world, self._make = world, make
        self._ranks: _Ranks | None = None

    def ranks(self) -> _Ranks:
        """Those that are there, or new ones."""
        if self._ranks is None or self._ranks.broken:
            self._ranks = _Ranks(self._make, self._world)
        return self._ranks

    @property
    def broken(self) -> bool:
        """Whether those that are there are of no more use."""
        return self._ranks is not None and self._ranks.broken


class _Ranks:
    """The processes."""

    def __init__(self, place: str, world: int) -> None:
        self.broken = False
        self._children = [Child(place, LIMIT) for _ in range(world)]
        self._folder = tempfile.TemporaryDirectory()
        self.store = str(Path(self._folder.name) / "store")
        self._threads = ThreadPoolExecutor(world)

    def build(self, arguments: tuple[Any, ...]) -> list[ChildRunner]:
        """What every rank makes of these."""
        world = len(self._children)
        return self.each(
            [
                partial(child.build, self.store, rank, world, *arguments)
                for rank, child in enumerate(self._children)
            ]
        )

    def each(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """What the calls return, all made at once.

        Raises:
            ChildError: the first rank's error that says why, not that another rank did not come.
        """
        waiting = [self._threads.submit(call) for call in calls]
        errors = [future.exception() for future in waiting]
        met = [error for error in errors if error is not None]
        if not met:
            return [future.result() for future in waiting]
        if len({str(error) for error in errors}) > 1:
            self.broken = True  # some rank may still wait for another, or have given up
        foreign = [error for error in met if not isinstance(error, ChildError | NotPromisedError)]
        raise next(iter(foreign), min(met, key=_remoteness))


def _remoteness(error: BaseException) -> int:
    """How far an error is from what went wrong: a rank's own, a process that died, a peer that noticed."""
    if isinstance(error, ChildDiedError):
        return 1
    return 2 if any(word in str(error).lower() for word in ("gloo", "nccl", "timed out")) else 0


class RankedRunner:
    """A runner that lives in every rank."""

    def __init__(self, ranks: _Ranks, arguments: tuple[Any, ...]) -> None:
        self._ranks = ranks
        self._runners = ranks.build(arguments)
        self._apart: dict[str, str] = {}

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Any method of what lives there; the answers have to be those of the first rank.

        Raises:
            ChildError: one of the ranks gave another answer.
        """
        answers = self.everyones(method, *arguments, **keywords)
        for rank, answer in enumerate(answers):
            for name in _differences(answers[0], answer):
                raise ChildError(f"rank {rank} has another {name or 'answer'} than rank 0", name or None)
        return answers[0]

    def everyones(self, method: str, *arguments: Any, **keywords: Any) -> list[Any]:
        """The answers of all ranks."""
        calls = [partial(runner.call, method, *arguments, **keywords) for runner in self._runners]
        return self._ranks.each(calls)

    def load(self, hidden: Array, target: Labels) -> None:
        """Take a batch."""
        self.call("load", hidden, target)

    def run(self) -> None:
        """Do the task once."""
        self.call("run")

    def results(self) -> Results:
        """What the first rank has of the last run, weights' gradients gathered."""
        answers = self.everyones("results")
        self._apart = {
            name: f"rank {rank} has another one than rank 0"
            for rank, answer in enumerate(answers)
            for name in _differences(answers[0], answer)
        }
        return cast(Results, answers[0])

    def mismatches(self) -> dict[str, str]:
        """What of it has another dtype or device than the input, or is not the same on every rank."""
        return {**self._apart, **cast(dict[str, str], self.call("mismatches"))}


class _RankedUse:
    """Every method of `Use`, passed on."""

    def __init__(self, runner: RankedRunner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._runner.call, name)

    def surroundings(self, stirred: bool = False) -> dict[str, str]:
        """Of every rank: each has random numbers of its own."""
        return self._of_every_rank("surroundings", stirred)

    def surroundings_before(self) -> dict[str, str]:
        """The same before the layers were made."""
        return self._of_every_rank("surroundings_before")

    def _of_every_rank(self, method: str, *arguments: Any) -> dict[str, str]:
        everyone = self._runner.everyones(method, *arguments)
        return {
            f"{name}, rank {rank}": text for rank, own in enumerate(everyone) for name, text in own.items()
        }


def _differences(first: Any, other: Any) -> list[str]:
    """Which of two ranks' answers are not the same, bit for bit: names, "" for answers without."""
    if isinstance(first, dict) and isinstance(other, dict):
        return [
            name for name in first.keys() | other.keys() if _differences(first.get(name), other.get(name))
        ]
    if isinstance(first, np.ndarray) and isinstance(other, np.ndarray):
        same = first.shape == other.shape and first.tobytes() == other.tobytes()
    else:
        same = type(first) is type(other) and bool(first == other)
    return [] if same else [""]


# --------------------------------------------------------------------------- in a rank's process


def make(store: str, rank: int, world: int, layer: str, how: str, case: Case, inputs: Inputs) -> Any:
    """What a rank keeps: a runner by "build", a module in use by "use", `OptionCalls` by "options"."""
    from zipfmax.parallel import shard_vocabulary

    group = group_of(store, rank, world, case.device)
    before = surroundings.read()
    if how == "options":
        return OptionCalls(layer, case, inputs, group)

    def made() -> nn.Module:
        inner = _inner(layer).build(replace(case, task="train") if how == "use" else case, inputs).module
        return cast(nn.Module, shard_vocabulary(cast(AdaptiveLogSoftmaxWithLoss, inner), group))

    return TorchUse(made(), case, before, made) if how == "use" else TorchRunner(made(), case, inputs)


@cache
def group_of(store: str, rank: int, world: int, device: str) -> Any:
    """The group of all ranks; made once a process."""
    import torch.distributed as dist

    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(rank)
    limit = timedelta(seconds=COLLECTIVE_LIMIT)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=limit,
    )
    return dist.group.WORLD


def _inner(layer: str) -> TorchModule:
    return zipfmax_layer(layer.partition(":")[2] or "auto")


class OptionCalls:
    """Layers with a case's weights and options that torch.nn lacks; over ranks, or in one process without a group."""

    def __init__(self, layer: str, case: Case, inputs: Inputs, group: Any = None) -> None:
        self._layer, self._case, self._inputs, self._group = layer, case, inputs, group

    def step(self, options: dict[str, Any], target: Labels) -> Results:
        """Output, loss and gradients of a call and of `loss.sum().backward()`."""
        module = self._made(options)
        hidden = tensor(self._inputs.hidden, self._case).requires_grad_()
        output, loss = module(hidden, torch.from_numpy(target).to(hidden.device))
        loss.sum().backward()
        leaves = {"input": hidden, **dict(module.named_parameters())}
        gradients = {
            f"grad.{name}": to_numpy(plain(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad))
            for name, leaf in leaves.items()
        }
        return {"output": to_numpy(output), "loss": to_numpy(loss), **gradients}

    def sample(self, n: int, alike: bool) -> Results:
        """n classes of each row, by generators that are in the same state on every rank, or in others."""
        rank = 0 if self._group is None or alike else self._group.rank()
        generator = torch.Generator(self._case.device).manual_seed(3 + rank)
        drawn = self._made({}).sample(tensor(self._inputs.hidden, self._case), n, generator)
        return {"sample": to_numpy(drawn)}

    def _made(self, options: dict[str, Any]) -> AdaptiveLogSoftmaxWithLoss:
        from zipfmax.parallel import shard_vocabulary

        given: dict[str, Any] = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in options.items()
        }
        backend = self._layer.partition(":")[2] or "auto"
        module = AdaptiveLogSoftmaxWithLoss(**arguments(self._case), backend=backend, **given)
        copy_weights(module, self._case, self._inputs)
        return module if self._group is None else shard_vocabulary(module, self._group)
