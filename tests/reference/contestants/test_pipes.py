"""No process, and nothing that it forked, keeps a reader or a writer waiting."""

import os
import select
import subprocess
import sys

import pytest

from zipfmax_reference.contestants import served
from zipfmax_reference.contestants.pipes import Pipes

HELPER = "import os, time\nif os.fork() == 0: time.sleep(600)\n"


@pytest.fixture
def start():
    started = []

    def start(program, *descriptors):
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", program],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            pass_fds=descriptors,
        )
        started.append(process)
        return process, Pipes(process)

    yield start
    for process in started:
        served._end(process)


def test_what_is_written_is_read_however_long_it_is(start):
    _, pipes = start("import os\nwhile part := os.read(0, 1 << 14): os.write(1, part)")
    pipes.answer_within(30)
    for data in (b"one\n" + b"x" * 50_000, b"two\nthree"):
        pipes.write(data)
        pipes.write(b"-" * (1 << 15))
        assert pipes.readline(100) == data[:4]
        rest = bytearray(len(data) - 4)
        assert pipes.readinto(rest) == len(rest)
        assert rest == data[4:]
        assert pipes.readinto(bytearray(1 << 15)) == 1 << 15


@pytest.mark.parametrize(
    ("program", "use", "raised"),
    [
        (HELPER, lambda pipes: pipes.readline(10), EOFError),
        (HELPER, lambda pipes: pipes.write(bytes(1 << 20)), EOFError),
        ("import time; time.sleep(600)", lambda pipes: pipes.readinto(bytearray(4)), TimeoutError),
        ("import time; time.sleep(600)", lambda pipes: pipes.write(bytes(1 << 20)), TimeoutError),
        ("import os, time; os.close(0); time.sleep(600)", lambda pipes: pipes.write(bytes(1 << 20)), OSError),
    ],
)
def test_a_process_that_ends_or_says_nothing_is_waited_for_no_longer(start, program, use, raised):
    _, pipes = start(program)
    pipes.answer_within(30 if raised is EOFError else 0.3)
    with pytest.raises(raised):
        use(pipes)


def test_a_stream_that_ends_gives_what_there_was(start):
    _, pipes = start("print('half', end='')")
    assert pipes.readline(100) == b"half"
    assert pipes.readinto(bytearray(3)) == 0


def test_what_a_process_forked_ends_with_it(start):
    reading, writing = os.pipe()
    process, pipes = start(HELPER + "print()\ntime.sleep(600)", writing)
    os.close(writing)
    assert pipes.readline(1) == b"\n"
    served._end(process)
    assert select.select([reading], [], [], 10)[0] == [reading]  # the last one that could write is gone
    os.close(reading)
