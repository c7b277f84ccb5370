"""A process that answers requests: started, asked within a time, and ended together with what it forked.

Requests are pickled, for the process is told what to do. Answers are not, for it may run anybody's code: see `wire`.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from typing import IO, Any, BinaryIO, Self

from zipfmax_reference.contestants import wire
from zipfmax_reference.contestants.pipes import Pipes, Process, end, ended

LAST_WORDS_S = 30.0
"""Seconds that a process has to end after it closed its pipe, before it is ended."""


class ServedProcess:
    """A process of the harness's own module, which calls `serve` with what `requests_and_answers` gives.

    Args:
        module: run as `python -m module`.
        arguments: of its command line.
        environment: all of its variables.
        log: where its output goes; nowhere by default.
        python: interpreter whose zipfmax the process runs; this one's by default.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str],
        log: IO[bytes] | None = None,
        python: str = sys.executable,
    ) -> None:
        # Another interpreter imports what is installed in it, whatever PYTHONPATH says here. Neither takes a file
        # of the working directory for a module of the standard library.
        command = [python, "-P" if python == sys.executable else "-I", "-m", module, *arguments]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log or subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for this process; and what it forks can be ended with it
        )
        self._take(process)

    @classmethod
    def around(cls, process: Process) -> Self:
        """One that another process has started, in a process group of its own."""
        served = cls.__new__(cls)
        served._take(process)
        return served

    def _take(self, process: Process) -> None:
        self._process = process
        self._pipes = Pipes(process)
        self._end = weakref.finalize(self, _end, process)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def ask(self, request: Any, limit_s: float | None = None, most_bytes: int = wire.ANY) -> Any:
        """What the process answers, in at most so many bytes.

        Raises:
            EOFError, BrokenPipeError: it has ended, or closed its end.
            TimeoutError: no answer within the limit.
            ValueError: an answer that cannot be read.
        """
        self._pipes.answer_within(limit_s)
        pickle.dump(request, self._pipes)
        return wire.receive(self._pipes, most_bytes)

    def close(self, last_words_s: float = 0.0) -> int | None:
        """End the process and what it forked; its status where it ended by itself within that time, else None."""
        lives = not ended(self._process, last_words_s)
        self._end()
        return None if lives else self._process.returncode


def _end(process: Process) -> None:
    end(process)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def requests_and_answers() -> tuple[BinaryIO, BinaryIO]:
    """This process's ends of the pipes, out of reach of what is printed and read here from now on."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return requests, answers


def serve(
    requests: BinaryIO,
    answers: BinaryIO,
    answer: Callable[[Any], Any],
    failure: Callable[[Exception], Any],
) -> None:
    """Answer one request after another, until the process that asks is gone.

    Args:
        requests, answers: as `requests_and_answers` gives them.
        answer: makes the answer to a request.
        failure: makes it of what that raised, or of why it cannot be sent.
    """
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        try:
            message = wire.encoded(answer(request))
        except Exception as error:
            message = wire.encoded(failure(error))
        answers.write(message)
        answers.flush()
