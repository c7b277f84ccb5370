"""Many calls of one torch module: in threads at the same time, and hundreds one after another."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from zipfmax_reference.contestants.tensors import to_array
from zipfmax_reference.runs.arrays import Results

WAIT_S = 60.0
"""Seconds that a thread waits for the others to begin a round."""
OFTEN_S = 1e-6
"""Seconds after which one thread gives way to another that waits."""
LOCKED_S = 0.02
"""Seconds that a thread waits for its turn."""
GIVES_AWAY = (1.0, 0.3, 0.1, 0.03)
"""Parts of its Python calls at which a thread gives its turn away, round by round: at 1 threads go in step."""
OPEN_FILES, PAGE = "/proc/self/fd", 4096
MOST_UNLIKE = 4
"""Results of a batch that are told, where they are unlike."""


def at_the_same_time(
    module: nn.Module, batches: Mapping[str, tuple[Tensor, Tensor]], rounds: int
) -> dict[str, list[Results]]:
    """Results of training steps and other methods, each batch's in a thread of its own; those that are unlike.

    All threads begin each round together. In every other round they give way to each other as often as the
    interpreter allows, where the machine decides who goes on; in the rounds between they take turns, so that
    a state that calls share is seen on a busy machine and on one core too.
    """
    together = threading.Barrier(len(batches), timeout=WAIT_S)
    turns = Turns(len(batches))

    def one_after_another(number: int, hidden: Tensor, target: Tensor) -> list[Results]:
        unlike: dict[bytes, Results] = {}
        try:
            for round_ in range(rounds):
                together.wait()
                with turns.taken(number, round_ // 2) if round_ % 2 else nullcontext():
                    stepped = step(module, hidden, target)
                found = {name: to_array(value) for name, value in stepped.items()}
                unlike.setdefault(b"".join(value.tobytes() for value in found.values()), found)
        finally:
            if sys.exc_info()[0] is not None:
                together.abort()  # the others would wait for this one
        return [*unlike.values()][:MOST_UNLIKE]

    with _giving_way(), ThreadPoolExecutor(len(batches)) as pool:
        running = {
            name: pool.submit(one_after_another, number, *batch)
            for number, (name, batch) in enumerate(batches.items())
        }
        errors = [error for one in running.values() if (error := one.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return {name: one.result() for name, one in running.items()}


class Turns:
    """Threads of which one runs at a time, and gives the turn away at some of its Python calls.

    Which calls these are follows from a seed, not from the clock. A thread that waits longer than `LOCKED_S`
    takes it that the other waits for a lock of its own, and goes on beside it.

    Args:
        n_threads: All of them take turns in the same rounds.
    """

    def __init__(self, n_threads: int) -> None:
        self._changed = threading.Condition()
        self._all_wait = threading.Barrier(n_threads, timeout=WAIT_S)
        self._n_threads = n_threads
        self._turn = 0
        self._running: set[int] = set()

    @contextmanager
    def taken(self, number: int, round_: int) -> Iterator[None]:
        """A round of one thread: it waits for its turn now, and gives it away for good at the end."""
        chance = random.Random(round_ * self._n_threads + number)
        part = GIVES_AWAY[round_ % len(GIVES_AWAY)]

        def at_a_call(frame: object, event: str, argument: object) -> None:
            if chance.random() < part:
                self._give(number)

        with self._changed:
            self._running.add(number)
        self._all_wait.wait()
        self._wait(number)
        sys.setprofile(at_a_call)
        try:
            yield
        finally:
            sys.setprofile(None)
            with self._changed:
                self._running.discard(number)
            self._give(number)

    def _give(self, number: int) -> None:
        with self._changed:
            others = [(number + far) % self._n_threads for far in range(1, self._n_threads)]
            waiting = [other for other in others if other in self._running]
            if not waiting:
                return
            self._turn = waiting[0]
            self._changed.notify_all()
        if number in self._running:
            self._wait(number)

    def _wait(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == number or len(self._running) == 1, LOCKED_S)


def step(module: Any, hidden: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Output, loss, gradients that are left nowhere, `log_prob` and `predict`."""
    leaves = {"input": hidden, **dict(module.named_parameters())}
    output, loss = module(hidden, target)
    gradients = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        methods = {"log_prob": module.log_prob(hidden), "predict": module.predict(hidden)}
    of_leaves = {f"grad.{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {"output": output.detach(), "loss": loss.detach(), **of_leaves, **methods}


def note(unlike: list[dict[str, Tensor]], found: dict[str, Tensor]) -> None:
    """Enter a step's results among those of other steps, where none of them is the same bit by bit."""
    if len(unlike) < MOST_UNLIKE and not any(
        all(torch.equal(value, known[name]) for name, value in found.items()) for known in unlike
    ):
        unlike.append({name: value.clone() for name, value in found.items()})


def is_held(make: Callable[[], Any]) -> bool:
    """Whether what is made is still there once it is dropped."""
    made = weakref.ref(make())
    if made() is not None:
        gc.collect()  # what refers to itself
    return made() is not None


@contextmanager
def _giving_way() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(OFTEN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def bytes_held(device: str) -> int:
    """Bytes that the process has asked for and not given back: by malloc, as tensors do, and on a GPU.

    Those of malloc count where the C library tells them. An open file and a thread count as a page.
    """
    n_pages = threading.active_count() + (len(os.listdir(OPEN_FILES)) if os.path.isdir(OPEN_FILES) else 0)
    of_gpu = torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0
    return of_gpu + _told_by_malloc()() + PAGE * n_pages


class _MallocInformation(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


@cache
def _told_by_malloc() -> Callable[[], int]:
    try:
        ask = ctypes.CDLL(None).mallinfo2  # glibc's
    except (OSError, AttributeError, TypeError):
        return lambda: 0
    ask.restype, ask.argtypes = _MallocInformation, []

    def held() -> int:
        found = ask()
        return int(found.uordblks + found.hblkhd)

    return held
