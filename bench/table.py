"""The table that a sweep ends with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

# What a cell without a time shows in its place.
_WORDS = {
    "skipped": "cannot",
    "failed": "failed",
    "out_of_memory": "out of memory",
    "over_budget": "over budget",
    "parity_failed": "WRONG",
}


def timing_table(records: Iterable[Mapping[str, Any]], implementations: Sequence[str]) -> Table:
    """One row a case, one column an implementation: median milliseconds, and its ratio to full softmax."""
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in records:
        rows.setdefault(record["case"], {})[record["impl"]] = record
    table = Table(title="milliseconds, and times faster than full softmax", title_justify="left")
    for heading in ("classes", "d", "rows", "dtype", "task", "labels"):
        table.add_column(heading, justify="right" if heading in ("classes", "d", "rows") else "left")
    for name in implementations:
        table.add_column(name, justify="right")
    previous: tuple[Any, ...] | None = None
    for cells in rows.values():
        first = next(iter(cells.values()))
        group = (first["n_classes"], first["in_features"], first["batch_size"], first["dtype"], first["task"])
        if previous not in (None, group):
            table.add_section()
        shown = ("", "", "", "", "") if group == previous else (f"{group[0]:,}", *map(str, group[1:]))
        table.add_row(*shown, first["labels"], *(_cell(cells.get(name)) for name in implementations))
        previous = group
    return table


def _cell(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return ""
    if record["status"] != "ok":
        return _WORDS[record["status"]]
    time = f"{record['median_s'] * 1e3:.3g}"
    speedup = record["speedup_vs_full"]
    if speedup is None or record["impl"] == "full":
        return time
    return f"{time}  {speedup:.2f}x"
