"""Where an implementation runs: in a worker process of its own, or in this one.

An executor holds one implementation and answers the requests of `protocol`. A process keeps its thread pools
and its memory to itself, and one that dies costs one cell.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import IO, Any, Protocol, get_args

import torch

from zipfmax import timers
from zipfmax_bench import messages
from zipfmax_bench.worker import Session, failure
from zipfmax_reference.contestants.pipes import end, ended
from zipfmax_reference.runs.machine import Throttle

# Set before a worker imports anything; frameworks read them once. Importing Paddle with OMP_NUM_THREADS unset
# would set it to 1.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)

# Intel's OpenMP keeps idle threads spinning for 200 ms, into the next worker's sample. One millisecond spans
# the gaps within a run and is over before the next worker has drawn its batch.
_SPIN = {"KMP_BLOCKTIME": "1"}


LOOK_S = 2.0
"""Seconds between two looks at whether a worker has ended while its answer is waited for."""
LAST_WORDS_S = 5.0
"""Seconds that a worker has to end after it closed its connection."""


class Executor(Protocol):
    """Holds one implementation."""

    def start(self) -> None:
        """Begin to start, where that takes time; returns at once."""

    def ask(self, request: messages.Request, timeout_s: float | None = None) -> messages.Reply:
        """The answer, or a `Failure`."""

    def close(self) -> None:
        """Let go of everything."""


class WorkerProcess:
    """A process that holds one implementation. Started at the first request, and again after a failure.

    Args:
        name: of the implementation.
        threads: that it computes with.
        log: where its output goes; nowhere by default.
        python: interpreter whose zipfmax the process runs; this one's by default.
    """

    def __init__(
        self, name: str, threads: int, log: IO[bytes] | None = None, python: str = sys.executable
    ) -> None:
        self.name = name
        self._python = python
        self._threads = threads
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id, or None while no process runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, if there is none; returns before it is ready."""
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    # Another interpreter imports what is installed in it, whatever PYTHONPATH says here. None
                    # takes a file of the working directory for a module of the standard library.
                    *(self._python, "-P" if self._python == sys.executable else "-I"),
                    *("-m", "zipfmax_bench.worker"),
                    *("--name", self.name, "--threads", str(self._threads), "--fd", str(theirs.fileno())),
                ],
                env=worker_environment(self._threads),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log or subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which then ends its workers
            )
        self._connection = Connection(ours.detach())

    def ask(self, request: messages.Request, timeout_s: float | None = None) -> messages.Reply:
        """The answer, or a `Failure` if the process raised, died or took longer than `timeout_s`."""
        self.start()
        assert self._connection is not None
        try:
            self._connection.send(request)
            if not self._answers(timeout_s):
                self.close()
                return messages.Failure("over_budget", f"no answer within {timeout_s:g} s")
            reply = plain_reply(self._connection.recv_bytes())
        except (EOFError, OSError):
            return self._post_mortem()
        except pickle.UnpicklingError as error:
            self.close()
            return messages.Failure("failed", str(error))
        if isinstance(reply, messages.Failure):
            self.close()  # what raised may have left anything behind
        return reply

    def _answers(self, timeout_s: float | None) -> bool:
        """Wait until an answer begins, and whether it did.

        Raises:
            EOFError: the process has ended. What it forked may still hold the connection.
        """
        assert self._connection is not None
        assert self._process is not None
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while not self._connection.poll(max(0.0, min(LOOK_S, deadline - time.monotonic()))):
            if ended(self._process):
                raise EOFError
            if time.monotonic() >= deadline:
                return False
        return True

    def close(self) -> None:
        """End the process at once, and what it forked."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            end(self._process)
        self._process = self._connection = None

    def _post_mortem(self) -> messages.Failure:
        process = self._process
        assert process is not None
        lives = not ended(process, LAST_WORDS_S)
        self.close()
        if lives:
            return messages.Failure("failed", "closed the connection that answers go through")
        status = process.returncode
        if status == -signal.SIGKILL:
            return messages.Failure(
                "out_of_memory", "killed by SIGKILL, as the kernel does when memory runs out"
            )
        if status < 0:
            return messages.Failure("failed", f"killed by {signal.Signals(-status).name}")
        return messages.Failure("failed", f"ended with exit status {status}")


class _PlainUnpickler(pickle.Unpickler):
    """Makes the answers of `protocol` and nothing else: a worker runs code of others."""

    def find_class(self, module: str, name: str) -> Any:
        """A class of the messages.

        Raises:
            pickle.UnpicklingError: anything else.
        """
        if module == messages.__name__ and name in _REPLIES:
            return _REPLIES[name]
        raise pickle.UnpicklingError(f"the worker answered with {module}.{name}, which is no plain value")


_REPLIES = {reply.__name__: reply for reply in get_args(messages.Reply)}


def plain_reply(data: bytes) -> messages.Reply:
    """The answer that a worker pickled.

    Raises:
        pickle.UnpicklingError: it is not made of the protocol's classes and plain values.
    """
    reply = _PlainUnpickler(io.BytesIO(data)).load()
    if not isinstance(reply, messages.Reply):
        raise pickle.UnpicklingError(f"the worker answered with a {type(reply).__name__}")
    return reply


class InProcess:
    """Holds an implementation in this process. A run cannot be broken off, so time limits are not kept.

    Args:
        name: of the implementation.
    """

    def __init__(self, name: str, *_: object) -> None:
        self.name = name
        self._session: Session | None = None

    def start(self) -> None:
        """Nothing to start."""

    def ask(self, request: messages.Request, timeout_s: float | None = None) -> messages.Reply:
        """The answer, or a `Failure` if the implementation raised."""
        try:
            self._session = self._session or Session(self.name)
            return self._session.answer(request)
        except Exception as error:
            self.close()  # what raised may have left anything behind
            return failure(error)

    def close(self) -> None:
        """Forget the implementation and its weights."""
        self._session = None


class RunHere:
    """A function of no arguments, timed in this process: what it needs is built already.

    Args:
        run: does the work once.
        device: its clock is used.
        work: counts what a run does besides taking time; nothing by default.
    """

    def __init__(
        self,
        run: timers.Run,
        device: torch.device,
        work: Callable[[], messages.Work] = messages.Work,
    ) -> None:
        self._run, self._work = run, work
        self._timer, self._throttle = timers.timer_for(device), Throttle.of(device)

    def start(self) -> None:
        """Nothing to start."""

    def ask(self, request: messages.Request, timeout_s: float | None = None) -> messages.Reply:
        """The answer; a run cannot be broken off in its own process, so the time limit is not kept."""
        try:
            match request:
                case messages.Prepare():
                    return messages.Prepared()
                case messages.WarmUp():
                    return messages.Timed(*self._timer(self._run))
                case messages.Load():
                    return messages.Loaded()
                case messages.TakeSample():
                    return messages.Timed(*self._timer(self._run), self._throttle.state())
                case messages.Weigh():
                    return self._work()
        except Exception as error:
            return failure(error)
        return messages.Lacking(f"a function cannot answer {type(request).__name__}")

    def close(self) -> None:
        """Forget the function, and what it holds."""
        self._run = lambda: None


def worker_environment(threads: int) -> dict[str, str]:
    """This process's environment with the thread count of every framework set, equal for all."""
    return {**os.environ, **_SPIN, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}


def usable_cores() -> int:
    """Cores that this process may run on: the default thread count."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
