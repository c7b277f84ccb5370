"""What a gate holds a run against: one line a cell, sorted, so that two branches' changes merge.

The first line says what the figures were taken on. Of times only ratios to implementations measured beside
are kept, never seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zipfmax.errors import UsageError
from zipfmax_bench.timing_lines import STEADY
from zipfmax_reference.contestants import registry

FORMAT = 1
FIGURES = ("peak_bytes", "flops", "launches", "synchronisations")
"""Counted, and so compared exactly."""

# Peers are what ours is compared with: their own figures are not gated.
_PEERS = {name for name in registry.names() if not name.startswith("zipfmax")}

Key = tuple[str, str]
"""Case id and implementation."""


@dataclass(frozen=True)
class Baseline:
    """Cells by case and implementation, and what they were measured on."""

    cells: Mapping[Key, Mapping[str, Any]]
    header: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The file's content."""
        lines = [json.dumps(dict(self.header))]
        lines += [json.dumps(dict(self.cells[key])) for key in sorted(self.cells)]
        return "\n".join(lines) + "\n"


def cell_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The baseline's line of a timing line: [ratio, low, high] to each reference, and the counted figures."""
    cell: dict[str, Any] = {"case": record["case"], "impl": record["impl"]}
    for reference in STEADY:
        name = f"speedup_vs_{reference}"
        values = interval_of(record, reference)
        if record["impl"] != reference and values[0] is not None:
            cell[name] = [None if value is None else round(value, 4) for value in values]
    for figure in FIGURES:
        if record.get(figure) is not None:
            cell[figure] = record[figure]
    return cell


def interval_of(record: Mapping[str, Any], reference: str) -> list[float | None]:
    """A timing line's speedup against a reference: [ratio, low, high], None for what it lacks."""
    name = f"speedup_vs_{reference}"
    return [record.get(name), record.get(f"{name}_low"), record.get(f"{name}_high")]


def is_kept(record: Mapping[str, Any]) -> bool:
    """Whether a baseline has a line for it: it ran, and is of no peer."""
    return record["status"] == "ok" and record["impl"] not in _PEERS


def baseline_of(records: Iterable[Mapping[str, Any]], machine: Mapping[str, Any]) -> Baseline:
    """The baseline that a run makes: its cells that ran, of all implementations that are no peers."""
    cells = {(record["case"], record["impl"]): cell_of(record) for record in records if is_kept(record)}
    if not cells:
        raise UsageError("the run has no finished cell of zipfmax or of a user's implementation to keep")
    return Baseline(cells, {"format": FORMAT, **machine})


def read(file: Path) -> Baseline:
    """The baseline in a file.

    Raises:
        UsageError: no such file, or none of this format.
    """
    try:
        lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        raise UsageError(f"no baseline {file}: write it with --update") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"baseline {file} cannot be read: {error}") from error
    if not lines or not isinstance(lines[0], dict) or "format" not in lines[0]:
        raise UsageError(f"{file} is not a baseline of zipfmax: its first line has no format")
    if lines[0]["format"] != FORMAT:
        raise UsageError(f"baseline {file} has format {lines[0]['format']}; this zipfmax reads {FORMAT}")
    cells: dict[Key, Mapping[str, Any]] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not isinstance(line, dict) or not {"case", "impl"} <= line.keys():
            raise UsageError(f"baseline {file}, line {number}: a cell has a case and an impl")
        if wrong := [name for name, value in line.items() if not _sound(name, value)]:
            raise UsageError(f"baseline {file}, line {number}: {wrong[0]} is {line[wrong[0]]!r}")
        cells[line["case"], line["impl"]] = line
    if not cells:
        raise UsageError(f"baseline {file} has no cell")
    return Baseline(cells, lines[0])


def _sound(name: str, value: object) -> bool:
    """Whether a field of a cell is of its kind: text, a count, or a ratio with its bounds, if it has any."""
    if name in FIGURES:
        return isinstance(value, int)
    if name.startswith("speedup_vs_"):
        return (
            isinstance(value, list)
            and len(value) == 3
            and all(bound is None or (isinstance(bound, int | float) and bound > 0) for bound in value)
        )
    return isinstance(value, str)
