from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from zipfmax.errors import UsageError
from zipfmax_reference.records import FORMAT
from zipfmax_reports.runs import read_run


def refusal(directory: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read_run(directory)
    message = str(caught.value)
    assert "\n" not in message
    return message


def set_format(directory: Path, value: object) -> None:
    meta = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({**meta, "format": value}))


def test_a_run_reads_back_every_line(run_directory: Path) -> None:
    run = read_run(run_directory)
    assert len(run.timings) == len((run_directory / "timings.jsonl").read_text().splitlines())
    assert len(run.parity) == len((run_directory / "parity.jsonl").read_text().splitlines())
    assert run.meta["versions"]["torch"] == "2.13.0"
    assert run.remarks == ()


def test_a_half_written_last_line_is_left_out_and_named(run_directory: Path) -> None:
    whole = len(read_run(run_directory).timings)
    with (run_directory / "timings.jsonl").open("ab") as file:
        file.write('{"case": "train-V10", "impl": "zipfmäx'.encode()[:-3])
    run = read_run(run_directory)
    assert len(run.timings) == whole
    (remark,) = run.remarks
    assert "timings.jsonl" in remark
    assert f"line {whole + 1}" in remark


def test_a_corrupt_line_in_the_middle_is_refused_by_its_number(run_directory: Path) -> None:
    path = run_directory / "parity.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:20]
    path.write_text("\n".join(lines) + "\n")
    message = refusal(run_directory)
    assert "parity.jsonl" in message
    assert "line 3" in message


def test_a_line_that_is_no_object_is_refused(run_directory: Path) -> None:
    path = run_directory / "timings.jsonl"
    path.write_text("[1, 2]\n" + path.read_text())
    assert "line 1" in refusal(run_directory)


def test_a_newer_format_is_refused_with_what_can_be_read(run_directory: Path) -> None:
    set_format(run_directory, FORMAT + 1)
    message = refusal(run_directory)
    assert f"format {FORMAT + 1}" in message
    assert f"to {FORMAT}:" in message


@pytest.mark.parametrize("value", ["1", None, 1.5])
def test_a_format_that_is_no_number_is_refused(run_directory: Path, value: object) -> None:
    set_format(run_directory, value)
    assert "integer" in refusal(run_directory)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    assert "no run directory" in refusal(tmp_path / "nowhere")


def test_a_directory_without_run_json_is_refused(tmp_path: Path) -> None:
    assert "run.json" in refusal(tmp_path)


def test_a_run_json_cut_short_is_refused(run_directory: Path) -> None:
    path = run_directory / "run.json"
    path.write_text(path.read_text()[:50])
    assert "not valid JSON" in refusal(run_directory)


@pytest.mark.parametrize("content", [None, ""])
def test_a_run_without_a_finished_cell_is_refused(run_directory: Path, content: str | None) -> None:
    for path in run_directory.glob("*.jsonl"):
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
    assert "no finished cell" in refusal(run_directory)


def test_a_line_without_a_needed_field_is_refused(run_directory: Path) -> None:
    path = run_directory / "timings.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[1]["impl"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "line 2: impl" in refusal(run_directory)


def test_numbers_that_json_lacks_come_back_as_floats(run_directory: Path) -> None:
    path = run_directory / "parity.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0] |= {"error": "NaN", "status": "fail"}
    lines[1] |= {"error": "Infinity", "status": "fail"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    errors = read_run(run_directory).parity["error"]
    assert math.isnan(errors[0])
    assert errors[1] == math.inf
