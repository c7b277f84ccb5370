"""What a gate holds a run against: one line a cell, sorted, so that two branches' changes merge.

The first line says what the figures were taken on. Of times only ratios to implementations measured beside
are kept, never seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zipfmax.errors import UsageError
from zipfmax_bench.timings import STEADY, interval_of
from zipfmax_reference.contestants import registry
from zipfmax_reference.records import Timing

FORMAT = 1
FIGURES = ("peak_bytes", "flops", "launches", "synchronisations")
"""Counted, and so compared exactly."""

# Peers are what ours is compared with: their own figures are not gated.
_PEERS = {name for name in registry.names() if not name.startswith("zipfmax")}

Key = tuple[str, str]
"""Case id and implementation."""


_Positive = Annotated[float, Field(gt=0)]
Ratio = tuple[_Positive, _Positive | None, _Positive | None]
"""An estimate and the ends of its interval, if it has any."""


class BaselineCell(BaseModel):
    """A cell: its ratios to what was measured beside it, and the figures that were counted; only what is known."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    case: str
    impl: str
    speedup_vs_torch: Ratio | None = None
    speedup_vs_full: Ratio | None = None
    speedup_vs_limit: Ratio | None = None
    peak_bytes: int | None = None
    flops: int | None = None
    launches: int | None = None
    synchronisations: int | None = None

    def ratio(self, reference: str) -> Ratio | None:
        """To one of `STEADY`."""
        found: Ratio | None = getattr(self, f"speedup_vs_{reference}")
        return found

    def counted(self) -> dict[str, int]:
        """The counted figures that are known, by name."""
        return {name: value for name in FIGURES if (value := getattr(self, name)) is not None}

    def line(self) -> str:
        """As the file holds it."""
        return json.dumps(self.model_dump(exclude_none=True))


@dataclass(frozen=True)
class Baseline:
    """Cells by case and implementation, and what they were measured on."""

    cells: Mapping[Key, BaselineCell]
    header: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The file's content."""
        lines = [json.dumps(dict(self.header))]
        lines += [self.cells[key].line() for key in sorted(self.cells)]
        return "\n".join(lines) + "\n"


def cell_of(timing: Timing) -> BaselineCell:
    """The baseline's line of a cell, ratios with four decimals."""
    known: dict[str, Any] = {name: getattr(timing, name) for name in FIGURES}
    for reference in STEADY:
        values = interval_of(timing, reference)
        if timing.impl != reference and values[0] is not None:
            rounded = (None if value is None else round(value, 4) for value in values)
            known[f"speedup_vs_{reference}"] = tuple(rounded)
    return BaselineCell(case=timing.case, impl=timing.impl, **known)


def is_kept(timing: Timing) -> bool:
    """Whether a baseline has a line for it: it ran, and is of no peer."""
    return timing.status == "ok" and timing.impl not in _PEERS


def baseline_of(timings: Iterable[Timing], machine: Mapping[str, Any]) -> Baseline:
    """The baseline that a run makes: its cells that ran, of all implementations that are no peers."""
    cells = {(one.case, one.impl): cell_of(one) for one in timings if is_kept(one)}
    if not cells:
        raise UsageError("the run has no finished cell of zipfmax or of a user's implementation to keep")
    return Baseline(cells, {"format": FORMAT, **machine})


def read(file: Path) -> Baseline:
    """The baseline in a file.

    Raises:
        UsageError: no such file, or none of this format.
    """
    try:
        lines = [line for line in file.read_text().splitlines() if line.strip()]
        header = json.loads(lines[0]) if lines else None
    except FileNotFoundError:
        raise UsageError(f"no baseline {file}: write it with --update") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"baseline {file} cannot be read: {error}") from error
    if not isinstance(header, dict) or "format" not in header:
        raise UsageError(f"{file} is not a baseline of zipfmax: its first line has no format")
    if header["format"] != FORMAT:
        raise UsageError(f"baseline {file} has format {header['format']}; this zipfmax reads {FORMAT}")
    cells = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            cell = BaselineCell.model_validate_json(line)
        except ValidationError as error:
            wrong = error.errors()[0]
            place = ".".join(map(str, wrong["loc"]))
            said = f"{place}: {wrong['msg']}, got {wrong['input']!r}" if place else wrong["msg"]
            raise UsageError(f"baseline {file}, line {number}: {said}") from None
        cells[cell.case, cell.impl] = cell
    if not cells:
        raise UsageError(f"baseline {file} has no cell")
    return Baseline(cells, header)
