"""Two or more runs beside each other: before and after, or machine and machine.

Ratios within a run travel between machines, seconds do not: times are compared only where the machines are
the same. Cells are matched by their id and implementation, and what only one run has is counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from zipfmax_reports import figures, history, tables
from zipfmax_reports.elements import Format, Picture, Section, Table, text
from zipfmax_reports.reproduction import run_commands
from zipfmax_reports.runs import Run
from zipfmax_reports.style import count, factor
from zipfmax_reports.summary import condition_text, name_of, statements


def compare(runs: Sequence[Run]) -> Section:
    """The runs' verdicts, their common cells and how their speedups differ; the first run is the base."""
    names = run_names(runs)
    all_cells = [tables.cells(run) for run in runs]
    same = all(machine(run) == machine(runs[0]) for run in runs)
    section = Section(
        f"{count(len(runs))} runs. "
        + (
            "They were made on the same kind of machine, so their times are compared too."
            if same
            else "They were made on different machines, so only ratios within each run are compared."
        )
    )
    section.tables.append(_verdicts(runs, names, all_cells))
    timed = [(name, cells) for name, cells in zip(names, all_cells, strict=True) if not cells.empty]
    if same and len(timed) == len(runs) >= history.FEWEST:
        tables_of = dict(zip(map(id, runs), all_cells, strict=True))
        over_time = [(name, tables_of[id(run)]) for name, run in history.in_order(runs, names)]
        condition = tables.main_condition(timed[0][1])
        section.figures += history.history(over_time, tables.subject(timed[0][1]), condition)
    if len(timed) > 1:
        section.tables.append(_changes(timed, same))
        section.figures += _pictures(timed, runs)
    return section


def run_names(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its directory's, with as much of the path as tells equal ones apart."""
    paths = [run.path.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{run.name} ({position})" for position, run in enumerate(runs, start=1)]


def machine(run: Run) -> tuple[str, ...]:
    """What has to be equal for seconds to be comparable: processor, cores, threads, GPUs."""
    found = run.meta.get("machine")
    found = found if isinstance(found, dict) else {}
    return tuple(str(found.get(name)) for name in ("cpu", "cores", "threads", "gpus"))


def _verdicts(runs: Sequence[Run], names: list[str], all_cells: list[pd.DataFrame]) -> Table:
    answers = [statements(run, cells) for run, cells in zip(runs, all_cells, strict=True)]
    questions = list(dict.fromkeys(item.question for row in answers for item in row))
    body = [
        (
            name,
            *({item.question: item.figure for item in row}.get(question, "–") for question in questions),
            str(run.meta.get("commit") or "unknown")[:10],
            text((run.meta.get("machine") or {}).get("gpus") or (run.meta.get("machine") or {}).get("cpu")),
        )
        for name, run, row in zip(names, runs, answers, strict=True)
    ]
    return Table("The runs' answers", ("run", *questions, "commit", "machine"), body)


def _changes(timed: list[tuple[str, pd.DataFrame]], same_machine: bool) -> Table:
    """How each implementation's times and speedups changed from the first run to each other."""
    (base_name, base), rows = timed[0], []
    for name, cells in timed[1:]:
        both = base.merge(cells, on=["case", "impl"], suffixes=("_base", ""))
        both = both[both["ok_base"] & both["ok"]]
        for impl in dict.fromkeys(pd.concat([base["impl"], cells["impl"]])):
            common = both[both["impl"] == impl]
            record: dict[str, object] = {"run": name, "impl": impl, "cells": len(common)}
            record["only_base"] = _only(base, cells, impl)
            record["only_here"] = _only(cells, base, impl)
            for reference in ("full", "torch"):
                field = f"speedup_vs_{reference}"
                if f"{field}_base" in common and impl != reference:
                    record[reference] = (common[field] / common[f"{field}_base"]).median()
            if same_machine:
                record["time"] = (common["median_s_base"] / common["median_s"]).median()
            rows.append(record)
    columns: dict[str, tuple[str, Format]] = {
        "run": ("run", text),
        "impl": ("implementation", text),
        "cells": ("common cells", count),
        "time": ("times as fast", factor),
        "full": ("its speedup over full softmax, times", factor),
        "torch": ("its speedup over torch.nn, times", factor),
        "only_base": ("cells lost", count),
        "only_here": ("cells gained", count),
    }
    frame = pd.DataFrame(rows)
    shown = {name: column for name, column in columns.items() if name in frame}
    return Table.of(f"Median change over the common cells, from {base_name}", frame, shown)


def _only(one: pd.DataFrame, other: pd.DataFrame, impl: str) -> int:
    mine = set(one.loc[one["ok"] & (one["impl"] == impl), "case"])
    return len(mine - set(other.loc[other["ok"] & (other["impl"] == impl), "case"]))


def _pictures(timed: list[tuple[str, pd.DataFrame]], runs: Sequence[Run]) -> list[Picture]:
    """The subject's speedups, a mark for each run, for every baseline that two runs have."""
    condition = tables.main_condition(timed[0][1])
    name = tables.subject(timed[0][1])
    found = []
    for baseline in tables.baselines(timed[0][1]):
        rows = tables.ratios_of_runs(timed, baseline, name, condition)
        if rows["run"].nunique() > 1:
            found.append(_picture(rows, name, baseline, condition_text(condition), runs))
    return found


def _picture(rows: pd.DataFrame, name: str, baseline: str, condition: str, runs: Sequence[Run]) -> Picture:
    other = name_of(baseline)
    caption = f"{name} over {other}; {condition}."
    columns: dict[str, tuple[str, Format]] = {
        "run": ("run", text),
        "task": ("task", text),
        "n_classes": ("classes", count),
        "labels_name": ("labels", text),
        "speedup": ("speedup", factor),
        "low": ("95 % from", factor),
        "high": ("to", factor),
    }
    return Picture(
        name=f"runs-{''.join(letter if letter.isalnum() else '-' for letter in baseline)}",
        title=f"Speedup over {other}, run by run",
        reading="A row for each cell, a mark for each run, with its 95 % interval.",
        description="Speedups of the same cells in each run, side by side.",
        caption=caption,
        figure=figures.runs_beside(rows, other),
        table=Table.of(caption, rows, columns),
        command="\n".join(line for run in runs for line in run_commands(run)) or None,
    )
