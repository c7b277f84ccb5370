"""What a command leaves behind: outputs that are refused before the work, and one writer a run directory."""

import os
import subprocess
import sys

import pytest

from zipfmax.errors import UsageError
from zipfmax_reference.records import RunDirectory
from zipfmax_reference.records.files import check_writable, write_text
from zipfmax_reference.records.meta import Invocation


def test_checking_leaves_files_as_they_were(tmp_path):
    old, new = tmp_path / "old.txt", tmp_path / "folder" / "new.txt"
    write_text(old, "content")
    check_writable(old, None, new)
    assert old.read_text() == "content"
    assert not new.exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    write_text(tmp_path / "file", "")
    for place in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=f"cannot write {place}: "):
            check_writable(place)
        with pytest.raises(UsageError, match=f"cannot write {place}: "):
            write_text(place, "")


OTHER = """
import sys
from zipfmax.errors import UsageError
from zipfmax_reference.records import RunDirectory
from zipfmax_reference.records.meta import Invocation
try:
    RunDirectory.start(sys.argv[1], Invocation(), resume=True, shared=len(sys.argv) > 2)
except UsageError as error:
    print(error)
"""


def by_another_process(path, *words):
    done = subprocess.run(
        [sys.executable, "-c", OTHER, path, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_run_that_is_being_written_is_not_gone_on_with_by_another_process(tmp_path):
    path = tmp_path / "run"
    running = RunDirectory.start(path, Invocation())
    again = RunDirectory.start(path, Invocation(), resume=True)  # the same process may
    del running
    assert by_another_process(path) == f"{path} is being written by another process: let it end"
    assert len(RunDirectory(path).meta.resumed) == 1
    assert by_another_process(path, "shared") == ""
    del again
    assert by_another_process(path) == ""
    assert len(RunDirectory(path).meta.resumed) == 3
    assert os.listdir(path) == ["run.json"]


def test_going_on_without_a_folder_is_refused():
    assert RunDirectory.optional(None, Invocation(), resume=False) is None
    with pytest.raises(UsageError, match="--resume needs --out"):
        RunDirectory.optional(None, Invocation(), resume=True)
