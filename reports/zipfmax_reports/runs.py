"""A run directory as pandas tables: a row for each record, a column for each field of its type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from zipfmax.errors import UsageError
from zipfmax_reference.records import (
    Conformance,
    Metamorphic,
    Mutant,
    Parity,
    Plan,
    PlanAgreement,
    PlanError,
    PlanProof,
    Record,
    RunDirectory,
    SelfTest,
    Stability,
    Timing,
)
from zipfmax_reports.study import RecordedStudy

_EXTRAS: tuple[type[Record], ...] = (
    *(Mutant, Conformance, Stability, Metamorphic, SelfTest),
    *(Plan, PlanProof, PlanError, PlanAgreement),
)


@dataclass(frozen=True)
class Run:
    """One run directory, read.

    Attributes:
        path: the directory.
        meta: the object in `run.json`.
        parity: a row per comparison of one tensor (see `zipfmax verify`).
        timings: a row per case and implementation (see `zipfmax sweep`).
        extras: by name, the other files that the run has, such as mutants or plans.
        study: what `zipfmax study` measured, if the run has it.
        remarks: what a reader of the page should know about the files, such as a half-written last line.
    """

    path: Path
    meta: dict[str, Any]
    parity: pd.DataFrame
    timings: pd.DataFrame
    extras: dict[str, pd.DataFrame] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    study: RecordedStudy | None = None

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name


def read_run(path: Path) -> Run:
    """The run in a directory.

    Raises:
        UsageError: the directory or one of its files cannot be read, is of an unknown format or holds a line
            that is not a record of its type, or no cell is finished.
    """
    directory = RunDirectory(path)
    parity, timings = _table(directory.read(Parity)), _table(directory.read(Timing))
    extras = {kind.FILE: _table(directory.latest(kind)) for kind in _EXTRAS}
    extras = {name: table for name, table in extras.items() if not table.empty}
    study = RecordedStudy.read(directory)
    if parity.empty and timings.empty and not extras and study is None:
        raise UsageError(
            f"{path} holds no finished cell: parity.jsonl and timings.jsonl are missing or empty"
        )
    return Run(path, directory.meta.model_dump(), parity, timings, extras, tuple(directory.remarks), study)


def _table(records: Sequence[Record]) -> pd.DataFrame:
    return pd.DataFrame.from_records([record.model_dump() for record in records])
