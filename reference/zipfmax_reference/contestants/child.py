"""A runner in a process of its own: for a framework that cannot share one, and for a class that is not trusted.

The parent holds a `ChildRunner`, which is a `Runner`; the child builds the real one and answers one message at a
time, over its standard input and output. Requests are pickled; answers are not, for the child may run anybody's code.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import weakref
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch

from zipfmax_reference.contestants import wire
from zipfmax_reference.contestants.pipes import Pipes, end, ended
from zipfmax_reference.contestants.registry import NoSuchClassError
from zipfmax_reference.contestants.use import NotPromisedError
from zipfmax_reference.runs.arrays import Array, Labels, Results

T = TypeVar("T")

LAST_WORDS = 5.0
"""Seconds that a process has to end after it closed its output."""
MOST_DEATHS, MOST_LATE = 5, 2
"""Ends, and calls without an answer in time, after which a process is not started again."""


class ChildError(RuntimeError):
    """What the child's runner raised, as "TypeError: ..."; `tensor` where the error names one."""

    def __init__(self, told: str, tensor: str | None = None) -> None:
        super().__init__(told)
        self.tensor = tensor


class ChildDiedError(ChildError):
    """The child died, or did not answer in time."""


def told(error: BaseException) -> str:
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
        self._pipes: Pipes | None = None
        self._deaths: list[str] = []
        self._late = 0
        self._released: list[int] = []
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child

    def call(self, method: str, *arguments: Any, most_bytes: int = wire.ANY) -> Any:
        """What the child answers, in at most so many bytes.

        Raises:
            ChildError: what the child's runner raised, or that the child died or gave no answer that can be read.
            NotPromisedError: raised by the child.
            NoSuchClassError: raised by the child.
        """
        process, pipes = self._running()
        pipes.answer_within(self._limit)
        try:
            pickle.dump((method, arguments, self._released), pipes)
            self._released = []
            kind, answer, tensor = wire.receive(pipes, most_bytes)
        except TimeoutError:
            self._late += 1
            raise self._given_up(process, f"gave no answer within {self._limit:g} s") from None
        except (EOFError, BrokenPipeError) as error:
            raise self._given_up(process, None) from error
        except ValueError as error:
            raise self._given_up(process, f"gave an answer that cannot be read: {error}") from error
        if kind == "not promised":
            raise NotPromisedError(str(answer))
        if kind == "no such class":
            raise NoSuchClassError(str(answer))
        if kind != "answer":
            raise ChildError(str(answer), tensor if isinstance(tensor, str) else None)
        return answer

    def _given_up(self, process: subprocess.Popen[bytes], how: str | None) -> ChildDiedError:
        """End the process and what it started, and say how it ended where that is not known yet."""
        if how is None:
            ended(process, LAST_WORDS)
        _end(process)
        self._process = None
        if how is None:
            said = self._last_words()
            how = f"its process died with status {process.returncode}" + (
                f", after saying {said!r}" if said else ""
            )
        self._deaths.append(how)
        return ChildDiedError(how)

    def _last_words(self) -> str:
        """The last line that the process wrote to its standard error."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 4096))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def build(self, *arguments: Any, most_bytes: int = wire.ANY) -> ChildRunner:
        """What the child's callable makes of these, which never answers with more bytes than that."""
        number: int = self.call("build", *arguments)
        runner = ChildRunner(self, number, most_bytes)
        weakref.finalize(runner, self._released.append, number)
        return runner

    def _running(self) -> tuple[subprocess.Popen[bytes], Pipes]:
        if self._process is None or self._pipes is None:
            if len(self._deaths) >= MOST_DEATHS or self._late >= MOST_LATE:
                raise ChildDiedError(self._deaths[-1])
            # Thread counts are read when the framework is imported.
            environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
            # -P: a file of the working directory must not stand in for a module of the standard library.
            command = [sys.executable, "-P", "-m", "zipfmax_reference.contestants.child", self._place]
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                start_new_session=True,  # what it forks can be ended with it
            )
            self._pipes = Pipes(self._process)
            weakref.finalize(self, _end, self._process)
        return self._process, self._pipes


class ChildRunner:
    """A runner that lives in a child."""

    def __init__(self, child: Child, number: int, most_bytes: int) -> None:
        self._child, self._number, self._most_bytes = child, number, most_bytes

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Any method of what lives there."""
        return self._child.call(method, self._number, *arguments, keywords, most_bytes=self._most_bytes)

    def load(self, hidden: Array, target: Labels) -> None:
        """Take a batch."""
        self.call("load", hidden, target)

    def run(self) -> None:
        """Do the task once; the two messages take some 50 microseconds."""
        self.call("run")

    def results(self) -> Results:
        """What the last run computed."""
        return _of(np.ndarray, self.call("results"))

    def mismatches(self) -> dict[str, str]:
        """What of it has another dtype or device than the input."""
        return _of(str, self.call("mismatches"))


def _of(kind: type[T], answer: Any) -> dict[str, T]:
    """An answer that has to be a dictionary of these: the process may have been made to give another one."""
    if not isinstance(answer, dict) or not all(isinstance(value, kind) for value in answer.values()):
        raise ChildError("it gave an answer of another kind")
    return answer


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
        except NoSuchClassError as error:
            answer = "no such class", str(error), None
        except Exception as error:  # told to the parent, which raises it
            answer = "error", f"{type(error).__name__}: {error}", getattr(error, "tensor", None)
        try:
            wire.send(answer, answers)
        except TypeError as error:  # raised before anything is written
            wire.send(("error", f"TypeError: {error}", None), answers)


def _end(process: subprocess.Popen[bytes]) -> None:
    end(process)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


if __name__ == "__main__":
    # What a framework prints must not reach the pipe that carries the answers, nor its reads the requests.
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    serve(sys.argv[1], requests, answers)
