from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zipfmax_reports.comparison import compare
from zipfmax_reports.elements import Table
from zipfmax_reports.runs import read_run

Edit = Callable[[Path, Callable[[dict[str, Any]], dict[str, Any]]], None]
WriteRun = Callable[..., Path]


def changes(section: Any) -> dict[str, dict[str, str]]:
    """By implementation, the row of the table of changes."""
    table: Table = section.tables[1]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return {row["implementation"]: row for row in rows}


def number(text: str) -> float:
    return float(text.removesuffix("×"))


def test_a_faster_second_run_shows_by_how_much(write_run: WriteRun, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "before"), write_run(tmp_path / "after", seed=1, pace=1.3)]
    section = compare([read_run(path) for path in runs])
    assert "same kind of machine" in section.lead
    changed = changes(section)
    for column in (
        "times as fast",
        "its speedup over full softmax, times",
        "its speedup over torch.nn, times",
    ):
        assert number(changed["zipfmax"][column]) == pytest.approx(1.3, rel=0.05)
    assert number(changed["torch"]["times as fast"]) == pytest.approx(1.0, rel=0.05)
    assert changed["zipfmax"]["run"] == "after"
    assert changed["zipfmax"]["common cells"] == "60"


def test_seconds_of_different_machines_are_not_compared(write_run: WriteRun, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "here"), write_run(tmp_path / "there", seed=1)]
    meta = json.loads((runs[1] / "run.json").read_text())
    meta["machine"]["cpu"] = "Another processor"
    (runs[1] / "run.json").write_text(json.dumps(meta))
    section = compare([read_run(path) for path in runs])
    assert "different machines" in section.lead
    assert "times as fast" not in section.tables[1].columns
    assert "its speedup over full softmax, times" in section.tables[1].columns
    assert section.tables[0].rows[1][-1] == "Another processor"


def test_cells_that_only_one_run_has_are_counted(
    write_run: WriteRun, tmp_path: Path, edit_lines: Edit
) -> None:
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two")]

    def lose(record: dict[str, Any]) -> dict[str, Any]:
        lost = record["impl"] == "zipfmax" and record["labels"] == "uniform"
        return record | ({"status": "failed", "reason": "lost"} if lost else {})

    edit_lines(runs[1] / "timings.jsonl", lose)
    changed = changes(compare([read_run(path) for path in runs]))
    assert changed["zipfmax"]["common cells"] == "48"
    assert (changed["zipfmax"]["cells lost"], changed["zipfmax"]["cells gained"]) == ("12", "0")
    assert (changed["torch"]["cells lost"], changed["torch"]["cells gained"]) == ("0", "0")


def test_runs_of_one_name_are_told_apart_by_their_folders(write_run: WriteRun, tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name / "run")) for name in ("first", "second")]
    assert [row[0] for row in compare(runs).tables[0].rows] == ["first/run", "second/run"]
