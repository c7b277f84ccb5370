"""The command lines that measure again what a table or a figure shows."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import pandas as pd

from zipfmax_reports.runs import Run

# Columns of a timing line, and the option of `zipfmax sweep` that sets each.
_OPTIONS = (
    ("n_classes", "--classes"),
    ("labels", "--labels"),
    ("task", "--task"),
    ("in_features", "--features"),
    ("batch_size", "--batch"),
    ("div_value", "--div-value"),
    ("dtype", "--dtype"),
    ("logit_std", "--logit-std"),
    ("device", "--device"),
    ("seed", "--seed"),
    ("impl", "--impl"),
)


def sweep_command(rows: pd.DataFrame, implementations: Sequence[str]) -> str:
    """The `zipfmax sweep` that measures the cells of `rows`, with `implementations` beside each other."""
    words = ["zipfmax", "sweep"]
    for column, option in _OPTIONS:
        values = implementations if column == "impl" else list(dict.fromkeys(rows[column].dropna()))
        for value in values:
            words += [option, _text(value)]
    for cutoffs in dict.fromkeys(tuple(c) for c in rows["cutoffs"] if isinstance(c, Sequence)):
        words += ["--cutoffs", ",".join(map(str, cutoffs))]
    return shlex.join(words)


def run_commands(run: Run) -> list[str]:
    """The command lines that wrote a run directory, in order, each once."""
    resumed = run.meta.get("resumed")
    parts = [run.meta, *(resumed if isinstance(resumed, list) else [])]
    commands = [part.get("command") for part in parts if isinstance(part, dict)]
    return list(dict.fromkeys(command for command in commands if isinstance(command, str) and command))


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
