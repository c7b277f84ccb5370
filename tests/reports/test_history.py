"""Several runs of one machine make a history: its steps are found, marked and listed, and noise is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from zipfmax_reports import history
from zipfmax_reports.comparison import compare, run_names
from zipfmax_reports.runs import Run, read_run
from zipfmax_reports.static import draw

WriteRun = Callable[..., Path]


@pytest.fixture
def runs(write_run: WriteRun, tmp_path: Path) -> list[Run]:
    """Four runs, the third and the fourth 1.3 times as fast; the newest is named first."""
    found = []
    for number, pace in enumerate((1.0, 1.0, 1.3, 1.3)):
        path = write_run(tmp_path / f"run{number}", seed=number, pace=pace, dtypes=("float32",))
        meta = json.loads((path / "run.json").read_text())
        meta |= {"created": f"2026-01-0{number + 1}T00:00:00+00:00", "commit": f"{number}" * 40}
        (path / "run.json").write_text(json.dumps(meta))
        found.append(read_run(path))
    return [found[3], *found[:3]]


def pictures(runs: list[Run]) -> dict[str, Any]:
    return {one.name: one for one in compare(runs).figures if one.name.startswith("history")}


def test_a_step_is_found_in_every_cell_and_at_its_commit(runs: list[Run]) -> None:
    shown = pictures(runs)["history-full"]
    rows = [dict(zip(shown.table.columns, row, strict=True)) for row in shown.table.rows]
    stepped = [row for row in rows if (row["from"], row["to"]) == ("1" * 8, "2" * 8)]
    assert len(stepped) == 30
    assert all(1.1 < float(row["change"].removesuffix("×")) < 1.6 for row in stepped)
    assert len(rows) == len(stepped)
    assert "30 steps." in shown.caption


def test_the_picture_has_a_line_for_each_cell_and_a_star_for_each_step(runs: list[Run]) -> None:
    figure = pictures(runs)["history-full"].figure
    assert figure.rows["step"].sum() == 30
    panel = draw(figure).axes[0]
    assert [label.get_text() for label in panel.get_xticklabels()] == [str(n) * 8 for n in range(4)]
    lines = [line for line in panel.get_lines() if len(line.get_xdata()) == 4]
    assert len(lines) == 15
    assert figure.rows.groupby("case")["relative"].first().eq(1).all()


def test_two_runs_or_two_machines_make_no_history(runs: list[Run]) -> None:
    assert pictures(runs[:2]) == {}
    runs[0].meta["machine"]["cpu"] = "another"
    assert pictures(runs) == {}


def test_without_commits_that_differ_runs_keep_their_names(runs: list[Run]) -> None:
    runs[0].meta["commit"] = runs[1].meta["commit"]
    names = [name for name, _ in history.in_order(runs, run_names(runs))]
    assert names == ["run0", "run1", "run2", "run3"]


@pytest.mark.parametrize(
    ("now", "low", "high", "found"),
    [
        (1.2, 1.15, 1.25, 1),
        (1.2, 1.0, 1.4, 0),
        (1.04, 1.03, 1.05, 0),
        (0.8, 0.7, 0.9, 1),
        (1.2, None, None, 0),
    ],
)
def test_a_step_is_above_five_per_cent_in_intervals_that_do_not_meet(
    now: float, low: float | None, high: float | None, found: int
) -> None:
    rows = pd.DataFrame(
        {"case": "a", "run": ["b", "c"], "speedup": [1.0, now], "low": [0.98, low], "high": [1.02, high]}
    ).astype({"low": float, "high": float})
    assert len(history.steps(rows, ["b", "c"])) == found
