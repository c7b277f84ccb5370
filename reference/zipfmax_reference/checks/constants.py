"""`python -m zipfmax_reference.checks.constants DIR ...`: the budgets' constants, and how near errors come to them.

Reads `parity.jsonl` of run directories that `zipfmax verify` left; what is compared with the definition counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zipfmax_reference.records import Parity, RunDirectory
from zipfmax_reference.truth import judgement

GRAINS = ("element", "row", "group")


def constants() -> str:
    """Markdown: what an error may be at each grain, in deviations."""
    j = judgement
    return "\n".join(
        (
            "| grain | allowed, in deviations |",
            "|---|---|",
            f"| element | {j.ELEMENT:g} |",
            f"| row of n independent errors | {j.ROW:g} + {j.ROW_SPREAD:g} / sqrt(n) |",
            f"| group of n independent errors | {j.GROUP:g} + {j.GROUP_SPREAD:g} / sqrt(n) |",
        )
    )


def margins(lines: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: cells, failures and the largest error over budget of each implementation, dtype and grain."""
    worst: dict[tuple[str, str], dict[str, tuple[float, str]]] = {}
    cells: dict[tuple[str, str], set[str]] = {}
    failed: dict[tuple[str, str], set[str]] = {}
    for line in lines:
        if line["against"] != "definition" or line["status"] == "skipped":
            continue
        key = line["impl"], line["dtype"]
        cells.setdefault(key, set()).add(line["case"])
        found = worst.setdefault(key, {})
        if line["status"] == "fail":
            failed.setdefault(key, set()).add(line["case"])
        if line["error"] and line["budget"]:
            share, grain = line["error"] / line["budget"], line["grain"]
            found[grain] = max(found.get(grain, (0.0, "")), (share, line["tensor"]))
    header = ("implementation", "dtype", "cells", "failed", *(f"largest, {grain}" for grain in GRAINS))
    rows = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for (impl, dtype), found in worst.items():
        shares = [f"{found[grain][0]:.2f} ({found[grain][1]})" if grain in found else "" for grain in GRAINS]
        counts = (len(cells[impl, dtype]), len(failed.get((impl, dtype), ())))
        rows.append(f"| {' | '.join((impl, dtype, *map(str, counts), *shares))} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m zipfmax_reference.checks.constants", description=__doc__)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    given = parser.parse_args(arguments)
    lines = (line for directory in given.directories for line in RunDirectory(directory).rows(Parity))
    print(constants(), margins(lines), sep="\n\n")


if __name__ == "__main__":
    main()
