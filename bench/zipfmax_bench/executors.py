"""Where an implementation runs: in a worker process of its own, or in this one.

An executor holds one implementation and answers the requests of `messages`. A process keeps its thread pools
and its memory to itself, and one that dies costs one cell.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import IO, Protocol

import torch

from zipfmax import timers
from zipfmax_bench import messages
from zipfmax_bench.fork_server import ForkServer
from zipfmax_bench.threads import worker_environment
from zipfmax_bench.worker import WorkerState, failure
from zipfmax_reference.contestants.served import LAST_WORDS_S, ServedProcess
from zipfmax_reference.runs.machine import Throttle


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
        server: forks the process, with the threads and the interpreter that it has; without, one is started.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        log: IO[bytes] | None = None,
        python: str = sys.executable,
        server: ForkServer | None = None,
    ) -> None:
        self.name = name
        self._server = server
        self._python = python
        self._threads = threads
        self._log = log
        self._process: ServedProcess | None = None

    @property
    def pid(self) -> int | None:
        """Process id, or None while no process runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, if there is none; returns before it is ready."""
        self._running()

    def _running(self) -> ServedProcess:
        if self._process is None and self._server is not None:
            self._process = ServedProcess.around(self._server.fork(self.name, self._log))
        elif self._process is None:
            self._process = ServedProcess(
                "zipfmax_bench.worker",
                *("--name", self.name, "--threads", str(self._threads)),
                environment=worker_environment(self._threads),
                log=self._log,
                python=self._python,
            )
        return self._process

    def ask(self, request: messages.Request, timeout_s: float | None = None) -> messages.Reply:
        """The answer, or a `Failure` if the process raised, died or took longer than `timeout_s`."""
        try:
            reply = messages.decoded(self._running().ask(request, timeout_s))
        except TimeoutError:
            reply = messages.Failure("over_budget", f"no answer within {timeout_s:g} s")
        except (EOFError, BrokenPipeError):
            return self._post_mortem()
        except ValueError as error:
            reply = messages.Failure("failed", f"the worker gave an answer that cannot be read: {error}")
        if isinstance(reply, messages.Failure):
            self.close()  # what raised may have left anything behind
        return reply

    def close(self) -> None:
        """End the process at once, and what it forked."""
        if self._process is not None:
            self._process.close()
        self._process = None

    def _post_mortem(self) -> messages.Failure:
        assert self._process is not None
        status, self._process = self._process.close(LAST_WORDS_S), None
        if status is None:
            return messages.Failure("failed", "closed the pipe that answers go through")
        if status == -signal.SIGKILL:
            return messages.Failure(
                "out_of_memory", "killed by SIGKILL, as the kernel does when memory runs out"
            )
        if status < 0:
            return messages.Failure("failed", f"killed by {signal.Signals(-status).name}")
        return messages.Failure("failed", f"ended with exit status {status}")


class InProcess:
    """Holds an implementation in this process. A run cannot be broken off, so time limits are not kept.

    Args:
        name: of the implementation.
    """

    def __init__(self, name: str, *_: object) -> None:
        self.name = name
        self._session: WorkerState | None = None

    def start(self) -> None:
        """Nothing to start."""

    def ask(self, request: messages.Request, timeout_s: float | None = None) -> messages.Reply:
        """The answer, or a `Failure` if the implementation raised."""
        try:
            self._session = self._session or WorkerState(self.name)
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
                case messages.PrepareCase():
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
