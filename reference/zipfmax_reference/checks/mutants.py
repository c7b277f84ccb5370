"""`zipfmax mutants`: is every planted fault caught, and does the layer without one pass?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table

from zipfmax.errors import UsageError

# Importing these modules plants their faults.
from zipfmax_reference.checks import (  # noqa: F401
    faults_backward,
    faults_calls,
    faults_careless,
    faults_forward,
    faults_hostile,
    faults_many,
    faults_memory,
    faults_models,
    faults_modes,
    faults_ranks,
    faults_results,
    faults_settings,
    faults_sizes,
    faults_state,
    faults_surroundings,
    faults_use,
    faults_weights,
    processes,
)
from zipfmax_reference.checks.faults import FAULTS, IN_USE, Control
from zipfmax_reference.console import print_table, terminal
from zipfmax_reference.contestants.ranked_layer import RankedLayer, RankPool, check_ranks
from zipfmax_reference.contestants.torch_nn import users_layer
from zipfmax_reference.records import Mutant, RunDirectory
from zipfmax_reference.runs import grid as grids
from zipfmax_reference.runs.case import PROTOCOL, Case
from zipfmax_reference.runs.invocation import invocation
from zipfmax_reference.truth import protocol
from zipfmax_reference.truth.oracle import Oracle, Record

CONTROL = "control"
AGAINST = ("definition",)
WAVES = 24
"""More cases come in so many waves, each from all over the grid. Before each, mutants that were caught are left out.
The control is put to every cell."""


@dataclass
class Outcome:
    """What became of one mutant; a `Mutant` record once every cell is counted."""

    mutant: str
    fault: str
    cells: int = 0
    """In which it was judged."""
    cells_failed: int = 0
    caught: bool = False
    tensor: str | None = None
    """What gave it away first."""
    case: str | None = None
    error: float | None = None
    budget: float | None = None
    reason: str | None = None

    def note(self, records: Sequence[Record]) -> None:
        """Count a cell's records."""
        if all(record["status"] == "skipped" for record in records):
            self.reason = records[0]["reason"]
            return
        self.cells += 1
        failed = [record for record in records if record["status"] == "fail"]
        if not failed:
            return
        self.cells_failed += 1
        if not self.caught:
            self.caught = True
            for name in ("tensor", "case", "error", "budget", "reason"):
                setattr(self, name, failed[0][name])


def run(
    grid: str = "quick",
    cells: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    world: int | None = None,
) -> int:
    """Put every mutant and the control through a grid, show the table, and leave `mutants.jsonl` in `out`.

    With `world`, the mutants are those of a vocabulary that is split over so many ranks, and the cells its traps.

    Returns:
        0 where every mutant is caught and the control passes, otherwise 1.

    Raises:
        UsageError: an unknown grid, a pattern that matches no cell, a world of fewer than 2 ranks, or no cell
            that can be judged here.
    """
    if world is not None:
        check_ranks(world)
        if grid != "quick":
            raise UsageError(f"--world has cells of its own: it goes without --grid {grid}")
    cases = grids.grid(grid, device) if world is None else grids.of_ranks(device)[:1]
    if cells is not None:
        cases = grids.matching(cases, cells)
    arguments = {"grid": grid, "mutants": True, "cells": cells, "device": device}
    if world is not None:
        arguments["world"] = world
    directory = RunDirectory.optional(out, invocation(arguments), resume)
    of_one_call: dict[str, type[Control]] = FAULTS if any(case.task != PROTOCOL for case in cases) else {}
    in_use = {name: cls for name, cls in IN_USE.items() if any(_shows(cls, case) for case in cases)}
    classes: dict[str, type[Control]] = {CONTROL: Control, **of_one_call, **in_use}
    known = [Outcome(**record) for record in directory.rows(Mutant)] if directory is not None else []
    wanted = list(classes) if world is None else [CONTROL, *faults_ranks.FAULTS]
    if [outcome.mutant for outcome in known] == wanted:
        outcomes = known
    else:
        n_processes = processes.worth(cases, device)
        outcomes = examine(cases, classes, n_processes) if world is None else examine_ranks(cases, world)
        if directory is not None:
            directory.write(*(Mutant(**vars(outcome)) for outcome in outcomes))
    control = next(o for o in outcomes if o.mutant == CONTROL)
    if not control.cells:
        raise UsageError(f"nothing was judged: {control.reason}")
    _show(outcomes)
    survivors = [o.mutant for o in outcomes if o.mutant != CONTROL and not o.caught]
    print(f"{len(outcomes) - 1 - len(survivors)} of {len(outcomes) - 1} planted faults caught")
    if survivors:
        print(f"FAILED: not caught: {', '.join(survivors)}")
    if control.caught:
        print(f"FAILED: the control, which has no fault, was found wrong: {control.tensor} in {control.case}")
    sys.stdout.flush()
    return 1 if survivors or control.caught else 0


def examine(cases: Sequence[Case], classes: dict[str, type[Control]], n_processes: int = 1) -> list[Outcome]:
    """Run each class on each case that is meant to show it: a fault in use on the rule that it breaks.

    Args:
        cases: of a grid.
        classes: by the name of the mutant.
        n_processes: that share the cases; each computes with one thread where there are several. The outcomes
            are the same whatever their number.
    """
    outcomes = {name: Outcome(name, cls.fault) for name, cls in classes.items()}
    waves = [cases[start::WAVES] for start in range(WAVES)] if len(cases) > processes.FEW else [cases]
    with ExitStack() as stack:
        each: Callable[..., Iterable[dict[str, list[Record]]]] = map
        if n_processes > 1:
            each = stack.enter_context(processes.sharing(n_processes))
        columns = TextColumn("mutants"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        progress = stack.enter_context(Progress(*columns, console=terminal(stderr=True), transient=True))
        bar = progress.add_task("mutants", total=len(cases))
        for wave in waves:
            left = {
                name: cls for name, cls in classes.items() if name == CONTROL or not outcomes[name].caught
            }
            for records in each(partial(_checked, classes=left), wave):
                for name, of_mutant in records.items():
                    outcomes[name].note(of_mutant)
                progress.advance(bar)
    return list(outcomes.values())


def _checked(case: Case, classes: dict[str, type[Control]]) -> dict[str, list[Record]]:
    """The records of each class that the case is meant to show."""
    oracle = Oracle(case, AGAINST, explain=False)
    records = {}
    for name, cls in classes.items():
        if name == CONTROL or (case.task != PROTOCOL and cls.breaks is None):
            records[name] = oracle.check(users_layer(name, cls))
        elif _shows(cls, case):
            records[name] = oracle.check(users_layer(name, cls), [str(cls.breaks)])
    return records


def examine_ranks(
    cases: Sequence[Case], world: int, faults: Sequence[str] = tuple(faults_ranks.FAULTS)
) -> list[Outcome]:
    """Run the control and faults of layers over so many ranks on the traps; one set of processes serves all."""
    pool = RankPool(world, faults_ranks.PLACE)
    outcomes = []
    for name in track([CONTROL, *faults], "mutants", console=terminal(stderr=True), transient=True):
        words = Control.fault if name == CONTROL else faults_ranks.FAULTS[name][0]
        layer = RankedLayer("zipfmax", world, name, (name,), pool)
        outcome = Outcome(name, words)
        for case in cases:
            outcome.note(Oracle(case, AGAINST, explain=False).check(layer))
        outcomes.append(outcome)
    return outcomes


def _shows(cls: type[Control], case: Case) -> bool:
    """Whether a case of the protocol asks for the rule that a fault in use breaks, in a shape that shows it."""
    return (
        case.task == PROTOCOL
        and cls.breaks in protocol.names(case)
        and (not cls.large or protocol.is_large(case))
    )


def _show(outcomes: Sequence[Outcome]) -> None:
    table = Table(title="planted faults", title_justify="left")
    for heading in ("fault", "given away by", "error/budget", "cells failed"):
        table.add_column(heading, justify="right" if "/" in heading or "failed" in heading else "left")
    for o in outcomes:
        wrong = o.caught == (o.mutant == CONTROL)
        table.add_row(
            o.fault,
            o.tensor or "",
            _size(o),
            f"{o.cells_failed} of {o.cells}",
            style="red" if wrong else None,
        )
    print_table(terminal(), table)


def _size(outcome: Outcome) -> str:
    fields: dict[str, Any] = vars(outcome)
    if fields["reason"] is not None:
        return str(fields["reason"]).removeprefix("raised ParameterMismatchError: ")
    if fields["error"] is None:
        return ""
    return f"{fields['error'] / fields['budget']:.3g}" if fields["budget"] else "any"
