"""A training step or a forward pass on one rank of several, timed there: what `rank_sweep` asks each process for."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.parallel import Traffic, shard_vocabulary
from zipfmax_bench.memory import peak_temporary_bytes
from zipfmax_reference.contestants.ranked_layer import group_of
from zipfmax_reference.contestants.torch_nn import arguments, copy_weights, tensor
from zipfmax_reference.runs.arrays import Inputs
from zipfmax_reference.runs.case import Case

PLACE = "zipfmax_bench.rank_steps:make"


class RankStep:
    """A layer with a case's weights and its batch, on one rank.

    Args:
        layer: "zipfmax" or "zipfmax:BACKEND".
        group: of all ranks; None for one process, which holds the whole layer.
    """

    def __init__(self, layer: str, case: Case, inputs: Inputs, group: Any) -> None:
        self._case = case
        backend = layer.partition(":")[2] or "auto"
        module = AdaptiveLogSoftmaxWithLoss(**arguments(case), backend=backend)
        copy_weights(module, case, inputs)
        self._module = module if group is None else shard_vocabulary(module, group)
        self._group = group
        self._hidden = tensor(inputs.hidden, case).requires_grad_(case.task == "train")
        self._target = torch.from_numpy(np.array(inputs.target)).to(self._hidden.device)

    def step(self) -> None:
        """The case's task once."""
        if self._case.task == "train":
            self._hidden.grad = None
            self._module.zero_grad(set_to_none=True)
            self._module(self._hidden, self._target).loss.backward()
            return
        with torch.no_grad():
            self._module(self._hidden, self._target)

    def time(self) -> float:
        """Seconds of one step, which all ranks begin together."""
        if self._group is not None:
            torch.distributed.barrier(self._group)
        self._wait()
        begin = time.perf_counter()
        self.step()
        self._wait()
        return time.perf_counter() - begin

    def counted(self) -> dict[str, int]:
        """What of a step does not depend on the clock."""
        with Traffic() as traffic:
            self.step()
        parameters = [_local(parameter) for parameter in self._module.parameters()]
        return {
            "collectives": traffic.collectives,
            "sent_bytes": traffic.sent_bytes,
            "peak_bytes": peak_temporary_bytes(self.step, self._case.device),
            "parameter_bytes": sum(p.numel() * p.element_size() for p in parameters),
        }

    def collective(self, kind: str, n_bytes: int) -> float:
        """Seconds of one collective of `zipfmax.parallel`: a "sum" or a "gather" of so many bytes."""
        from zipfmax.parallel.collectives import gather, start_sum

        given = torch.zeros(n_bytes // 4, dtype=torch.float32, device=self._hidden.device)
        torch.distributed.barrier(self._group)
        self._wait()
        begin = time.perf_counter()
        if kind == "sum":
            start_sum(given, self._group).wait()
        else:
            gather(given, self._group)
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self._case.device.startswith("cuda"):
            torch.cuda.synchronize()


def _local(parameter: Tensor) -> Tensor:
    to_local = getattr(parameter, "to_local", None)
    return parameter if to_local is None else to_local()


def make(store: str, rank: int, world: int, layer: str, how: str, case: Case, inputs: Inputs) -> RankStep:
    """What a rank keeps; see `contestants.ranked_layer.make`. `how` is of no matter."""
    return RankStep(layer, case, inputs, None if world == 1 else group_of(store, rank, world, case.device))
