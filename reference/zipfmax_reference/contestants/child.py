"""A runner in a process of its own, for a framework that cannot share one: TensorFlow crashes beside Paddle.

The parent holds a `ChildRunner`, which is a `Runner`; the child builds the real one from its class and
answers one pickled message at a time, over its standard input and output.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import weakref
from typing import Any, BinaryIO

import torch

from zipfmax_reference.contestants.implementation import Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case


class Child:
    """A process that holds runners of one class, given as `module:Class`; it starts at the first call."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None
        self._released: list[int] = []
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child

    def call(self, method: str, *arguments: Any) -> Any:
        """What the child answers.

        Raises:
            RuntimeError: what the child's runner raised, or that the child died.
        """
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((method, arguments, self._released), process.stdin)
            process.stdin.flush()
            self._released = []
            failed, answer = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError) as error:
            status = process.wait()
            self._process = None
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip().splitlines()
            last = f", after saying {said[-1]!r}" if said else ""
            raise RuntimeError(f"its process died with status {status}{last}") from error
        if failed:
            raise RuntimeError(answer)
        return answer

    def build(self, case: Case, inputs: Inputs) -> ChildRunner:
        """A runner in the child."""
        number: int = self.call("build", case, inputs)
        runner = ChildRunner(self, number)
        weakref.finalize(runner, self._released.append, number)
        return runner

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
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

    def load(self, hidden: Array, target: Labels) -> None:
        """Take a batch."""
        self._child.call("load", self._number, hidden, target)

    def run(self) -> None:
        """Do the task once; the two messages take some 50 microseconds."""
        self._child.call("run", self._number)

    def results(self) -> Results:
        """What the last run computed."""
        results: Results = self._child.call("results", self._number)
        return results

    def mismatches(self) -> dict[str, str]:
        """What of it has another dtype or device than the input."""
        mismatches: dict[str, str] = self._child.call("mismatches", self._number)
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
        answer: tuple[bool, Any]
        try:
            if method == "build":
                built += 1
                runners[built] = getattr(importlib.import_module(module), attribute)(*arguments)
                answer = False, built
            else:
                answer = False, getattr(runners[arguments[0]], method)(*arguments[1:])
        except Exception as error:  # told to the parent, which raises it
            answer = True, f"{type(error).__name__}: {error}"
        pickle.dump(answer, answers)
        answers.flush()


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
