"""A runner in a process of its own: for a framework that cannot share one, and for a class that is not trusted.

The parent holds a `ChildRunner`, which is a `Runner`; the child builds the real one and answers one message at a
time; see `served`.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import weakref
from typing import Any, TypeVar

import numpy as np
import torch

from zipfmax.errors import one_line, shortened
from zipfmax_reference.contestants import wire
from zipfmax_reference.contestants.registry import NoSuchClassError
from zipfmax_reference.contestants.served import LAST_WORDS_S, ServedProcess, requests_and_answers, serve
from zipfmax_reference.contestants.use import NotPromisedError
from zipfmax_reference.runs.arrays import Array, Labels, Results

T = TypeVar("T")

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
    if isinstance(error, ChildDiedError):
        return shortened(str(error))
    return f"raised {shortened(str(error)) if isinstance(error, ChildError) else one_line(error)}"


class Child:
    """A process that holds what one callable makes, given as `module:callable`; it starts at the first call.

    Args:
        place: the class of the runners, or a function that makes them.
        limit: seconds within which a call has to be answered; None for any time.
    """

    def __init__(self, place: str, limit: float | None = None) -> None:
        self._place, self._limit = place, limit
        self._process: ServedProcess | None = None
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
        process = self._running()
        request = method, arguments, self._released
        try:
            kind, answer, tensor = process.ask(request, self._limit, most_bytes)
        except TimeoutError:
            self._late += 1
            raise self._given_up(process, f"gave no answer within {self._limit:g} s") from None
        except (EOFError, BrokenPipeError) as error:
            raise self._given_up(process, None) from error
        except ValueError as error:
            raise self._given_up(process, f"gave an answer that cannot be read: {error}") from error
        self._released = []
        if kind == "not promised":
            raise NotPromisedError(str(answer))
        if kind == "no such class":
            raise NoSuchClassError(str(answer))
        if kind != "answer":
            raise ChildError(str(answer), tensor if isinstance(tensor, str) else None)
        return answer

    def _given_up(self, process: ServedProcess, how: str | None) -> ChildDiedError:
        """End the process, and say how it ended where that is not known yet."""
        status = process.close(LAST_WORDS_S if how is None else 0.0)
        self._process = None
        if how is None:
            said = self._last_words()
            died = "closed its output" if status is None else f"died with status {status}"
            how = f"its process {died}" + (f", after saying {said!r}" if said else "")
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

    def _running(self) -> ServedProcess:
        if self._process is None:
            if len(self._deaths) >= MOST_DEATHS or self._late >= MOST_LATE:
                raise ChildDiedError(self._deaths[-1])
            # Thread counts are read when the framework is imported.
            environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
            module = "zipfmax_reference.contestants.child"
            self._process = ServedProcess(module, self._place, environment=environment, log=self._log)
        return self._process


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


class Held:
    """What the process holds: what the callable at `module:callable` made, by number."""

    def __init__(self, place: str) -> None:
        self._module, _, self._attribute = place.partition(":")
        self._runners: dict[int, Any] = {}
        self._built = 0

    def answer(self, request: tuple[str, tuple[Any, ...], list[int]]) -> tuple[str, Any, str | None]:
        """What a call of `Child` gives."""
        method, arguments, released = request
        for number in released:
            self._runners.pop(number, None)
        if method == "build":
            self._built += 1
            make = getattr(importlib.import_module(self._module), self._attribute)
            self._runners[self._built] = make(*arguments)
            return "answer", self._built, None
        number, *positional, keywords = arguments
        return "answer", getattr(self._runners[number], method)(*positional, **keywords), None


def failure(error: Exception) -> tuple[str, str, str | None]:
    """What was raised, for `Child` to raise."""
    if isinstance(error, NotPromisedError):
        return "not promised", str(error), None
    if isinstance(error, NoSuchClassError):
        return "no such class", str(error), None
    return "error", one_line(error), getattr(error, "tensor", None)


if __name__ == "__main__":
    serve(*requests_and_answers(), Held(sys.argv[1]).answer, failure)
