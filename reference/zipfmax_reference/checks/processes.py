"""Processes that share the cases of a grid, each computing with one thread."""

from __future__ import annotations

import gc
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any

import torch

from zipfmax.errors import UsageError
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.machine import THREAD_VARIABLES, usable_cores

FEW = 40
"""Cases that are judged before other processes would have started."""
AHEAD = 32
"""Cases a process that are handed out before the first of them has its result."""


MOST_ON_A_GPU, LARGE_ON_A_GPU = 8, 2**17
"""Processes that share a GPU, each with a context of its own in its memory; classes from which one has all of it."""


def worth(cases: Sequence[Case], device: str) -> int:
    """How many processes should share the cases: one for each core, or one for few cases.

    On a GPU too, where most of the time goes to compiling kernels on the host; but there one for large cases.
    """
    if len(cases) <= FEW:
        return 1
    if device == "cpu":
        return usable_cores()
    return (
        1 if any(case.n_classes >= LARGE_ON_A_GPU for case in cases) else min(usable_cores(), MOST_ON_A_GPU)
    )


Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]
"""As `map`: results in the order of the arguments, which are taken a few ahead."""


@contextmanager
def sharing(processes: int, begin: Callable[..., object] | None = None, *arguments: Any) -> Iterator[Each]:
    """A `map` over processes, each of which calls `begin` first, if there is one; ended with the context.

    They are spawned, because torch's threads do not survive a fork. An interruption is this process's to handle.

    Raises:
        UsageError: while it is used: a process ended before its work did.
    """
    others = set(active_children())
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin, (begin, *arguments))

    def each(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        waiting: deque[Future[Any]] = deque()
        try:
            for item in items:
                with _one_thread():  # a process is started where an item finds none idle
                    waiting.append(pool.submit(function, item))
                if len(waiting) > AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UsageError(
                "a process that judged cases ended before they were judged: it ran out of memory, was killed, or a "
                "library crashed in it; what was judged is in --out, and --resume goes on there"
            ) from error

    try:
        yield each
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(active_children()) - others:
            process.terminate()
        raise
    pool.shutdown()


@contextmanager
def _one_thread() -> Iterator[None]:
    """While processes that are started compute with one thread."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _begin(begin: Callable[..., object] | None, *arguments: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    if begin is not None:
        begin(*arguments)
    gc.freeze()  # the protocol's collections need not look through what is imported
