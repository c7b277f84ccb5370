from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from zipfmax_reports import tables
from zipfmax_reports.reproduction import sweep_command
from zipfmax_reports.runs import read_run
from zipfmax_reports.summary import condition_text

Edit = Callable[[Path, Callable[[dict[str, Any]], dict[str, Any]]], None]


def test_the_speedup_shown_is_the_measured_one_with_its_interval(run_directory: Path) -> None:
    run = read_run(run_directory)
    rows = tables.ratios(tables.cells(run), "full").set_index(["case", "impl"])
    source = run.timings.set_index(["case", "impl"])
    for key in [key for key in rows.index if key[1] == "zipfmax"]:
        assert rows.loc[key, "speedup"] == source.loc[key, "speedup_vs_full"]
        assert rows.loc[key, "low"] == source.loc[key, "speedup_vs_full_low"]
        assert rows.loc[key, "high"] == source.loc[key, "speedup_vs_full_high"]


def test_a_baseline_without_a_measured_ratio_is_compared_by_medians_and_has_no_interval(
    run_directory: Path,
) -> None:
    table = tables.cells(read_run(run_directory))
    rows = tables.ratios(table, "paddle")
    row = rows[rows["impl"] == "zipfmax"].iloc[0]
    paddle = table[(table["case"] == row["case"]) & (table["impl"] == "paddle")].iloc[0]
    assert row["speedup"] == pytest.approx(paddle["median_s"] / row["median_s"])
    assert math.isnan(row["low"])


def test_no_number_of_a_cell_whose_parity_failed_survives(run_directory: Path, edit_lines: Edit) -> None:
    def fail(record: dict[str, Any]) -> dict[str, Any]:
        return record | ({"status": "parity_failed"} if record["labels"] == "zipf:1.0" else {})

    edit_lines(run_directory / "timings.jsonl", fail)
    table = tables.cells(read_run(run_directory))
    wrong = table[table["labels"] == "zipf:1.0"]
    assert not wrong["ok"].any()
    for column in ("median_s", "samples_s", "speedup_vs_full", "speedup_vs_full_low", "efficiency"):
        assert wrong[column].isna().all()
    assert "zipf:1.0" not in set(tables.all_ratios(table)["labels"])


def test_a_failed_comparison_in_parity_jsonl_withholds_the_speed_of_that_cell_alone(
    run_directory: Path, edit_lines: Edit
) -> None:
    timings = read_run(run_directory).timings
    case = timings.loc[timings["impl"] == "zipfmax", "case"].iloc[0]
    first = True

    def fail(record: dict[str, Any]) -> dict[str, Any]:
        nonlocal first
        changed = {"case": case, "impl": "zipfmax", "status": "fail"} if first else {}
        first = False
        return record | changed

    edit_lines(run_directory / "parity.jsonl", fail)
    table = tables.cells(read_run(run_directory)).set_index(["case", "impl"])
    assert table.loc[(case, "zipfmax"), "status"] == "parity_failed"
    assert not table.loc[(case, "zipfmax"), "ok"]
    assert table.loc[(case, "torch"), "ok"]


def test_a_cell_whose_baseline_has_no_time_has_no_ratio(run_directory: Path) -> None:
    table = tables.cells(read_run(run_directory))
    lacking = table[(table["impl"] == "full") & ~table["ok"]]
    assert len(lacking) == 1
    assert lacking["case"].iloc[0] not in set(tables.ratios(table, "full")["case"])


def test_the_best_full_softmax_is_the_fastest_of_its_kind(run_directory: Path, edit_lines: Edit) -> None:
    def rename(record: dict[str, Any]) -> dict[str, Any]:
        if record["impl"] == "torch" and record["status"] == "ok":
            return record | {"impl": "full:chunked", "median_s": 1e-5}
        return record

    edit_lines(run_directory / "timings.jsonl", rename)
    table = tables.cells(read_run(run_directory))
    assert tables.baselines(table) == ["full", tables.BEST_FULL, "paddle"]
    rows = tables.ratios(table, tables.BEST_FULL)
    assert set(rows["impl"]) == {"zipfmax", "paddle"}
    assert rows["speedup"].to_list() == pytest.approx((1e-5 / rows["median_s"]).to_list())


@pytest.mark.parametrize(
    ("name", "stated"),
    [("full:cce", {}), ("full:cce", {"exact": False}), ("sampled", {}), ("full:mine", {"exact": False})],
)
def test_an_inexact_full_softmax_is_never_the_best_and_has_no_speedup(
    run_directory: Path, edit_lines: Edit, name: str, stated: dict[str, Any]
) -> None:
    def rename(record: dict[str, Any]) -> dict[str, Any]:
        inexact = record["impl"] == "torch" and record["status"] == "ok"
        return record | ({"impl": name, "median_s": 1e-9, **stated} if inexact else {})

    edit_lines(run_directory / "timings.jsonl", rename)
    table = tables.cells(read_run(run_directory))
    assert set(table.loc[~table["exact"], "impl"]) == {name}
    assert table.loc[~table["exact"], "median_s"].notna().all()
    assert table.loc[~table["exact"], "speedup_vs_full"].isna().all()
    assert table.loc[table["exact"], "speedup_vs_full"].notna().any()
    assert tables.BEST_FULL not in tables.baselines(table)
    for baseline in ("full", tables.BEST_FULL):
        rows = tables.ratios(table, baseline)
        assert name not in set(rows["impl"])
        assert (rows["baseline_s"] > 1e-8).all()
    assert tables.subject(table) == "zipfmax"


def test_an_exact_cut_cross_entropy_may_be_the_best(run_directory: Path, edit_lines: Edit) -> None:
    def rename(record: dict[str, Any]) -> dict[str, Any]:
        exact = record["impl"] == "torch" and record["status"] == "ok"
        return record | ({"impl": "full:cce-exact", "median_s": 1e-9, "exact": True} if exact else {})

    edit_lines(run_directory / "timings.jsonl", rename)
    rows = tables.ratios(tables.cells(read_run(run_directory)), tables.BEST_FULL)
    assert (rows["baseline_s"] == 1e-9).any()


def test_cells_with_another_spread_of_logits_are_another_condition(
    run_directory: Path, edit_lines: Edit
) -> None:
    def spread(record: dict[str, Any]) -> dict[str, Any]:
        return record | ({"logit_std": 4.0} if record["labels"] == "uniform" else {"logit_std": None})

    edit_lines(run_directory / "timings.jsonl", spread)
    table = tables.cells(read_run(run_directory))
    main = tables.main_condition(table)
    assert main["logits"] == "about 2"
    assert set(tables.under(table, main)["labels"]) == set(table["labels"]) - {"uniform"}
    assert "standard deviation 4" in condition_text(main.replace("about 2", "4"))
    assert "standard deviation" not in condition_text(main)
    rows = table[table["labels"] == "uniform"]
    assert "--logit-std 4" in sweep_command(rows, ["zipfmax"])
    assert "--logit-std" not in sweep_command(tables.under(table, main), ["zipfmax"])


@pytest.mark.parametrize(
    ("labels", "skew", "name"),
    [
        ("zipf:1.3", 1.3, "Zipf 1.3"),
        ("uniform", 0.0, "uniform"),
        ("wordfreq:en", math.nan, "words, en"),
        ("counts:some/where/tokens.npy", math.nan, "counts, tokens.npy"),
    ],
)
def test_labels_read_as_a_skew_and_a_name(labels: str, skew: float, name: str) -> None:
    assert tables.skew(labels) == pytest.approx(skew, nan_ok=True)
    assert tables.labels_name(labels) == name


def test_labels_are_ordered_by_skew_with_real_frequencies_last() -> None:
    labels = pd.Series(["wordfreq:en", "zipf:1.3", "uniform", "zipf:0.8"])
    table = pd.DataFrame({"labels_name": labels.map(tables.labels_name), "skew": labels.map(tables.skew)})
    assert tables.label_order(table) == ["uniform", "Zipf 0.8", "Zipf 1.3", "words, en"]


def test_the_main_condition_is_the_one_with_most_cells(run_directory: Path, edit_lines: Edit) -> None:
    def skip(record: dict[str, Any]) -> dict[str, Any]:
        odd = record["dtype"] == "float32" and record["labels"] == "uniform"
        return record | ({"status": "skipped", "reason": "odd"} if odd else {})

    edit_lines(run_directory / "timings.jsonl", skip)
    assert tables.main_condition(tables.cells(read_run(run_directory)))["dtype"] == "bfloat16"


def test_several_cutoffs_of_one_vocabulary_are_different_conditions(
    run_directory: Path, edit_lines: Edit
) -> None:
    def other(record: dict[str, Any]) -> dict[str, Any]:
        return record | ({"cutoffs": [5000]} if record["labels"] == "uniform" else {})

    edit_lines(run_directory / "timings.jsonl", other)
    table = tables.cells(read_run(run_directory))
    assert set(table.loc[table["labels"] == "uniform", "partition"]) == {"5k"}
    assert set(table.loc[table["labels"] != "uniform", "partition"]) == {"1k/4k, 2k/10k, 20k/60k"}


def test_parity_counts_and_the_worst_tensor_come_from_the_lines(
    run_directory: Path, edit_lines: Edit
) -> None:
    first = True

    def fail(record: dict[str, Any]) -> dict[str, Any]:
        nonlocal first
        mine = record["impl"] == "zipfmax" and record["tensor"] == "grad.input"
        changed = {"status": "fail", "error": 7 * record["budget"]} if first and mine else {}
        first = first and not mine
        return record | changed

    edit_lines(run_directory / "parity.jsonl", fail)
    summary = tables.parity_by_implementation(read_run(run_directory).parity)
    row = summary[(summary["impl"] == "zipfmax") & (summary["fail"] == 1)].iloc[0]
    assert row["worst"] == pytest.approx(7)
    assert row["worst_tensor"] == "grad.input"
    assert row["pass"] == 35
    assert summary["fail"].sum() == 1


def test_binning_keeps_every_comparison_and_the_largest_error(run_directory: Path) -> None:
    rows = tables.with_used_budget(read_run(run_directory).parity)
    binned = tables.binned(rows, per_decade=2)
    assert binned["comparisons"].sum() == len(rows)
    assert binned["used"].max() == rows["used"].max()
    assert len(binned) < len(rows)


def test_over_the_best_full_softmax_the_measured_ratio_stands_where_plain_full_is_the_best(
    run_directory: Path,
) -> None:
    path = run_directory / "timings.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    full = [line for line in lines if line["impl"] == "full" and line["status"] == "ok"]
    paces = [0.5 if place % 2 else 2.0 for place in range(len(full))]
    chunked = [
        line | {"impl": "full:chunked", "median_s": pace * line["median_s"]}
        for line, pace in zip(full, paces, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *chunked]))
    table = tables.cells(read_run(run_directory))
    own = {name: tables.ratios(table, name) for name in ("full", tables.BEST_FULL)}
    own = {name: rows[rows["impl"] == "zipfmax"].set_index("case") for name, rows in own.items()}
    for line, pace in zip(full, paces, strict=True):
        plain, best = (own[name].loc[line["case"]] for name in ("full", tables.BEST_FULL))
        if pace > 1:
            assert (best["speedup"], best["low"]) == (plain["speedup"], plain["low"])
        else:
            assert best["speedup"] == pytest.approx(0.5 * line["median_s"] / best["median_s"])
            assert math.isnan(best["low"])
