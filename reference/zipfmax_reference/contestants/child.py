"""A runner in a process of its own: for a framework that cannot share one, and for a class that is not trusted.

The parent holds a `ChildRunner`, which is a `Runner`; the child builds the real one and answers one message at a
time, over its standard input and output. Requests are pickled; answers are not, for the child may run anybody's code.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import weakref
from typing import Any, BinaryIO

import torch

from zipfmax_reference.contestants import wire
from zipfmax_reference.contestants.use import NotPromisedError
from zipfmax_reference.runs.arrays import Array, Labels, Results

LAST_WORDS = 5.0
"""Seconds that a process has to end after it closed its output."""
MOST_DEATHS = 5


class ChildError(RuntimeError):
    """What the child's runner raised, as "TypeError: ..."; `tensor` where the error names one."""

    def __init__(self, told: str, tensor: str | None = None) -> None:
        super().__init__(told)
        self.tensor = tensor


class ChildDiedError(ChildError):
    """The child died, or did not answer in time."""


def told(error: Exception) -> str:
    """What was raised, here or in a child, or how the child ended, on one line."""
    text = str(error) if isinstance(error, ChildError) else f"{type(error).__name__}: {error}"
    return " ".join((text if isinstance(error, ChildDiedError) else f"raised {text}").split())[:300]


class Child:
    """A process that holds what one callable makes, given as `module:callable`; it starts at the first call.

    Args:
        place: the class of the runners, or a function that makes them.
        limit: seconds within which a call has to be answered; None for any time.
    """

    def __init__(self, place: str, limit: float | None = None) -> None:
        self._place, self._limit = place, limit
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths: list[str] = []
        self._released: list[int] = []
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child

    def call(self, method: str, *arguments: Any) -> Any:
        """What the child answers.

        Raises:
            ChildError: what the child's runner raised, or that the child died or did not answer in time.
            NotPromisedError: raised by the child.
        """
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._limit or 0, end)
        if self._limit is not None:
            timer.start()
        try:
            pickle.dump((method, arguments, self._released), process.stdin)
            process.stdin.flush()
            self._released = []
            kind, answer, tensor = wire.receive(process.stdout)
        except (EOFError, BrokenPipeError, ValueError) as error:
            raise self._died(process, late.is_set()) from error
        finally:
            timer.cancel()
        if kind == "not promised":
            raise NotPromisedError(answer)
        if kind != "answer":
            raise ChildError(answer, tensor)
        return answer

    def _died(self, process: subprocess.Popen[bytes], late: bool) -> ChildDiedError:
        """End what is left of the process, and how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LAST_WORDS)
        process.kill()
        status = process.wait()
        self._process = None
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines()
        last = f", after saying {said[-1]!r}" if said else ""
        how = (
            f"gave no answer within {self._limit:g} s"
            if late
            else f"its process died with status {status}{last}"
        )
        self._deaths.append(how)
        return ChildDiedError(how)

    def build(self, *arguments: Any) -> ChildRunner:
        """What the child's callable makes of these."""
        number: int = self.call("build", *arguments)
        runner = ChildRunner(self, number)
        weakref.finalize(runner, self._released.append, number)
        return runner

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            if len(self._deaths) >= MOST_DEATHS:
                raise ChildDiedError(f"{self._deaths[-1]}; it is not started again after {MOST_DEATHS} times")
            # Thread counts are read when the framework is imported.
            environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
            command = [sys.executable, "-m", "zipfmax_reference.contestants.child", self._place]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment
            )
            weakref.finalize(self, _end, self._process)
        return self._process


class ChildRunner:
    """A runner that lives in a child."""

    def __init__(self, child: Child, number: int) -> None:
        self._child, self._number = child, number

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Any method of what lives there."""
        return self._child.call(method, self._number, *arguments, keywords)

    def load(self, hidden: Array, target: Labels) -> None:
        """Take a batch."""
        self.call("load", hidden, target)

    def run(self) -> None:
        """Do the task once; the two messages take some 50 microseconds."""
        self.call("run")

    def results(self) -> Results:
        """What the last run computed."""
        results: Results = self.call("results")
        return results

    def mismatches(self) -> dict[str, str]:
        """What of it has another dtype or device than the input."""
        mismatches: dict[str, str] = self.call("mismatches")
        return mismatches


def serve(place: str, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer messages until the parent closes its end."""
    module, _, attribute = place.partition(":")
    runners: dict[int, Any] = {}
    built = 0
    while True:
        try:
            method, arguments, released = pickle.load(requests)
        except EOFError:
            return
        for number in released:
            runners.pop(number, None)
        answer: tuple[str, Any, str | None]
        try:
            if method == "build":
                built += 1
                runners[built] = getattr(importlib.import_module(module), attribute)(*arguments)
                answer = "answer", built, None
            else:
                number, *positional, keywords = arguments
                answer = "answer", getattr(runners[number], method)(*positional, **keywords), None
        except NotPromisedError as error:
            answer = "not promised", str(error), None
        except Exception as error:  # told to the parent, which raises it
            answer = "error", f"{type(error).__name__}: {error}", getattr(error, "tensor", None)
        wire.send(answer, answers)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


if __name__ == "__main__":
    # What a framework prints must not reach the pipe that carries the answers.
    private = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.argv[1], sys.stdin.buffer, private)
