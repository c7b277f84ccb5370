"""The table that a sweep ends with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from zipfmax_reference.console import print_table
from zipfmax_reference.records import Timing

# What a cell without a time shows in its place.
_WORDS = {
    "skipped": "cannot",
    "failed": "failed",
    "out_of_memory": "out of memory",
    "over_budget": "over budget",
    "parity_failed": "parity failed",
    "implausible": "implausible",
}


def timing_tables(timings: Iterable[Timing], implementations: Sequence[str]) -> list[Table]:
    """One table a shape and task: median milliseconds (times faster than full softmax) by labels."""
    groups: dict[str, dict[str, dict[str, Timing]]] = {}
    for timing in timings:
        if timing.impl in implementations:
            rows = groups.setdefault(_group(timing), {})
            rows.setdefault(timing.labels, {})[timing.impl] = timing
    tables = []
    for group, rows in groups.items():
        table = Table(title=f"{group}", title_justify="left")
        table.box = SIMPLE_HEAD
        table.add_column("labels", min_width=12, overflow="fold")
        for heading in headings(implementations):
            table.add_column(heading, justify="right", min_width=13, overflow="fold")
        for labels, cells in rows.items():
            table.add_row(labels, *(_cell(cells.get(name)) for name in implementations))
        tables.append(table)
    return tables


def show(console: Console, tables: Iterable[Table]) -> None:
    """Print tables, each with all its columns."""
    for table in tables:
        print_table(console, table)


def headings(implementations: Sequence[str]) -> list[str]:
    """Names of implementations, those of files without the folders that all of one name share.

    Two different names stay different: as many folders are kept as it takes.
    """
    short = []
    for name in implementations:
        parts = name.split("/")
        kept = 1
        while kept < len(parts) and any(
            other != name and _last(other, kept) == _last(name, kept) for other in implementations
        ):
            kept += 1
        short.append(_last(name, kept))
    return short


def _last(name: str, parts: int) -> str:
    return "/".join(name.split("/")[-parts:])


def _group(timing: Timing) -> str:
    cutoffs = "/".join(map(str, timing.cutoffs))
    return (
        f"{timing.task} V={timing.n_classes:,} ({cutoffs}) d={timing.in_features} "
        f"N={timing.batch_size} {timing.dtype}{_spread(timing)}"
    )


def _spread(timing: Timing) -> str:
    logit_std = timing.logit_std
    return "" if logit_std is None else f" logit std {logit_std:g}"


def _cell(timing: Timing | None) -> str:
    if timing is None:
        return ""
    if timing.status != "ok":
        return _WORDS[timing.status]
    assert timing.median_s is not None
    time = f"{timing.median_s * 1e3:.3g}"
    if not timing.exact:
        return f"{time} (inexact)"
    speedup = timing.speedup_vs_full
    # An implementation that hands the work on is not another one: torch's own is expected to.
    by = " by torch.nn" if timing.delegates and timing.impl != "torch" else ""
    if speedup is None or timing.impl == "full":
        return time + by
    return f"{time} ({speedup:.3g}x){by}"
