"""The section that a sceptic reads: parity with the references, planted faults, conformance and stability."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from zipfmax_reports import figures, tables
from zipfmax_reports.elements import Details, Format, Picture, Section, Table, text
from zipfmax_reports.frequency import by_frequency
from zipfmax_reports.runs import Run
from zipfmax_reports.style import count, percent, scientific

PROTOCOL = "protocol."
"""Before the name of a rule, in place of a tensor."""
_VERDICTS = {True: "✓ caught", False: "✗ survived"}


def trust(run: Run) -> Section:
    """Agreement with the references, and whatever else the run holds on whether it can be believed."""
    section = _parity(run)
    for name, add in _EXTRAS.items():
        if name in run.extras:
            add(section, run.extras[name])
    return section


def _parity(run: Run) -> Section:
    table = run.parity
    if table.empty:
        return Section("This run holds no comparison with a reference; zipfmax verify makes one.")
    rows = tables.with_used_budget(table)
    section = Section(
        "Each tensor of each cell is compared with float64 truth. Its budget is what rounding in that dtype can do "
        "to each element, row and group of classes; an error above 100 % of its budget is a failure."
    )
    section.tables.append(_by_implementation(table))
    failures, skipped = rows[rows["status"] == "fail"], rows[rows["status"] == "skipped"]
    if not failures.empty:
        section.details.append(_findings(failures, "comparisons that failed", opened=True))
    if not skipped.empty:
        section.details.append(_skipped(skipped))
    in_use = rows["tensor"].str.startswith(PROTOCOL)
    if in_use.any():
        section.details.append(_protocol(rows[in_use]))
    rows = rows[~in_use]
    section.details.append(_by_tensor(rows))
    frequency = by_frequency(rows)
    if frequency is not None:
        section.details.append(frequency)
    if rows["used"].notna().any():
        section.figures.append(_strip(rows, run))
    return section


def _by_implementation(table: pd.DataFrame) -> Table:
    summary = tables.parity_by_implementation(table)
    columns: dict[str, tuple[str, Format]]
    verdict = summary["fail"].map(lambda fails: "✗ differs" if fails else "✓ agrees")
    summary["verdict"] = verdict.where(summary["pass"] + summary["fail"] > 0, "– not compared")
    columns = {
        "impl": ("implementation", text),
        "against": ("against", text),
        "dtype": ("dtype", text),
        "verdict": ("verdict", text),
        "cells": ("cells", count),
        "pass": ("tensors passed", count),
        "fail": ("failed", count),
        "skipped": ("skipped", count),
        "worst": ("worst, of its budget", percent),
        "worst_tensor": ("worst tensor", text),
    }
    return Table.of("Parity at a glance", summary, columns)


def _findings(rows: pd.DataFrame, what: str, opened: bool = False) -> Details:
    columns = {
        "case": ("cell", text),
        "impl": ("implementation", text),
        "against": ("against", text),
        "tensor": ("tensor", text),
        "error": ("error", scientific),
        "budget": ("budget", scientific),
        "used": ("error / budget", percent),
        "where": ("where", text),
        "cause": ("likely cause", text),
        "reason": ("reason", text),
    }
    columns = {name: columns[name] for name in columns if name in rows}
    summary = f"{count(len(rows))} {what}"
    return Details(summary, Table.of(f"{summary}.", rows, columns), opened)


def _skipped(rows: pd.DataFrame) -> Details:
    grouped = rows.assign(reason=rows["reason"].fillna("no reason recorded"))
    grouped = grouped.groupby(["impl", "against", "reason"], sort=False)["case"].nunique().reset_index()
    columns = {
        "impl": ("implementation", text),
        "against": ("against", text),
        "case": ("cells", count),
        "reason": ("reason", text),
    }
    return Details(
        f"{count(len(rows))} comparisons that were skipped, by reason", Table.of("Skipped", grouped, columns)
    )


def _protocol(rows: pd.DataFrame) -> Details:
    """Rule of the protocol of calls by implementation: kept, broken, or not promised."""
    words = {"pass": "✓ kept", "fail": "✗ broken", "skipped": "– not promised"}
    worst = {"fail": 0, "skipped": 1, "pass": 2}
    rows = rows.sort_values("status", key=lambda status: status.map(worst), kind="stable")
    of_rule = rows.drop_duplicates(["tensor", "impl"]).assign(
        rule=lambda found: found["tensor"].str.removeprefix(PROTOCOL).str.replace("-", " "),
        verdict=lambda found: found["status"].map(words),
    )
    names = list(dict.fromkeys(of_rule["impl"]))
    grid = of_rule.pivot(index="rule", columns="impl", values="verdict")[names].reset_index()
    columns: dict[str, tuple[str, Format]] = {
        "rule": ("rule", text),
        **{name: (name, text) for name in names},
    }
    kept = int((of_rule["status"] == "pass").sum())
    summary = f"In use, call after call: {kept} of {len(of_rule)} rules kept"
    broken = bool((of_rule["status"] == "fail").any())
    return Details(summary, Table.of("The protocol of calls", grid, columns), opened=broken)


def _by_tensor(rows: pd.DataFrame) -> Details:
    grouped = rows.groupby(["impl", "against", "dtype", "tensor"], sort=False)["used"]
    summary = grouped.agg(["count", "median", "max"]).reset_index()
    columns = {
        "impl": ("implementation", text),
        "against": ("against", text),
        "dtype": ("dtype", text),
        "tensor": ("tensor", text),
        "count": ("comparisons", count),
        "median": ("median error / budget", percent),
        "max": ("worst", percent),
    }
    return Details(
        "Error against budget, tensor by tensor",
        Table.of("Error in units of its budget", summary, columns, most=1000),
    )


def _strip(rows: pd.DataFrame, run: Run) -> Picture:
    points = tables.binned(rows, per_decade=10).sort_values("used", ascending=False, kind="stable")
    drawn = tables.binned(rows.assign(tensor="any"))
    columns = {
        "impl": ("implementation", text),
        "against": ("against", text),
        "dtype": ("dtype", text),
        "tensor": ("tensor", text),
        "used": ("error / budget, about", percent),
        "comparisons": ("comparisons", count),
    }
    return Picture(
        name="strip",
        title="Every comparison's error against its budget",
        reading="Each mark is a tensor's error in units of its budget, on a logarithmic axis; right of the "
        "dashed line it fails. Marks of nearly the same error are drawn as one.",
        description=f"Errors of {count(len(rows))} comparisons; the largest is "
        f"{percent(rows['used'].max())} of its budget.",
        caption=f"{count(len(rows))} comparisons.",
        figure=figures.parity_strip(drawn),
        table=Table.of("Errors in units of their budgets, the largest first.", points, columns, most=600),
        command=str(run.meta.get("command") or "zipfmax verify"),
        chart="strip",
    )


def _mutants(section: Section, rows: pd.DataFrame) -> None:
    """Planted faults: which tensor gave each away. The control is the layer without a fault."""
    control, faults = rows[rows["mutant"] == "control"], rows[rows["mutant"] != "control"]
    caught = faults["caught"].astype(bool)
    summary = f"Planted faults: {int(caught.sum())} of {len(faults)} caught"
    if not control.empty:
        alarm = bool(control["caught"].iloc[0])
        summary += "; the layer without one " + ("was found wrong too" if alarm else "passed")
    used = pd.to_numeric(faults["error"], errors="coerce") / pd.to_numeric(faults["budget"], errors="coerce")
    shown = faults.assign(verdict=caught.map(_VERDICTS), used=used).sort_values("caught", kind="stable")
    columns: dict[str, tuple[str, Format]] = {
        "fault": ("fault", text),
        "verdict": ("verdict", text),
        "tensor": ("given away by", text),
        "used": ("error / budget", percent),
        "cells_failed": ("cells that failed", count),
        "cells": ("of", count),
        "reason": ("reason", text),
    }
    columns = {name: columns[name] for name in columns if name in shown}
    section.details.append(Details(summary, Table.of(summary, shown, columns), opened=not caught.all()))


def _conformance(section: Section, rows: pd.DataFrame) -> None:
    """Feature by implementation, every entry backed by a run; a column for each implementation."""
    if not {"feature", "impl", "verdict"} <= set(rows):
        section.details.append(_as_it_is("Conformance", rows))
        return
    note = rows["detail"] if "detail" in rows else pd.Series("", index=rows.index)
    entry = rows["verdict"].map(text) + note.map(text).map(lambda words: f": {words}" if words else "")
    names = list(dict.fromkeys(rows["impl"]))
    grid = rows.assign(entry=entry).pivot_table(
        index="feature", columns="impl", values="entry", aggfunc="; ".join, sort=False
    )
    grid = grid.reindex(columns=names).fillna("").reset_index()
    columns = {"feature": ("feature", text), **{name: (name, text) for name in names}}
    body = Table.of("Each entry is backed by a run, or says that it was not run", grid, columns)
    section.details.append(Details("Conformance: what agrees, what differs and how", body, opened=True))


def _stability(section: Section, rows: pd.DataFrame) -> None:
    """Implementation by change of the input: the tensors' common verdict, and those that have another."""
    title = "Stability: the same input again, its rows permuted, in two halves"
    if not {"impl", "change", "tensor", "verdict"} <= set(rows):
        section.details.append(_as_it_is(title, rows))
        return
    changes = list(dict.fromkeys(rows["change"]))
    grid = pd.DataFrame(
        [
            {"impl": impl, **{change: _tensors(of_impl[of_impl["change"] == change]) for change in changes}}
            for impl, of_impl in rows.groupby("impl", sort=False)
        ]
    )
    columns = {"impl": ("implementation", text), **{change: (change, text) for change in changes}}
    section.details.append(Details(title, Table.of(title, grid, columns), opened=True))


def _tensors(rows: pd.DataFrame) -> str:
    """The commonest verdict of the tensors, and which have another."""
    if rows.empty:
        return "not run"
    common = str(rows["verdict"].mode().iloc[0])
    others = rows[rows["verdict"] != common].groupby("verdict", sort=False)["tensor"].agg(", ".join)
    return "; ".join([common, *(f"{verdict}: {names}" for verdict, names in others.items())])


def _metamorphic(section: Section, rows: pd.DataFrame) -> None:
    """Relations between an implementation's own results, where no truth is at hand."""
    rows = rows.assign(used=pd.to_numeric(rows["error"]) / pd.to_numeric(rows["budget"]))
    failed = int((rows["status"] == "fail").sum())
    held = int((rows["status"] == "pass").sum())
    summary = f"Relations that need no reference, up to millions of classes: {held} hold, {failed} do not"
    columns: dict[str, tuple[str, Format]] = {
        "impl": ("implementation", text),
        "relation": ("relation", text),
        "status": ("status", text),
        "used": ("error / budget", percent),
        "reason": ("reason", text),
        "case": ("cell", text),
    }
    shown = rows.sort_values("status", kind="stable")
    section.details.append(Details(summary, Table.of(summary, shown, columns), opened=failed > 0))


def _selftest(section: Section, rows: pd.DataFrame) -> None:
    columns: dict[str, tuple[str, Format]] = {
        "kind": ("gate runs", text),
        "runs": ("runs", count),
        "failed": ("failed", count),
        "share": ("share", percent),
        "required": ("required", text),
        "holds": ("holds", lambda holds: "✓ yes" if holds else "✗ no"),
        "undecided": ("undecided", count),
    }
    title = "How often the regression gate is wrong, by its self-test"
    section.details.append(Details(title, Table.of(title, rows, columns), opened=not rows["holds"].all()))


_EXTRAS: dict[str, Callable[[Section, pd.DataFrame], None]] = {
    "mutants": _mutants,
    "conformance": _conformance,
    "stability": _stability,
    "metamorphic": _metamorphic,
    "selftest": _selftest,
}


def _as_it_is(summary: str, rows: pd.DataFrame) -> Details:
    """A table of the fields as the file holds them."""
    columns = {str(name): (str(name).replace("_", " "), text) for name in rows}
    return Details(summary, Table.of(summary, rows, columns))
