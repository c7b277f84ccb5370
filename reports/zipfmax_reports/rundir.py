"""Reads run directories: `run.json` and the JSON-lines files beside it, into pandas tables.

A run that was killed may end in half a line; that line is left out and named in `Run.remarks`. Anything else
that is not as it should be is a `UsageError`: a page must not be built on a guess.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from zipfmax.errors import UsageError

FORMAT = 1
"""The newest format of `run.json` that this reader knows."""

_REQUIRED = {
    "parity": ("case", "impl", "against", "tensor", "status"),
    "timings": ("case", "impl", "status", "task", "n_classes", "labels"),
}
# Other files that a run may have, and what tells their lines apart: of equal ones, written again by a run
# that was resumed, the last counts.
_OPTIONAL: dict[str, list[str]] = {
    "mutants": ["mutant"],
    "conformance": ["feature", "impl"],
    "stability": ["impl", "change", "tensor"],
    "metamorphic": ["case", "impl", "relation"],
    "selftest": ["kind"],
    "plans": ["case"],
    "plan_proof": ["labels", "n_classes", "in_features", "batch_size", "task"],
}

# JSON has no such numbers; run directories hold them as these strings.
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True)
class Run:
    """One run directory, read.

    Attributes:
        path: the directory.
        meta: the object in `run.json`.
        parity: a row per comparison of one tensor (see `zipfmax verify`).
        timings: a row per case and implementation (see `zipfmax sweep`).
        extras: by name, the other files that the run has, such as mutants or plans.
        remarks: what a reader of the page should know about the files, such as a half-written last line.
    """

    path: Path
    meta: dict[str, Any]
    parity: pd.DataFrame
    timings: pd.DataFrame
    extras: dict[str, pd.DataFrame] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name


def read_run(directory: Path) -> Run:
    """The run in `directory`.

    Raises:
        UsageError: the directory or its `run.json` is missing or cannot be read, is of a newer format, holds
            a corrupt line before the last, or holds no finished cell.
    """
    if not directory.is_dir():
        raise UsageError(f"no run directory at {directory}; zipfmax verify and zipfmax sweep write one")
    meta = _read_meta(directory / "run.json")
    remarks: list[str] = []
    tables = {name: _read_lines(directory / f"{name}.jsonl", remarks) for name in (*_REQUIRED, *_OPTIONAL)}
    for name, columns in _REQUIRED.items():
        _require(directory / f"{name}.jsonl", tables[name], columns)
    if all(table.empty for table in tables.values()):
        raise UsageError(
            f"{directory} holds no finished cell: parity.jsonl and timings.jsonl are missing or empty"
        )
    extras = {name: _latest(tables[name], keys) for name, keys in _OPTIONAL.items() if len(tables[name])}
    return Run(directory, meta, tables["parity"], tables["timings"], extras, tuple(remarks))


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"{path.parent} is not a run directory: it has no run.json")
    try:
        meta = json.loads(_read_bytes(path))
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("format"), int):
        raise UsageError(f'{path} should hold an object with an integer "format"')
    if not 1 <= meta["format"] <= FORMAT:
        raise UsageError(
            f"{path} is of format {meta['format']}; this zipfmax reads up to format {FORMAT}: upgrade zipfmax"
        )
    return dict(_decoded(meta))


def _read_lines(path: Path, remarks: list[str]) -> pd.DataFrame:
    """The objects of a JSON-lines file, a row each; an empty table where there is no such file."""
    if not path.exists():
        return pd.DataFrame()
    lines = _read_bytes(path).rstrip().splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                remarks.append(
                    f"{path.name}: the last line (line {number}) is half-written and was left out."
                )
                break
            raise UsageError(f"{path} is corrupt at line {number}: {error}") from error
        if not isinstance(record, dict):
            raise UsageError(f"{path} is corrupt at line {number}: a JSON object is expected")
        records.append(_decoded(record))
    return pd.DataFrame.from_records(records)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _decoded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def _latest(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    known = [key for key in keys if key in table]
    return table.drop_duplicates(known, keep="last") if known else table


def _require(path: Path, table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    if table.empty:
        return
    for column in columns:
        if column not in table:
            raise UsageError(f'{path}: no line has the field "{column}"')
        missing = table[column].isna()
        if missing.any():
            raise UsageError(f'{path}: {int(missing.sum())} of {len(table)} lines lack the field "{column}"')
