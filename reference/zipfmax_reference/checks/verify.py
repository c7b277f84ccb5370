"""`zipfmax verify`: every implementation on every case of a grid, against every reference.

The GPU kernels can be verified without a GPU: `TRITON_INTERPRET=1 zipfmax verify --impl zipfmax:triton` runs
the float32 cells of the quick grid through Triton's interpreter, in about a minute, and tells why the others
are skipped.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from zipfmax import backends
from zipfmax.errors import UsageError, unknown
from zipfmax_reference.checks import processes
from zipfmax_reference.checks.findings import count, lines, share
from zipfmax_reference.console import print_table, terminal
from zipfmax_reference.contestants import isolated, saved
from zipfmax_reference.contestants.implementation import Implementation
from zipfmax_reference.contestants.ranked_layer import check_ranks
from zipfmax_reference.contestants.sources import digests
from zipfmax_reference.records import Parity, RunDirectory
from zipfmax_reference.records.files import check_writable
from zipfmax_reference.runs import grid as grids
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.invocation import invocation
from zipfmax_reference.truth import protocol
from zipfmax_reference.truth.oracle import WHOLE, Attempts, Oracle, Record

REFERENCES = ("definition", "torch", "paddle")
ONE_RANK = "zipfmax"
PRECISIONS = ("highest", "high", "medium")
INTERRUPTED = 130


@dataclass(frozen=True)
class Options:
    """What to verify. Empty `impl` is zipfmax on every backend of the device, empty `against` REFERENCES."""

    grid: str = "quick"
    impl: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    cells: str | None = None
    device: str = "cpu"
    dtypes: tuple[str, ...] = ()
    """In place of the grid's own; empty keeps them."""
    matmul_precision: str = "highest"
    """torch's of float32 products. On a GPU the contract takes tf32's eps where it is not "highest"."""
    world: tuple[int, ...] = ()
    """Numbers of ranks to split each layer over; empty for one process."""

    def implementations(self) -> tuple[str, ...]:
        """The names to put to the test; on a CPU without Triton's backend, which needs a GPU."""
        served = [name for name in backends.BACKENDS if name != "triton" or self.device != "cpu"]
        names = self.impl or ("zipfmax", *(f"zipfmax:{name}" for name in served))
        return tuple(f"{name}@{world}" for world in self.world for name in names) or names

    def references(self) -> tuple[str, ...]:
        """The names to compare with; for a layer over ranks, the same in one process too."""
        return self.against or (*REFERENCES, *([ONE_RANK] if self.world else []))

    def rerun(self, impl: str, case: str) -> str:
        """The command that runs one cell of an implementation again."""
        layer, _, world = impl.partition("@") if self.world else (impl, "", "")
        words = ["zipfmax", "verify", "--grid", self.grid, "--impl", layer, "--cells", case]
        if world:
            words += ["--world", world]
        for name in self.against:
            words += ["--against", name]
        if self.device != "cpu":
            words += ["--device", self.device]
        for dtype in self.dtypes:
            words += ["--dtype", dtype]
        if self.matmul_precision != "highest":
            words += ["--matmul-precision", self.matmul_precision]
        return shlex.join(words)


def run(
    options: Options, out: Path | None = None, resume: bool = False, save_results: Path | None = None
) -> int:
    """Verify, show the table and the failures, and leave `parity.jsonl` in `out`.

    With `save_results`, what the one implementation computed is kept there, for `saved:DIR` elsewhere.

    Returns:
        0 where every cell holds, 1 where one fails, 130 where it was interrupted.

    Raises:
        UsageError: unknown names, a pattern that matches no cell, no cell that can be judged here, or a folder
            that cannot be used.
    """
    for world in options.world:
        for name in options.impl or (ONE_RANK,):
            check_ranks(world, name)
    contestants = Contestants(options.implementations(), options.references())
    if options.matmul_precision not in PRECISIONS:
        raise UsageError(unknown("precision", options.matmul_precision, PRECISIONS))
    torch.set_float32_matmul_precision(options.matmul_precision)
    cases = grids.grid(options.grid, options.device, options.dtypes)
    if options.world:
        cases += grids.of_ranks(options.device)
    if options.cells is not None:
        cases = grids.matching(cases, options.cells)
    if save_results is not None and len(contestants.implementations) != 1:
        n = len(contestants.implementations)
        raise UsageError(f"--save-results keeps one implementation's results, got {n}")
    check_writable(save_results and save_results / "results.npz")
    arguments = {**vars(options), "impl": options.implementations(), "against": options.references()}
    sources = digests([*options.implementations(), *options.references()])
    directory = RunDirectory.optional(out, invocation(arguments, sources=sources), resume)
    tally = Tally()
    console = terminal()
    shared = 1 if options.world or save_results else processes.worth(cases, options.device)
    try:
        for record in _records(cases, contestants, directory, save_results, shared):
            tally.add(record)
    except KeyboardInterrupt:
        hint = f"; go on with --out {out} --resume" if out is not None else ""
        console.print(f"interrupted{hint}")
        return INTERRUPTED
    tally.show(console, options, out)
    if not tally.judged:
        raise UsageError(f"nothing was judged: {tally.first_reason()}")
    return 1 if tally.failures else 0


class Contestants:
    """The implementations to put to the test and the references, by name.

    Raises:
        UsageError: an unknown name, or a user's class that cannot be had.
    """

    def __init__(self, implementations: Sequence[str], references: Sequence[str]) -> None:
        self.names = tuple(implementations), tuple(references)
        self.implementations: Mapping[str, Implementation] = {
            name: isolated.implementation(name) for name in implementations
        }
        self.against = [isolated.implementation(name) for name in references]

    def checked(self, task: Task, save_results: Path | None = None) -> Found:
        """Records of some implementations on a case."""
        case, names = task
        oracle = Oracle(case, self.against)
        found = []
        for name in names:
            records = oracle.check(self.implementations[name])
            if save_results is not None and all(record["tensor"] != WHOLE for record in records):
                saved.save(save_results, case, self.implementations[name], oracle.inputs)
            found.append((name, records))
        return found


Task = tuple[Case, Sequence[str]]
"""A case, and the names of implementations to put to it."""
Found = list[tuple[str, list[Record]]]
"""Their records, by name."""
_held: list[Contestants] = []
"""Of a process that shares the cases."""


def _begin(names: tuple[Sequence[str], Sequence[str]], precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    _held.append(Contestants(*names))


def _checked(task: Task) -> Found:
    return _held[0].checked(task)


def _records(
    cases: Sequence[Case],
    contestants: Contestants,
    directory: RunDirectory | None,
    save_results: Path | None,
    n_processes: int,
) -> Iterable[Record]:
    """Records of every cell: those that the directory already holds, then the others as they are made."""
    wanted = {(case.id, name) for case in cases for name in contestants.implementations}
    finished: set[tuple[str, str]] = set()
    known: list[Record] = []
    if directory is not None:
        known = directory.rows(Parity)
        finished = {(record["case"], record["impl"]) for record in known} & wanted
        if known:
            # The cell written last may have been cut off between two of its lines: it is run again.
            finished.discard((known[-1]["case"], known[-1]["impl"]))
        known = [record for record in known if (record["case"], record["impl"]) in finished]
        yield from known
    attempts = {name: Attempts() for name in contestants.implementations}
    for (_, name), of_cell in groupby(known, key=lambda record: (record["case"], record["impl"])):
        attempts[name].note(list(of_cell))
    progress = Progress(
        TextColumn("verify"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeRemainingColumn(),
        console=terminal(stderr=True),
        transient=True,
    )

    def tasks() -> Iterator[Task]:
        for case in cases:
            names = [name for name in attempts if (case.id, name) not in finished]
            yield case, [name for name in names if not attempts[name].hopeless]

    with ExitStack() as stack:
        checked: Callable[[Iterable[Task]], Iterable[Found]]
        checked = partial(map, partial(contestants.checked, save_results=save_results))
        if n_processes > 1:
            precision = torch.get_float32_matmul_precision()
            each = stack.enter_context(processes.sharing(n_processes, _begin, contestants.names, precision))
            checked = partial(each, _checked)
        stack.enter_context(progress)
        bar = progress.add_task("verify", total=len(cases), failed=0)
        failed = 0
        for found in checked(tasks()):
            for name, records in found:
                if attempts[name].hopeless:  # found out while others were under way
                    continue
                if directory is not None:
                    directory.write(*(Parity(**record) for record in records))
                failed += any(record["status"] == "fail" for record in records)
                attempts[name].note(records)
                yield from records
            progress.update(bar, advance=1, failed=failed)


@dataclass
class _Row:
    """What is known of one implementation in one dtype."""

    cells: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    judged: set[str] = field(default_factory=set)
    tensors: int = 0
    worst: float = 0.0
    where: str = ""


class Tally:
    """Records summed up as they come."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], _Row] = {}
        self._skips: dict[tuple[str, str], set[str]] = {}
        self._against: dict[str, None] = {}
        self.failures: list[Record] = []

    def add(self, record: Record) -> None:
        """Count a record."""
        impl, dtype, case = record["impl"], record["dtype"], record["case"]
        row = self._rows.setdefault((impl, dtype), _Row())
        row.cells.add(case)
        if record["status"] == "skipped":
            if record["tensor"].startswith(protocol.PREFIX):
                what = f"skipped: {impl}, {record['tensor'].removeprefix(protocol.PREFIX).replace('-', ' ')}"
            else:
                what = f"skipped: {impl} against {record['against']}"
            self._skips.setdefault((what, record["reason"]), set()).add(case)
            return
        row.judged.add(case)
        self._against[record["against"]] = None
        row.tensors += record["tensor"] != WHOLE
        if record["status"] == "fail":
            row.failed.add(case)
            self.failures.append(record)
        of_budget = share(record)
        if of_budget > row.worst:
            row.worst, row.where = of_budget, f"{record['tensor']} against {record['against']}"

    @property
    def judged(self) -> bool:
        """Whether any cell was compared with a reference."""
        return any(row.judged for row in self._rows.values())

    def first_reason(self) -> str:
        """Why a cell was skipped."""
        return next((reason for _, reason in self._skips), "the grid has no cell")

    def show(self, console: Console, options: Options, out: Path | None = None) -> None:
        """Print the table, what was skipped and why, the causes of failures, and last the verdict."""
        table = Table(title=f"parity, {options.grid} grid", title_justify="left")
        for heading in ("implementation", "dtype", "worst tensor"):
            table.add_column(heading)
        for heading in ("cells", "skipped", "failed", "tensors", "worst error/budget"):
            table.add_column(heading, justify="right")
        for (impl, dtype), row in self._rows.items():
            table.add_row(
                impl,
                dtype,
                row.where,
                str(len(row.cells)),
                str(len(row.cells - row.judged)),
                str(len(row.failed)),
                str(row.tensors),
                f"{row.worst:.3g}" if row.judged else "",
                style="red" if row.failed else None,
            )
        print_table(console, table)
        for (what, reason), cells in self._skips.items():
            console.print(f"{what}, {count(cells, 'cell')}: {reason}", highlight=False, soft_wrap=True)
        kept = "keep their records with --out DIR" if out is None else f"see {out / 'parity.jsonl'}"
        for line in (*lines(self.failures, self._tried(), options.rerun, kept), self.verdict()):
            console.print(line, highlight=False, soft_wrap=True)

    def verdict(self) -> str:
        """One line that says it all."""
        judged = {(impl, case) for (impl, _), row in self._rows.items() for case in row.judged}
        failed = {(record["impl"], record["case"]) for record in self.failures}
        if failed:
            names = ", ".join(dict.fromkeys(record["impl"] for record in self.failures))
            return f"verdict: FAILED, {len(failed):,} of {count(judged, 'cell')} wrong: {names}"
        names = ", ".join(dict.fromkeys(impl for (impl, _), row in self._rows.items() if row.judged))
        worst = max((row.worst for row in self._rows.values()), default=0.0)
        return (
            f"verdict: passed, {count(judged, 'cell')} of {names} within the budgets against "
            f"{', '.join(self._against)}; the worst error is {worst:.2g} of its budget"
        )

    def _tried(self) -> dict[str, set[str]]:
        tried: dict[str, set[str]] = {}
        for (impl, _), row in self._rows.items():
            tried.setdefault(impl, set()).update(row.cells)
        return tried
