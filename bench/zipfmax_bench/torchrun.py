"""A sweep over several GPUs or hosts: the ranks that torchrun starts take cases from one list.

The list is a counter in torch.distributed's store, so a fast rank takes more. All ranks write one run
directory. When a rank dies torchrun ends the others and, with `--max-restarts`, starts all again: they go on
with what the run directory lacks, so that nothing but the cells in work is done twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

Item = TypeVar("Item")


class Ranks:
    """This process among the ranks of a job.

    Args:
        rank, size: of all hosts.
        local_rank, local_size: of this host.
        restart: how often the job has been restarted.
    """

    def __init__(self, rank: int, size: int, local_rank: int, local_size: int, restart: int) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self.restart = restart
        store, _, _ = next(rendezvous("env://", rank, size))
        self._store = PrefixStore(f"zipfmax-sweep-{restart}", store)

    @classmethod
    def of_environment(cls) -> Ranks | None:
        """The ranks that torchrun has set in the environment; None in a process outside torchrun."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return None
        rank, size, local_rank, local_size = (
            int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        )
        restart = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        return cls(rank, size, local_rank, local_size, restart)

    @property
    def first(self) -> bool:
        """Whether this is the rank that makes the run directory and shows the table."""
        return self.rank == 0

    def take_own_gpu(self) -> None:
        """Show this process and its workers one GPU, so that `cuda` means another one on each rank."""
        if torch.cuda.device_count() >= self.local_size:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(self.local_rank)

    def announce(self) -> None:
        """The run directory is there."""
        self._store.set("directory", "made")

    def await_directory(self) -> None:
        """Wait for the first rank to make it."""
        self._store.wait(["directory"])

    def deal(self, items: Sequence[Item]) -> Iterator[Item]:
        """The items that fall to this rank: the next one whenever it asks, the same list on every rank."""
        while (position := self._store.add("next", 1) - 1) < len(items):
            yield items[position]

    def finish(self) -> None:
        """Wait until every rank has come here."""
        self._store.add("finished", 1)
        while self._store.add("finished", 0) < self.size:
            time.sleep(0.2)
