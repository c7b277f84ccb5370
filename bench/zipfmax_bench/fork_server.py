"""Workers by fork from one process that has imported torch: a start costs milliseconds instead of seconds.

The server imports what every worker needs, and then only forks: it starts no thread, runs no implementation and
draws no weights. Forks share the places of what is loaded, so each one first moves its own memory by a random
distance: where tensors lie is one of the things in which replicate processes have to differ.

A GPU's driver that was initialised before a fork is lost to the child, so the server never initialises it, and whether
there is a GPU is asked of NVML in the server and in its forks.
"""

from __future__ import annotations

import argparse
import array
import ctypes
import gc
import json
import mmap
import os
import random
import select
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import suppress
from typing import IO, Any, Self

import torch

from zipfmax_bench.threads import worker_environment

_MESSAGE_BYTES = 1 << 16
_SHIFT_PAGES = 512
"""Of 4 KiB: 2 MiB, the alignment that large pages have."""
_BLOCKS, _LARGEST_BLOCK_BITS = 96, 21
"""Of the heap, which holds what is not mapped by itself: so many blocks of up to 2 MiB, every other one freed."""


class ForkedProcess:
    """A worker that a server forked, with the attributes of `subprocess.Popen` that `pipes` needs."""

    def __init__(self, server: ForkServer, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.pid = pid
        self.stdin: IO[bytes] | None = stdin
        self.stdout: IO[bytes] | None = stdout
        self.returncode: int | None = None
        self._server = server
        self._handle = os.pidfd_open(pid)
        self._ended = select.poll()
        self._ended.register(self._handle, select.POLLIN)

    def has_ended(self) -> bool:
        """Whether the process has ended; its id stays taken until `wait`."""
        return self.returncode is not None or bool(self._ended.poll(0))

    def wait(self) -> int:
        """The exit status, negative for a signal, once the process has ended."""
        if self.returncode is None:
            self.returncode = self._server.status(self.pid)
            os.close(self._handle)
        return self.returncode


class ForkServer:
    """Starts workers of one interpreter and one number of threads; its process starts with the first of them.

    Args:
        threads: of every worker.
        python: interpreter whose zipfmax the workers run; this one's by default.
    """

    def __init__(self, threads: int, python: str = sys.executable) -> None:
        self._threads, self._python = threads, python
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fork(self, name: str, log: IO[bytes] | None = None) -> ForkedProcess:
        """A worker of an implementation, which waits for requests.

        Args:
            name: of the implementation.
            log: where its output goes; nowhere by default.
        """
        (requests, to_worker), (from_worker, answers) = os.pipe(), os.pipe()
        output = os.dup(log.fileno()) if log is not None else os.open(os.devnull, os.O_WRONLY)
        try:
            pid = self._ask({"fork": name}, [requests, answers, output])
        finally:
            for end in (requests, answers, output):
                os.close(end)
        return ForkedProcess(self, pid, os.fdopen(to_worker, "wb"), os.fdopen(from_worker, "rb"))

    def status(self, pid: int) -> int:
        """The exit status of a worker that has ended or is about to."""
        try:
            return self._ask({"status": pid}, [])
        except OSError:
            return -signal.SIGKILL  # a server takes its workers with it

    def close(self) -> None:
        """End the server, and with it all of its workers."""
        if self._process is not None and self._socket is not None:
            self._socket.close()
            self._process.kill()
            self._process.wait()
        self._process = self._socket = None

    def _ask(self, request: dict[str, Any], descriptors: list[int]) -> int:
        channel = self._channel()
        socket.send_fds(channel, [json.dumps(request).encode()], descriptors)
        answer = channel.recv(_MESSAGE_BYTES)
        if not answer:
            raise BrokenPipeError("the process that forks workers has ended")
        return int(answer)

    def _channel(self) -> socket.socket:
        if self._socket is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                place = str(theirs.fileno())
                own = "-P" if self._python == sys.executable else "-I"  # as `served` starts a process
                self._process = subprocess.Popen(
                    [self._python, own, "-m", __name__, "--threads", str(self._threads), "--socket", place],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=worker_environment(self._threads) | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for this process
                )
        return self._socket


def can_fork() -> bool:
    """Whether workers may be forked here."""
    return sys.platform.startswith("linux")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the server: `python -m zipfmax_bench.fork_server --threads 1 --socket 5`."""
    from zipfmax_bench import worker

    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", required=True)
    parser.add_argument("--socket", type=int, required=True)
    options = parser.parse_args(arguments)
    worker.live_and_die_with_the_starter()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise RuntimeError("an import initialised the GPU's driver, so no fork could use it")
    channel = socket.socket(fileno=options.socket)
    gc.collect()
    gc.freeze()  # what is shared with the forks is not touched by their collections
    while True:
        message, descriptors = _received(channel)
        if not message:
            return
        request = json.loads(message)
        if "status" in request:
            _, status = os.waitpid(request["status"], 0)
            channel.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if pid == 0:
            channel.close()
            _become(request["fork"], options.threads, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        with suppress(OSError):
            os.setpgid(pid, pid)  # as the worker does: whoever is first
        channel.send(str(pid).encode())


def _received(channel: socket.socket) -> tuple[bytes, list[int]]:
    message, ancillary, _, _ = channel.recvmsg(
        _MESSAGE_BYTES, socket.CMSG_SPACE(3 * array.array("i").itemsize)
    )
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    return message, list(descriptors)


def _become(name: str, threads: str, descriptors: list[int]) -> None:
    """Be a worker until the process that asks is gone. Does not return."""
    from zipfmax_bench import worker

    status = 1
    try:
        with suppress(OSError):
            os.setpgid(0, 0)  # ended together with what it forks
        for place, descriptor in enumerate(descriptors):
            os.dup2(descriptor, place)
            os.close(descriptor)
        moved = _move_memory()
        worker.main(["--name", name, "--threads", threads])
        del moved
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _move_memory() -> object:
    """Memory that nobody uses, of random sizes, so that what follows lies elsewhere; to be kept."""
    draw = random.SystemRandom().randrange
    mapped = mmap.mmap(-1, draw(1, _SHIFT_PAGES) * mmap.PAGESIZE)
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    blocks = [library.malloc(draw(1, 1 << draw(10, _LARGEST_BLOCK_BITS))) for _ in range(_BLOCKS)]
    for block in blocks[::2]:
        library.free(block)
    return mapped, blocks[1::2]


if __name__ == "__main__":
    main()
