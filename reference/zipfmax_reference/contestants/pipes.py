"""The pipes to and from a process that runs other people's code: no read or write here waits for ever.

A process that it forked may hold the other ends of the pipes after it has ended. So its end is looked for too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import IO, Protocol

_LOOK_S = 0.5
"""Seconds between two looks at whether the process has ended."""


class Process(Protocol):
    """What is needed of a process: `subprocess.Popen` has it.

    One that another process started also has a method `has_ended`, because its status cannot be waited for here.
    """

    pid: int
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    @property
    def returncode(self) -> int | None:
        """Its status, once it was waited for."""

    def wait(self) -> int:
        """Wait until it has ended."""


class Pipes:
    """A process's standard input and output, with a deadline for what is written and read.

    Args:
        process: started with a pipe for each, in a session of its own.
    """

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._input, self._output = process.stdin.fileno(), process.stdout.fileno()
        self._ahead = bytearray()
        self._deadline: float | None = None
        self._writable, self._readable = select.poll(), select.poll()
        self._writable.register(self._input, select.POLLOUT)
        self._readable.register(self._output, select.POLLIN)
        for pipe in (self._input, self._output):
            os.set_blocking(pipe, False)

    def answer_within(self, limit_s: float | None) -> None:
        """Set the deadline: that many seconds from now, or none. After it reads and writes raise TimeoutError."""
        self._deadline = None if limit_s is None else time.monotonic() + limit_s

    def write(self, data: bytes) -> None:
        """Write all of it.

        Raises:
            BrokenPipeError: nobody reads.
            EOFError: the process has ended.
            TimeoutError: the deadline has passed.
        """
        left = memoryview(data).cast("B")
        while left:
            self._wait(self._writable)
            left = left[os.write(self._input, left) :]

    def flush(self) -> None:
        """Nothing is buffered."""

    def readline(self, size: int) -> bytes:
        """A line with its end, or `size` bytes of it, or what there is before the end of the stream.

        Raises:
            EOFError: the process has ended.
            TimeoutError: the deadline has passed.
        """
        while b"\n" not in self._ahead and len(self._ahead) < size:
            self._wait(self._readable)
            more = os.read(self._output, size)
            if not more:
                break
            self._ahead += more
        end = self._ahead.find(b"\n", 0, size) + 1 or min(size, len(self._ahead))
        line = bytes(self._ahead[:end])
        del self._ahead[:end]
        return line

    def readinto(self, buffer: bytearray) -> int:
        """Fill the buffer, and how many bytes there were: fewer at the end of the stream only.

        Raises:
            EOFError: the process has ended.
            TimeoutError: the deadline has passed.
        """
        n_read = min(len(self._ahead), len(buffer))
        buffer[:n_read] = self._ahead[:n_read]
        del self._ahead[:n_read]
        with memoryview(buffer) as view:
            while n_read < len(buffer):
                self._wait(self._readable)
                more = os.readv(self._output, [view[n_read:]])
                if not more:
                    break
                n_read += more
        return n_read

    def _wait(self, pipe: select.poll) -> None:
        """Wait until a pipe is ready."""
        while True:
            left = _LOOK_S if self._deadline is None else self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            if pipe.poll(1e3 * min(left, _LOOK_S)):
                return
            if ended(self._process):
                raise EOFError


def end(process: Process) -> None:
    """End a process that leads a session, and what it forked; nothing where it has been reaped."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ended(process: Process, within_s: float = 0.0) -> bool:
    """Whether a process ends within that time. It is not reaped: its id, and its group's, stay taken until it is."""
    deadline = time.monotonic() + within_s
    while process.returncode is None:
        if _has_ended(process):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def _has_ended(process: Process) -> bool:
    look = getattr(process, "has_ended", None)
    if look is not None:
        return bool(look())
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
