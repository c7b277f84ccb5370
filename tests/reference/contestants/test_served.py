"""A process answers one request after another, and leaves nothing behind."""

import os
import time
from pathlib import Path

import pytest

from zipfmax_reference.contestants.served import ServedProcess

PROGRAM = """
import os, sys
from zipfmax_reference.contestants.served import requests_and_answers, serve

def answer(request):
    if request == "ends":
        os._exit(3)
    if request == "forks and ends":
        if (child := os.fork()) == 0:
            import time
            time.sleep(600)
        print(child, file=sys.stderr, flush=True)
        os._exit(3)
    if request == "closes":
        os.closerange(3, 64)
    if request == "raises":
        raise ValueError("no such thing")
    print("what is printed is no answer")
    return object() if request == "object" else [request, sys.stdin.read()]

serve(*requests_and_answers(), answer, lambda error: f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def process(tmp_path):
    (tmp_path / "answers_requests.py").write_text(PROGRAM)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with (tmp_path / "log").open("wb") as log:
        started = ServedProcess("answers_requests", environment={**os.environ, "PYTHONPATH": path}, log=log)
    yield started
    started.close()


def test_requests_are_answered_in_turn_whatever_is_printed_read_or_raised(process):
    assert process.ask("one") == ["one", ""]
    assert process.ask("raises") == "ValueError: no such thing"
    assert process.ask("object").startswith("TypeError")
    assert process.ask(b"bytes" * 2) == "TypeError: Object of type bytes is not JSON serializable"
    assert process.ask("two", limit_s=30.0) == ["two", ""]
    assert process.close() is None


def test_a_process_that_ends_gives_its_status_and_takes_what_it_forked_with_it(process, tmp_path):
    with pytest.raises(EOFError):
        process.ask("forks and ends", limit_s=30.0)
    assert process.close(last_words_s=5.0) == 3
    forked = int((tmp_path / "log").read_text())
    deadline = time.monotonic() + 20
    while Path(f"/proc/{forked}").exists() and "(zombie)" not in Path(f"/proc/{forked}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_closes_its_pipe_is_not_waited_for(process):
    with pytest.raises((EOFError, BrokenPipeError)):
        process.ask("closes", limit_s=30.0)
    assert process.close(last_words_s=0.1) in (None, 1)  # writing to what it closed ends it, in time or not
