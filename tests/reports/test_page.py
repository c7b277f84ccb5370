"""What the page says of a run beside its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from zipfmax_reports.page import machine_line, throttling
from zipfmax_reports.runs import read_run


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([False, False], "not throttled"),
        ([None, None], "throttling unknown"),
        ([False, None], "throttling unknown in 1 cell"),
        ([True, False, None], "throttled in 1 cell, whose slowed samples are left out"),
        ([True, True], "throttled in 2 cells, whose slowed samples are left out"),
        # Records from before there was an unknown hold counts, and 0 where nobody could say too.
        ([0, 0], "throttling unknown"),
        ([0, 3], "throttled in 1 cell, whose slowed samples are left out"),
        ([float("nan"), False], "throttling unknown in 1 cell"),
    ],
)
def test_throttling_is_said_to_be_yes_no_or_unknown(states: list[Any], words: str) -> None:
    timings = pd.DataFrame({"status": "ok", "throttled": states})
    assert throttling(timings) == words


def test_only_timed_cells_count() -> None:
    timings = pd.DataFrame({"status": ["ok", "failed"], "throttled": [False, None]})
    assert throttling(timings) == "not throttled"
    assert throttling(timings.iloc[1:]) == ""
    assert throttling(pd.DataFrame()) == ""


def test_a_run_that_records_nothing_of_it_is_unknown(run_directory: Path) -> None:
    assert machine_line(read_run(run_directory)).endswith("throttling unknown")
