"""The section on trust, and the plans: tables of the files that only some runs have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zipfmax_reports import tables
from zipfmax_reports.elements import Details
from zipfmax_reports.plans import plan_pictures
from zipfmax_reports.runs import read_run
from zipfmax_reports.style import seconds
from zipfmax_reports.summary import statements
from zipfmax_reports.trust import trust

Edit = Callable[[Path, Callable[[dict[str, Any]], dict[str, Any]]], None]


def details(directory: Path, start: str) -> Details:
    return next(item for item in trust(read_run(directory)).details if item.summary.startswith(start))


def test_planted_faults_are_counted_and_what_gave_each_away_is_named(run_directory: Path) -> None:
    found = details(run_directory, "Planted faults")
    assert found.summary == "Planted faults: 2 of 2 caught; the layer without one passed"
    assert not found.opened
    assert [row[:3] for row in found.table.rows] == [
        ("cluster slots reversed", "✓ caught", "output"),
        ("the head's bias dropped", "✓ caught", "output"),
    ]
    run = read_run(run_directory)
    assert "2 of 2 planted faults were caught." in statements(run, tables.cells(run))[0].detail


def test_a_fault_that_survives_is_shown_first_and_open(run_directory: Path, edit_lines: Edit) -> None:
    def survive(record: dict[str, Any]) -> dict[str, Any]:
        return record | ({"caught": False} if record["mutant"] == "bias_dropped" else {})

    edit_lines(run_directory / "mutants.jsonl", survive)
    found = details(run_directory, "Planted faults")
    assert found.summary.startswith("Planted faults: 1 of 2 caught")
    assert found.opened
    assert found.table.rows[0][:2] == ("the head's bias dropped", "✗ survived")


def test_a_control_that_was_found_wrong_is_said(run_directory: Path, edit_lines: Edit) -> None:
    def alarm(record: dict[str, Any]) -> dict[str, Any]:
        return record | ({"caught": True} if record["mutant"] == "control" else {})

    edit_lines(run_directory / "mutants.jsonl", alarm)
    assert "the layer without one was found wrong too" in details(run_directory, "Planted faults").summary


def test_conformance_stands_as_feature_by_implementation(run_directory: Path) -> None:
    lines = [
        {"feature": "tails are parameters", "impl": "torch", "verdict": "agrees", "detail": None},
        {"feature": "tails are parameters", "impl": "paddle", "verdict": "differs", "detail": "1 of 5"},
        {"feature": "indices are exact", "impl": "torch", "verdict": "agrees", "detail": None},
    ]
    (run_directory / "conformance.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = details(run_directory, "Conformance").table
    assert table.columns == ("feature", "torch", "paddle")
    assert table.rows == [
        ("tails are parameters", "agrees", "differs: 1 of 5"),
        ("indices are exact", "agrees", ""),
    ]


def test_stability_names_the_tensors_that_differ_from_the_rest(run_directory: Path) -> None:
    def line(change: str, tensor: str, verdict: str) -> dict[str, Any]:
        return {"impl": "zipfmax", "change": change, "tensor": tensor, "verdict": verdict, "difference": 0.0}

    lines = [
        *(line("again", tensor, "bitwise equal") for tensor in ("output", "loss", "grad.input")),
        *(line("in two halves", tensor, "within budget") for tensor in ("loss", "grad.input")),
        line("in two halves", "output", "bitwise equal"),
    ]
    (run_directory / "stability.jsonl").write_text("".join(json.dumps(item) + "\n" for item in lines))
    table = details(run_directory, "Stability").table
    assert table.columns == ("implementation", "again", "in two halves")
    assert table.rows == [("zipfmax", "bitwise equal", "within budget; bitwise equal: output")]


def test_relations_that_do_not_hold_are_counted_and_shown_first(run_directory: Path) -> None:
    def line(relation: str, status: str, error: float) -> dict[str, Any]:
        fields = {"case": "train-V5000000", "impl": "zipfmax", "relation": relation, "status": status}
        return fields | {"error": error, "budget": 2.0, "reason": None}

    lines = [line("sums to 1", "pass", 1.0), line("shift", "fail", 3.0), line("shift", "pass", 1.0)]
    path = run_directory / "metamorphic.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in lines[:2]))
    found = details(run_directory, "Relations")
    assert "1 hold, 1 do not" in found.summary
    assert found.opened
    assert found.table.rows[0][1:4] == ("shift", "fail", "150 %")
    path.write_text("".join(json.dumps(item) + "\n" for item in lines))
    assert "2 hold, 0 do not" in details(run_directory, "Relations").summary


def test_the_gate_s_self_test_says_what_was_required_and_whether_it_holds(run_directory: Path) -> None:
    score = {
        "kind": "no change",
        "runs": 200,
        "failed": 1,
        "undecided": 3,
        "required": "at most 1 %",
        "holds": True,
        "share": 0.005,
    }
    slower = score | {
        "kind": "10 % slower",
        "runs": 40,
        "failed": 30,
        "undecided": 0,
        "required": "at least 95 %",
        "holds": False,
    }
    lines = [score, slower | {"share": 0.75}]
    (run_directory / "selftest.jsonl").write_text("".join(json.dumps(item) + "\n" for item in lines))
    found = details(run_directory, "How often the regression gate")
    assert found.opened
    assert found.table.rows == [
        ("no change", "200", "1", "0.5 %", "at most 1 %", "✓ yes", "3"),
        ("10 % slower", "40", "30", "75 %", "at least 95 %", "✗ no", "0"),
    ]


def test_failed_comparisons_are_listed_open_with_their_numbers(run_directory: Path, edit_lines: Edit) -> None:
    def fail(record: dict[str, Any]) -> dict[str, Any]:
        if record["impl"] == "paddle" and record["tensor"] == "loss" and record["against"] == "torch":
            return record | {"status": "fail", "error": 2.5e-3, "budget": 1e-3, "reason": None}
        return record

    edit_lines(run_directory / "parity.jsonl", fail)
    found = details(run_directory, "12 comparisons that failed")
    assert found.opened
    row = dict(zip(found.table.columns, found.table.rows[0], strict=True))
    assert (row["tensor"], row["error"], row["budget"], row["error / budget"]) == (
        "loss", "2.50e-03", "1.00e-03", "250 %",
    )  # fmt: skip


def test_a_plan_s_prediction_stands_beside_what_was_measured(run_directory: Path) -> None:
    run = read_run(run_directory)
    table = tables.cells(run)
    curve, predicted = plan_pictures(run.extras["plans"], table)
    assert "--labels" in str(curve.command)
    assert len(curve.table.rows) == len(run.extras["plans"])
    cells = f"{len(run.extras['plans'])} cells"
    assert predicted.caption == f"{cells}, off by 10.0 % in the median and 10.0 % at the 90th percentile."
    row = dict(zip(predicted.table.columns, predicted.table.rows[0], strict=True))
    measured = table[(table["impl"] == "zipfmax") & (table["dtype"] == "float32")].iloc[0]["median_s"]
    assert row["measured"] == seconds(measured)
    assert row["predicted / measured"] == "1.10×"


@pytest.mark.parametrize("name", ["mutants", "plans"])
def test_a_run_without_the_file_has_no_word_of_it(run_directory: Path, name: str) -> None:
    (run_directory / f"{name}.jsonl").unlink()
    run = read_run(run_directory)
    assert name not in run.extras
    assert not [item for item in trust(run).details if name == "mutants" and "Planted" in item.summary]


def test_the_protocol_stands_as_rule_by_implementation_and_broken_rules_open_it(
    run_directory: Path, edit_lines: Edit
) -> None:
    def in_use(record: dict[str, Any]) -> dict[str, Any]:
        if record["tensor"] == "loss":
            status = {"zipfmax": "pass", "torch": "skipped", "paddle": "fail"}.get(record["impl"], "pass")
            return record | {"tensor": "protocol.later-calls-are-right", "status": status}
        return record

    edit_lines(run_directory / "parity.jsonl", in_use)
    found = details(run_directory, "In use, call after call")
    assert found.opened
    assert found.summary == "In use, call after call: 1 of 3 rules kept"
    (row,) = (dict(zip(found.table.columns, row, strict=True)) for row in found.table.rows)
    assert row == {
        "rule": "later calls are right",
        "zipfmax": "✓ kept",
        "torch": "– not promised",
        "paddle": "✗ broken",
    }
    by_tensor = details(run_directory, "Error against budget")
    assert not any("protocol" in str(row) for row in by_tensor.table.rows)
