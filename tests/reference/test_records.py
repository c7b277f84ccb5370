import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from pydantic import ValidationError

from zipfmax.errors import UsageError
from zipfmax_reference.records import FORMAT, RECORDS, Metamorphic, Parity, RunDirectory, Timing, schema
from zipfmax_reference.runs.invocation import invocation

PUBLISHED = Path(__file__).parents[2] / "reports/published"
SHAPE = {"n_classes": 60, "in_features": 8, "batch_size": 16, "cutoffs": [10], "labels": "uniform"}


def parity(case: str = "a", **more) -> Parity:
    fields = {"impl": "torch", "against": "definition", "tensor": "loss", "status": "pass"}
    return Parity(case=case, **{**fields, **more})


def timing(impl: str, **more) -> Timing:
    return Timing(case="a", impl=impl, status="ok", task="train", **SHAPE, **more)


@pytest.fixture
def directory(tmp_path):
    return RunDirectory.start(tmp_path / "run", invocation({"preset": "quick"}))


def test_run_json_says_what_ran_where(directory):
    run = json.loads((directory.path / "run.json").read_text())
    assert run["format"] == FORMAT
    assert run["arguments"] == {"preset": "quick"}
    assert run["machine"]["cores"] >= 1
    assert run["versions"]["torch"]
    assert run.keys() >= {"created", "command", "commit"}


def test_records_come_back_as_they_were_written(directory):
    record = timing("torch", samples_s=[0.1, 0.2], n_rounds=2)
    directory.write(record)
    assert directory.read(Timing) == [record]
    assert directory.rows(Timing) == [record.model_dump()]
    assert directory.read(Parity) == []


def test_numbers_that_json_lacks_are_valid_json_and_come_back(directory):
    directory.write(parity(error=math.nan, budget=math.inf, reference_error=np.float32(2)))
    line = (directory.path / "parity.jsonl").read_text()
    json.loads(line, parse_constant=pytest.fail)
    (record,) = directory.read(Parity)
    assert math.isnan(record.error)
    assert (record.budget, record.reference_error) == (math.inf, 2.0)


@pytest.mark.parametrize(
    ("change", "words"), [({"status": "fine"}, "status"), ({"speed": 1}, "speed"), ({"error": "x"}, "error")]
)
def test_a_record_with_a_wrong_or_unknown_field_is_refused(change, words):
    with pytest.raises(ValidationError, match=words):
        parity(**change)


def test_a_half_written_last_line_is_left_out_and_named(directory):
    directory.write(parity())
    with (directory.path / "parity.jsonl").open("a") as stream:
        stream.write('{"case": "b')
    assert directory.read(Parity) == directory.read(Parity) == [parity()]
    assert directory.remarks == ["parity.jsonl: the last line (line 2) is half-written and was left out."]


def test_a_resumed_write_does_not_continue_a_half_written_line(directory):
    directory.write(parity())
    with (directory.path / "parity.jsonl").open("a") as stream:
        stream.write('{"case": "b')
    resumed = RunDirectory.start(directory.path, invocation({}), resume=True)
    resumed.write(parity("c"))
    assert resumed.read(Parity) == [parity(), parity("c")]


@pytest.mark.parametrize(
    ("line", "words"),
    [('{"case": ', "line 1 is not JSON"), ("[1]", "line 1: "), ('{"case": "b"}', "line 1: impl: .*more")],
)
def test_a_line_that_is_no_record_is_one_clear_error(directory, line, words):
    (directory.path / "parity.jsonl").write_text(f"{line}\n{parity().model_dump_json()}\n")
    with pytest.raises(UsageError, match=words) as caught:
        directory.read(Parity)
    assert "\n" not in str(caught.value)


def test_finished_names_what_resume_leaves_out_and_latest_keeps_the_last(directory):
    directory.write(timing("torch"), timing("full"), timing("torch", median_s=2.0))
    assert directory.finished(Timing) == {("a", "torch"), ("a", "full")}
    assert directory.latest(Timing) == [timing("torch", median_s=2.0), timing("full")]


def test_a_folder_that_holds_something_is_refused_without_resume(directory):
    with pytest.raises(UsageError, match="not empty"):
        RunDirectory.start(directory.path, invocation({}))


def test_going_on_with_what_is_not_there_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(UsageError, match=r"no run to go on with at .*absent: leave --resume out"):
        RunDirectory.start(tmp_path / "absent", invocation({}), resume=True)
    assert not list(tmp_path.iterdir())


def test_a_resumption_is_noted(directory):
    resumed = RunDirectory.start(directory.path, invocation({"preset": "other"}), resume=True)
    assert resumed.meta.arguments == {"preset": "quick"}
    assert [entry.arguments for entry in resumed.meta.resumed] == [{"preset": "other"}]


def test_a_run_of_a_newer_format_is_refused(directory):
    (directory.path / "run.json").write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(UsageError, match=f"reads formats 1 to {FORMAT}"):
        RunDirectory(directory.path)
    with pytest.raises(UsageError, match=f"reads formats 1 to {FORMAT}"):
        RunDirectory.start(directory.path, invocation({}), resume=True)


def test_a_run_of_the_former_format_is_read_but_not_gone_on_with(directory):
    meta = {"format": 1, "created": "then", "resumed": [{"command": "zipfmax verify --mutants --out run"}]}
    (directory.path / "run.json").write_text(json.dumps(meta))
    old = {**timing("full:cce").model_dump(exclude={"exact", "throttled_samples"}), "throttled": 3, "x": 1}
    (directory.path / "timings.jsonl").write_text(json.dumps(old) + "\n")
    (record,) = RunDirectory(directory.path).read(Timing)
    assert (record.throttled, record.throttled_samples, record.exact) == (True, 3, False)
    (resumed,) = RunDirectory(directory.path).meta.resumed
    assert resumed.command == "zipfmax mutants --out run"
    with pytest.raises(UsageError, match="can be read but not gone on with"):
        RunDirectory.start(directory.path, invocation({}), resume=True)


@pytest.mark.parametrize("name", ["cpu", "h100/run"])
def test_every_published_record_is_read(name):
    directory = RunDirectory(PUBLISHED / name)
    for file, kind in RECORDS.items():
        path = directory.path / f"{file}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        assert len(directory.read(kind)) == len(lines)


def test_the_schema_file_is_current():
    assert schema.FILE.read_text() == schema.text(), "run python -m zipfmax_reference.records.schema"


def test_the_schema_describes_what_is_written(directory):
    directory.write(
        timing("torch", samples_s=[0.1]),
        parity(error=math.nan, parts=[{"name": "labels of tail 0", "error": 1, "budget": 2}]),
        Metamorphic(case="a", impl="b", relation="c", status="skipped", reason="d"),
    )
    described = schema.schema()
    for name, at in described["files"].items():
        if not (file := directory.path / name).exists():
            continue
        lines = [file.read_text()] if name == "run.json" else file.read_text().splitlines()
        for line in lines:
            jsonschema.validate(json.loads(line), {"$ref": at, "$defs": described["$defs"]})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({}, {"$ref": "#/$defs/Parity", "$defs": described["$defs"]})


def test_a_folder_without_run_json_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no run\.json"):
        RunDirectory(tmp_path)


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        RunDirectory.start(tmp_path / "file" / "run", invocation({}))


def test_a_process_killed_at_once_after_a_write_loses_nothing(tmp_path):
    program = textwrap.dedent("""
        import os, signal, sys
        from zipfmax_reference.records import Invocation, Parity, RunDirectory
        directory = RunDirectory.start(sys.argv[1], Invocation())
        for number in range(5):
            directory.write(Parity(case=str(number), impl="a", against="b", tensor="c", status="pass"))
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], env=os.environ)
    assert done.returncode == -9
    assert [r.case for r in RunDirectory(tmp_path / "run").read(Parity)] == ["0", "1", "2", "3", "4"]
