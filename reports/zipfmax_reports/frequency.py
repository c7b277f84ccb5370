"""Parity by how frequent a label is: shortlist, tails, targets, absent classes and decades of rank, each apart."""

from __future__ import annotations

import pandas as pd

from zipfmax_reports.elements import Details, Format, Table, text
from zipfmax_reports.style import percent, scientific

_COLUMNS: dict[str, tuple[str, Format]] = {
    "group": ("values of", text),
    "impl": ("implementation", text),
    "dtype": ("dtype", text),
    "used": ("worst error / budget", percent),
    "tensor": ("in", text),
    "relative": ("its error relative to the truth", scientific),
}


def by_frequency(parity: pd.DataFrame) -> Details | None:
    """The worst error of each group of labels against the definition; None where no record holds groups."""
    found = groups(parity)
    if found.empty:
        return None
    summary = "Error by frequency: shortlist, tails, targets, absent classes, decades of rank"
    over = bool((found["used"] > 1).any())
    return Details(summary, Table.of("Root mean square over each group's values", found, _COLUMNS), over)


def groups(parity: pd.DataFrame) -> pd.DataFrame:
    """A row for each group, implementation and dtype: the part that comes nearest to its budget."""
    if "parts" not in parity:
        return pd.DataFrame()
    rows = [
        {
            "group": part["name"].removeprefix("labels of "),
            "impl": impl,
            "dtype": dtype,
            "tensor": tensor,
            "used": float(part["error"]) / float(part["budget"]),
            "relative": part["relative"],
        }
        for impl, dtype, tensor, against, parts in parity[
            ["impl", "dtype", "tensor", "against", "parts"]
        ].itertuples(index=False)
        if against == "definition" and isinstance(parts, list)
        for part in parts
        if part["name"] != "all" and float(part["budget"]) > 0
    ]
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows).sort_values("used", ascending=False, kind="stable")
    worst = table.drop_duplicates(["group", "impl", "dtype"])
    return worst.sort_values(["impl", "dtype", "group"], key=lambda c: c.map(_order), kind="stable")


def _order(value: str) -> tuple[int, str]:
    """Shortlist and tails first, then targets and absent classes, then decades; by their numbers."""
    kinds = ("shortlist", "tail", "cluster", "all", "targets", "absent classes", "ranks", "absent, ranks")
    kind = next((i for i, start in reversed(list(enumerate(kinds))) if value.startswith(start)), len(kinds))
    digits = "".join(c for c in value.split(" to ")[0] if c.isdigit())
    return kind, digits.zfill(12) if digits else value
