"""Processes that share the cases of a grid, each computing with one thread."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.pool import Pool
from typing import Any

import torch

from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.machine import THREAD_VARIABLES, usable_cores

FEW = 40
"""Cases that are judged before other processes would have started."""


def worth(cases: Sequence[Case], device: str) -> int:
    """How many processes should share the cases: one for each core, or one for few cases and for a GPU."""
    return usable_cores() if device == "cpu" and len(cases) > FEW else 1


@contextmanager
def sharing(processes: int, begin: Callable[..., object] | None = None, *arguments: Any) -> Iterator[Pool]:
    """A pool of processes, each of which calls `begin` first, if there is one; ended with the context.

    They are spawned, because torch's threads do not survive a fork. An interruption is this process's to handle.
    """
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        pool = get_context("spawn").Pool(processes, _begin, (begin, *arguments))
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
    with pool:
        yield pool


def _begin(begin: Callable[..., object] | None, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    if begin is not None:
        begin(*arguments)
    gc.freeze()  # the protocol's collections need not look through what is imported
