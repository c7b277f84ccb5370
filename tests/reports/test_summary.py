from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zipfmax_reports import tables
from zipfmax_reports.runs import read_run
from zipfmax_reports.style import factor, percent
from zipfmax_reports.summary import HEADLINES, Statement, by_weight, statements

Edit = Callable[[Path, Callable[[dict[str, Any]], dict[str, Any]]], None]


def answers(directory: Path) -> dict[str, Statement]:
    run = read_run(directory)
    return {item.question: item for item in statements(run, tables.cells(run))}


def test_the_worst_error_against_its_budget_is_named(run_directory: Path, edit_lines: Edit) -> None:
    def near(record: dict[str, Any]) -> dict[str, Any]:
        if record["impl"] == "zipfmax" and record["tensor"] == "loss":
            return record | {"error": 0.99 * record["budget"]}
        return record

    edit_lines(run_directory / "parity.jsonl", near)
    right = answers(run_directory)["Is it right?"]
    assert (right.figure, right.mood) == ("Yes", "good")
    assert answers(run_directory)["Is it faster than full softmax?"].mood == "good"
    assert "The worst error is 99 % of its budget (loss, " in right.detail


@pytest.mark.parametrize("against", ["every reference", "one"])
def test_a_tensor_out_of_every_budget_turns_the_verdict_and_out_of_one_dims_it(
    run_directory: Path, edit_lines: Edit, against: str
) -> None:
    spoiled: set[tuple[str, str]] = set()

    def fail(record: dict[str, Any]) -> dict[str, Any]:
        tensor = (record["case"], record["tensor"])
        if record["impl"] == "zipfmax" and (tensor in spoiled or not spoiled):
            spoiled.add(tensor)
            if against == "every reference" or record["against"] == "torch":
                return record | {"status": "fail", "error": 3 * record["budget"]}
        return record

    edit_lines(run_directory / "parity.jsonl", fail)
    right = answers(run_directory)["Is it right?"]
    if against == "one":
        assert (right.figure, right.mood) == ("11 of 12", "mixed")
        assert "in 11 of 12 cells; in the other 1 with one of them and not with another." in right.text
    else:
        assert (right.figure, right.mood) == ("No", "bad")
        assert "in 1 of 12 cells" in right.text
    assert "300 % of its budget" in right.detail


def test_a_peers_failure_is_not_held_against_zipfmax(run_directory: Path, edit_lines: Edit) -> None:
    def fail(record: dict[str, Any]) -> dict[str, Any]:
        return record | {"status": "parity_failed"} if record["impl"] == "torch" else record

    edit_lines(run_directory / "timings.jsonl", fail)
    right = answers(run_directory)["Is it right?"]
    assert (right.figure, right.mood) == ("Yes", "good")


def test_a_loss_is_said_as_plainly_as_a_win(run_directory: Path, edit_lines: Edit) -> None:
    def slow(record: dict[str, Any]) -> dict[str, Any]:
        if record["impl"] == "zipfmax" and record["status"] == "ok":
            return record | {
                "speedup_vs_full": 0.5, "speedup_vs_full_low": 0.45, "speedup_vs_full_high": 0.55
            }  # fmt: skip
        return record

    edit_lines(run_directory / "timings.jsonl", slow)
    worth = answers(run_directory)["Is it faster than full softmax?"]
    assert (worth.figure, worth.mood) == ("0.50×", "bad")
    assert "so slower" in worth.text
    assert "faster in 0, slower in 15." in worth.detail


def test_an_interval_around_one_is_counted_as_not_told_apart(run_directory: Path, edit_lines: Edit) -> None:
    def level(record: dict[str, Any]) -> dict[str, Any]:
        if record["impl"] == "zipfmax" and record["labels"] == "uniform" and record["status"] == "ok":
            return record | {
                "speedup_vs_full": 1.01, "speedup_vs_full_low": 0.9, "speedup_vs_full_high": 1.2
            }  # fmt: skip
        return record

    edit_lines(run_directory / "timings.jsonl", level)
    detail = answers(run_directory)["Is it faster than full softmax?"].detail
    assert "faster in 12, slower in 0, not told apart in 3." in detail
    assert answers(run_directory)["Is it faster than full softmax?"].mood == "mixed"


def test_memory_is_the_median_share_of_the_same_cells(run_directory: Path) -> None:
    table = tables.cells(read_run(run_directory))
    rows = tables.under(table[table["ok"] & (table["task"] == "train")], tables.main_condition(table))
    by_name = rows.pivot_table(index="case", columns="impl", values="peak_bytes")
    memory = answers(run_directory)["How much memory?"]
    assert memory.figure == percent((by_name["zipfmax"] / by_name["torch"]).median())
    assert percent((by_name["zipfmax"] / by_name["full"]).median()) in memory.text


def test_the_headline_is_the_median_of_the_measured_ratios(run_directory: Path) -> None:
    table = tables.cells(read_run(run_directory))
    rows = tables.under(tables.ratios(table, "torch"), tables.main_condition(table))
    rows = rows[(rows["impl"] == "zipfmax") & (rows["task"] == "train")]
    worth = answers(run_directory)["Is it faster than torch.nn?"]
    assert worth.figure == factor(rows["speedup"].median())
    assert factor(rows["speedup"].min()) in worth.detail
    assert factor(rows["speedup"].max()) in worth.detail


def test_a_speedup_without_intervals_is_not_marked_as_sure(run_directory: Path, edit_lines: Edit) -> None:
    def unsure(record: dict[str, Any]) -> dict[str, Any]:
        if record["impl"] == "zipfmax" and record["labels"] == "uniform":
            return record | {"speedup_vs_full_low": None, "speedup_vs_full_high": None}
        return record

    edit_lines(run_directory / "timings.jsonl", unsure)
    worth = answers(run_directory)["Is it faster than full softmax?"]
    assert worth.mood == "mixed"
    assert "faster in 12, slower in 0; no interval in 3." in worth.detail


def test_the_third_answer_of_the_first_screen_is_quality_or_else_torchs(run_directory: Path) -> None:
    run = read_run(run_directory)
    found = statements(run, tables.cells(run))
    assert [one.question for one in by_weight(found)[:HEADLINES]] == [
        "Is it right?", "Is it faster than full softmax?", "Is it faster than torch.nn?",
    ]  # fmt: skip
    quality = replace(found[0], question="What does it cost in quality?", link="quality")
    ordered = by_weight([*found, quality])
    assert ordered[HEADLINES - 1] == quality
    assert sorted(one.question for one in ordered) == sorted(one.question for one in [*found, quality])
