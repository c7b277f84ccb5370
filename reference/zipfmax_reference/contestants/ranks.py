"""zipfmax's layer over several ranks on this machine, `zipfmax@2`, as one implementation.

Every rank is a process of its own that does what all do, through torch.distributed. The parent asks all of
them at once, takes the first rank's answers, and compares them with the others': ranks that differ are wrong
whatever the values are. A collective that some rank does not start ends at a time limit, as an error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch

from zipfmax_reference.contestants import surroundings
from zipfmax_reference.contestants.child import Child, ChildDiedError, ChildError, ChildRunner
from zipfmax_reference.contestants.implementation import Family
from zipfmax_reference.contestants.torch_nn import TorchModule, TorchRunner, zipfmax_layer
from zipfmax_reference.contestants.use import NotPromisedError, TorchUse, Use
from zipfmax_reference.runs.arrays import Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case

T = TypeVar("T")

COLLECTIVE_LIMIT = 60.0
"""Seconds that a rank waits for the others in a collective."""
LIMIT = 300.0
"""Seconds within which a rank has to answer, its start included."""
MAKE = "zipfmax_reference.contestants.ranks:make"


class RankedLayer:
    """The layer of that name over so many ranks.

    Args:
        layer: "zipfmax" or "zipfmax:BACKEND".
        world: number of ranks.
        make: what makes a rank's runner, as `make` does, given as module:function.
        name: what it is known by; "LAYER@WORLD" by default.
        more: further arguments of `make`.
    """

    family: Family = "adaptive"

    def __init__(
        self, layer: str, world: int, make: str = MAKE, name: str = "", more: tuple[Any, ...] = ()
    ) -> None:
        self.name = name or f"{layer}@{world}"
        self.layer, self.world = layer, world
        self._inner = _inner(layer)
        self._place, self._more = make, more
        self._ranks: _Ranks | None = None

    def unsupported_reason(self, case: Case) -> str | None:
        """What the layer lacks on one rank, too few devices, or a cluster that is too small."""
        from zipfmax.parallel.shard import refusal

        if case.device.startswith("cuda") and torch.cuda.device_count() < self.world:
            return f"{self.world} ranks need as many devices; torch sees {torch.cuda.device_count()}"
        return self._inner.unsupported_reason(case) or refusal(case.layout, self.world)

    def build(self, case: Case, inputs: Inputs) -> RankedRunner:
        """A runner in every rank."""
        return self._made("build", case, inputs)

    def use(self, case: Case, inputs: Inputs) -> Use:
        """A module in use in every rank."""
        return cast(Use, _RankedUse(self._made("use", case, inputs)))

    def made(self, how: str, *of: Any) -> RankedRunner:
        """What `make` makes by that word, in every rank."""
        if self._ranks is None or self._ranks.broken:
            self._ranks = _Ranks(self._place, self.world)
        return RankedRunner(self._ranks, (self.layer, how, *of, *self._more))

    def _made(self, how: str, case: Case, inputs: Inputs) -> RankedRunner:
        return self.made(how, case, inputs)


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
        raise next(iter(foreign), min(met, key=_is_a_consequence))


def _is_a_consequence(error: BaseException) -> bool:
    return (
        isinstance(error, ChildDiedError) or "gloo" in str(error).lower() or "timed out" in str(error).lower()
    )


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


def _differences(first: Any, other: Any) -> list[str]:
    """Which of two ranks' answers are not the same, bit for bit: names, "" for answers without."""
    if isinstance(first, dict) and isinstance(other, dict):
        return [
            name for name in first.keys() | other.keys() if _differences(first.get(name), other.get(name))
        ]
    if isinstance(first, np.ndarray) and isinstance(other, np.ndarray):
        same = first.shape == other.shape and first.tobytes() == other.tobytes()
    else:
        same = first == other
    return [] if same else [""]


# --------------------------------------------------------------------------- in a rank's process


def make(store: str, rank: int, world: int, layer: str, how: str, case: Case, inputs: Inputs) -> Any:
    """What a rank keeps: a runner by "build", a module in use by "use"."""
    group = group_of(store, rank, world, case.device)
    before = surroundings.read()
    return of_module(sharded(layer, case, inputs, group), how, case, inputs, before)


def sharded(layer: str, case: Case, inputs: Inputs, group: Any) -> Any:
    """A layer with the case's weights, split over the ranks."""
    from zipfmax.parallel import shard_vocabulary

    return shard_vocabulary(cast(Any, _inner(layer).build(case, inputs).module), group)


def of_module(module: Any, how: str, case: Case, inputs: Inputs, before: dict[str, str]) -> Any:
    """A module as "build" and "use" hand it out; `before`: the surroundings before it was made."""
    return TorchUse(module, case, before) if how == "use" else TorchRunner(module, case, inputs)


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
