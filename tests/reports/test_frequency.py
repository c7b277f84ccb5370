"""The page shows errors by frequency of the label, and where a failure is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from zipfmax_reports.frequency import groups
from zipfmax_reports.runs import read_run
from zipfmax_reports.trust import trust

Edit = Callable[[Path, Callable[[dict[str, Any]], dict[str, Any]]], None]

PARTS = (
    ("ranks 1,000 to 9,999", 0.2),
    ("absent classes", 0.9),
    ("tail 10", 0.1),
    ("tail 2", 0.3),
    ("shortlist", 0.4),
)


def with_parts(directory: Path, edit_lines: Edit, scale: float = 1.0) -> None:
    def add(record: dict[str, Any]) -> dict[str, Any]:
        used = scale if record["tensor"] == "grad.input" else 0.5
        parts = [{"name": n, "error": used * e, "budget": 1.0, "relative": e / 100} for n, e in PARTS]
        return record | {"parts": parts}

    edit_lines(directory / "parity.jsonl", add)


def test_the_worst_tensor_of_each_group_is_shown_in_order_of_frequency(
    run_directory: Path, edit_lines: Edit
) -> None:
    with_parts(run_directory, edit_lines)
    table = groups(read_run(run_directory).parity)
    found = table[(table["impl"] == "torch") & (table["dtype"] == "float32")]
    assert list(found["group"]) == [
        "shortlist",
        "tail 2",
        "tail 10",
        "absent classes",
        "ranks 1,000 to 9,999",
    ]
    assert list(found["used"]) == [0.4, 0.3, 0.1, 0.9, 0.2]
    assert set(found["tensor"]) == {"grad.input"}


def test_the_page_opens_the_table_where_a_group_is_over_its_budget(
    run_directory: Path, edit_lines: Edit
) -> None:
    for scale, opened in ((1.0, False), (2.0, True)):
        with_parts(run_directory, edit_lines, scale)
        found = [
            d for d in trust(read_run(run_directory)).details if d.summary.startswith("Error by frequency")
        ]
        assert [detail.opened for detail in found] == [opened]


def test_records_without_groups_add_no_table(run_directory: Path) -> None:
    details = trust(read_run(run_directory)).details
    assert not any(detail.summary.startswith("Error by frequency") for detail in details)


def test_a_failure_says_where_and_its_likely_cause(run_directory: Path, edit_lines: Edit) -> None:
    place = {"where": "class 4,321 (tail 1, absent from the batch)", "cause": "the head's bias is missing"}

    def fail(record: dict[str, Any]) -> dict[str, Any]:
        return record | {"status": "fail", **place} if record["impl"] == "paddle" else record

    edit_lines(run_directory / "parity.jsonl", fail)
    table = trust(read_run(run_directory)).details[0].table
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["where"] == place["where"]
    assert row["likely cause"] == place["cause"]
