"""Head and tails of a cell: what was timed, what is drawn of it, and what a wrong cell does not tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from zipfmax_reports import part_pictures, tables
from zipfmax_reports.part_figures import OTHER
from zipfmax_reports.parts import timed_parts
from zipfmax_reports.runs import read_run
from zipfmax_reports.static import draw
from zipfmax_reports.style import count, percent, seconds

Edit = Callable[[Path, Callable[[dict[str, Any]], dict[str, Any]]], None]
PARTS = ("head", "tail 1", "tail 2")


@pytest.fixture
def rows(run_directory: Path) -> pd.DataFrame:
    table = tables.cells(read_run(run_directory))
    found = tables.under(table[table["ok"]], tables.main_condition(table))
    return found[found["impl"] == "zipfmax"]


def edited(run_directory: Path, edit_lines: Edit, **changes: Any) -> pd.DataFrame:
    """The rows of zipfmax after a change of its records."""
    edit_lines(
        run_directory / "timings.jsonl",
        lambda record: record | (changes if record["impl"] == "zipfmax" else {}),
    )
    table = tables.cells(read_run(run_directory))
    return table[table["impl"] == "zipfmax"]


def test_a_part_has_its_time_its_share_and_its_own_limit(rows: pd.DataFrame) -> None:
    for _, cell in rows.iterrows():
        found = timed_parts(cell)
        assert [item.part.name for item in found] == list(PARTS)
        assert [item.seconds for item in found] == cell["parts_s"]
        assert sum(item.share for item in found) == pytest.approx(0.9)
        assert [item.limit_s for item in found] == cell["limit_parts_s"]
        assert [item.part.rows for item in found[1:]] == pytest.approx(cell["parts_rows"][1:])
        assert found[0].part.rows == cell["batch_size"]
        assert found[0].efficiency == pytest.approx(cell["limit_parts_s"][0] / cell["parts_s"][0])


@pytest.mark.parametrize("field", ["parts_s", "parts_rows", "parts_whole_s"])
def test_a_cell_that_was_not_split_has_no_timed_parts_and_no_picture(
    run_directory: Path, edit_lines: Edit, field: str
) -> None:
    found = edited(run_directory, edit_lines, **{field: None})
    assert all(timed_parts(cell) == [] for _, cell in found.iterrows())
    assert part_pictures.time_split(found, "zipfmax", "") == []
    assert [picture.name for picture in part_pictures.rooflines(found, "zipfmax", "")] == ["roofline"]


def test_parts_of_a_wrong_cell_are_not_shown(run_directory: Path, edit_lines: Edit) -> None:
    found = edited(run_directory, edit_lines, status="parity_failed")
    assert all(timed_parts(cell) == [] for _, cell in found.iterrows())


def test_a_tail_that_came_out_as_no_time_has_no_efficiency(run_directory: Path, edit_lines: Edit) -> None:
    found = edited(run_directory, edit_lines, parts_s=[2e-3, -1e-5, 1e-4], parts_whole_s=2e-3)
    picture = part_pictures.time_split(found[found["dtype"] == "float32"], "zipfmax", "")[0]
    lines = [dict(zip(picture.table.columns, row, strict=True)) for row in picture.table.rows]
    tail, rest = next(line for line in lines if line["part"] == "tail 1"), lines[3]
    assert (tail["time"], tail["of the step"], tail["limit / measured"]) == ("-10 µs", "-0.5 %", "–")
    assert (rest["part"], rest["time"], rest["of the step"]) == (OTHER, "-90 µs", "-4.5 %")


def test_the_table_of_the_split_holds_each_part_and_the_rest(rows: pd.DataFrame) -> None:
    table = part_pictures.time_split(rows, "zipfmax", "")[0].table
    assert len(table.rows) == 4 * len(rows)
    lines = {(line[0], line[1], line[2], line[3]): line[4:] for line in table.rows}
    for _, cell in rows.iterrows():
        key = (cell["task"], count(cell["n_classes"]), cell["labels_name"])
        expected = dict(zip(PARTS, cell["parts_s"], strict=True))
        expected[OTHER] = cell["parts_whole_s"] - sum(cell["parts_s"])
        for part, time in expected.items():
            assert lines[(*key, part)][1:3] == (seconds(time), percent(time / cell["parts_whole_s"]))


def test_a_bar_is_as_long_as_its_part_of_the_step_and_bars_end_at_the_whole(rows: pd.DataFrame) -> None:
    picture = part_pictures.time_split(rows, "zipfmax", "")[0]
    axes = draw(picture.figure).axes[0]
    head, *_, last = axes.containers
    assert [bar.get_width() for bar in head] == pytest.approx([50.0] * 5)
    assert [bar.get_x() + bar.get_width() for bar in last] == pytest.approx([100.0] * 5)
    assert axes.get_title(loc="left") == "Training step, 10,000 classes"


def test_parts_that_share_work_are_drawn_in_proportion_to_their_sum(
    run_directory: Path, edit_lines: Edit
) -> None:
    found = edited(run_directory, edit_lines, parts_s=[2e-3, 1e-3, 1e-3], parts_whole_s=2e-3)
    picture = part_pictures.time_split(found[found["dtype"] == "float32"], "zipfmax", "")[0]
    head, *_, last = draw(picture.figure).axes[0].containers
    assert [bar.get_width() for bar in head] == pytest.approx([50.0] * 5)
    assert [bar.get_width() for bar in last] == pytest.approx([0.0] * 5)


def test_the_roofline_of_a_part_is_its_products_over_its_time(rows: pd.DataFrame) -> None:
    picture = part_pictures.rooflines(rows, "zipfmax", "")[1]
    train = rows[rows["task"] == "train"]
    axes = draw(picture.figure).axes[0]
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    for place, name in enumerate(PARTS):
        expected = [
            (item.part.intensity, item.part.flops / item.seconds / 1e9)
            for item in (timed_parts(cell)[place] for _, cell in train.iterrows())
        ]
        assert lines[name] == pytest.approx(np.array(expected))
    limits = [
        (item.part.intensity, item.part.flops / item.limit_s / 1e9)
        for _, cell in train.iterrows()
        for item in timed_parts(cell)
    ]
    drawn = sorted(map(tuple, lines["the limit, measured"].tolist()))
    assert np.array(drawn) == pytest.approx(np.array(sorted(limits)))
