import json
import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from zipfmax.errors import UsageError
from zipfmax_reference.runs.rundir import FORMAT, RunDirectory


@pytest.fixture
def directory(tmp_path):
    return RunDirectory.create(tmp_path / "run", {"preset": "quick"})


def test_run_json_says_what_ran_where(directory):
    run = json.loads((directory.path / "run.json").read_text())
    assert run["format"] == FORMAT
    assert run["arguments"] == {"preset": "quick"}
    assert run["machine"]["cores"] >= 1
    assert run["versions"]["torch"]
    assert run.keys() >= {"created", "command", "commit"}


def test_records_come_back_as_they_were_written(directory):
    record = {"case": "a", "samples_s": [0.1, 0.2], "n": 3, "reason": None}
    directory.append("timings", record)
    assert directory.records("timings") == [record]
    assert directory.records("parity") == []


def test_numbers_that_json_lacks_are_valid_json_and_come_back(directory):
    directory.append("parity", {"error": math.nan, "share": [math.inf, -math.inf], "n": np.float32(2)})
    line = (directory.path / "parity.jsonl").read_text()
    json.loads(line, parse_constant=pytest.fail)
    (record,) = directory.records("parity")
    assert math.isnan(record["error"])
    assert record["share"] == [math.inf, -math.inf]
    assert record["n"] == 2.0


def test_a_half_written_last_line_is_ignored_with_a_warning(directory):
    directory.append("parity", {"case": "a"})
    with (directory.path / "parity.jsonl").open("a") as stream:
        stream.write('{"case": "b')
    with pytest.warns(UserWarning, match="half-written"):
        assert directory.records("parity") == [{"case": "a"}]


def test_a_resumed_append_does_not_continue_a_half_written_line(directory):
    directory.append("parity", {"case": "a"})
    with (directory.path / "parity.jsonl").open("a") as stream:
        stream.write('{"case": "b')
    resumed = RunDirectory.create(directory.path, {}, resume=True)
    resumed.append("parity", {"case": "c"})
    assert resumed.records("parity") == [{"case": "a"}, {"case": "c"}]


def test_a_broken_line_in_the_middle_is_an_error(directory):
    (directory.path / "parity.jsonl").write_text('{"case": \n{"case": "b"}\n')
    with pytest.raises(UsageError, match="line 1 is not JSON"):
        directory.records("parity")


def test_done_names_what_resume_leaves_out(directory):
    directory.append_all("timings", [{"case": "a", "impl": "torch"}, {"case": "a", "impl": "full"}])
    assert directory.done("timings") == {("a", "torch"), ("a", "full")}


def test_a_folder_that_holds_something_is_refused_without_resume(directory):
    with pytest.raises(UsageError, match="not empty"):
        RunDirectory.create(directory.path, {})


def test_a_resumption_is_noted(directory):
    resumed = RunDirectory.create(directory.path, {"preset": "other"}, resume=True)
    assert resumed.run["arguments"] == {"preset": "quick"}
    assert [entry["arguments"] for entry in resumed.run["resumed"]] == [{"preset": "other"}]


def test_a_run_of_a_newer_format_is_refused(directory):
    (directory.path / "run.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(UsageError, match="newer"):
        RunDirectory(directory.path)
    with pytest.raises(UsageError, match="newer"):
        RunDirectory.create(directory.path, {}, resume=True)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no run\.json"):
        RunDirectory(tmp_path)


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        RunDirectory.create(tmp_path / "file" / "run", {})


def test_a_process_killed_at_once_after_append_loses_nothing(tmp_path):
    program = textwrap.dedent("""
        import os, signal, sys
        from zipfmax_reference.runs.rundir import RunDirectory
        directory = RunDirectory.create(sys.argv[1], {})
        for number in range(5):
            directory.append("parity", {"case": number})
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], env=os.environ)
    assert done.returncode == -9
    assert [r["case"] for r in RunDirectory(tmp_path / "run").records("parity")] == [0, 1, 2, 3, 4]
