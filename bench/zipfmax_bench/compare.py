"""`zipfmax compare BASE_REF`: a git revision measured interleaved with the working tree, for a pull request.

The one way to tell two revisions apart that needs no trust in yesterday's machine: `zipfmax gate --base` asks
it about whatever a baseline makes suspect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from zipfmax.errors import UsageError
from zipfmax_bench import gate_report, judge, presets, ratios, revisions
from zipfmax_bench.baseline import FIGURES, Key
from zipfmax_bench.engine import Engine, Measurement, SamplingPolicy
from zipfmax_bench.executors import WorkerProcess
from zipfmax_bench.fork_server import ForkServer, can_fork
from zipfmax_bench.judge import Change
from zipfmax_bench.revisions import Side
from zipfmax_bench.threads import checked_threads, default_threads
from zipfmax_bench.timings import seconds_by_round
from zipfmax_reference.console import terminal
from zipfmax_reference.records import Finding, Outcome
from zipfmax_reference.records.files import check_writable
from zipfmax_reference.runs import device
from zipfmax_reference.runs.case import Case

PROCESSES = 6
"""Of each side: with fewer the interval of their ratio is too wide to decide anything."""
POLICY = SamplingPolicy(seconds=3.0, least=12, most=60)
AXES = replace(presets.PRESETS["gate"], labels=("zipf:1.0",))


@dataclass(frozen=True)
class CompareOptions:
    """What is compared; None or () takes the backends of zipfmax on the gate's cells."""

    impl: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    features: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    device: str = "cpu"
    threads: int | None = None
    threshold: float = judge.THRESHOLD


def compare(base: str, options: CompareOptions | None = None, *, left: gate_report.Left | None = None) -> int:
    """Measure a revision beside the working tree; 1 if the tree is surely slower, twice, or does more work.

    Args:
        base: a git revision, such as `main`.
        options: what is compared.
        left: the files to write, and whether undecided cells fail.

    Raises:
        UsageError: not in a repository, no such revision, or one that cannot be measured.
    """
    options, left = options or CompareOptions(), left or gate_report.Left()
    check_writable(left.junit, left.summary)
    judge.check_threshold(options.threshold)
    checked_threads(options.threads)
    repository = revisions.repository_here()
    cells = chosen_cells(options, repository)
    console = terminal()
    threads = options.threads or default_threads()
    with revisions.sides(base, repository) as pair:
        now = revisions.working_tree(repository)
        notes = [f"{base} is {revisions.named(repository, base)}; this revision is {now}"]
        console.print(notes[0], highlight=False, markup=False, soft_wrap=True)
        findings = examine(cells, pair, threads, options.threshold)
    if not findings:
        raise UsageError("neither revision can do any of the chosen cells")
    return gate_report.tell(list(findings.values()), notes, console, left)


def chosen_cells(options: CompareOptions, repository: Path) -> dict[Key, Case]:
    """Every case of every implementation, by its key.

    Raises:
        UsageError: a choice that does not exist or that revisions cannot differ in.
    """
    if not options.impl and not revisions.is_zipfmax(repository):
        raise UsageError(
            f"{repository} is not a checkout of zipfmax that can be measured, as it lacks {revisions.MESSAGES}: "
            "give a layer of this repository, as --impl path/file.py:Class"
        )
    axes = replace(AXES, device=device.present(options.device))
    for name in ("task", "classes", "features", "batch"):
        if chosen := getattr(options, name):
            axes = replace(axes, **{"tasks" if name == "task" else name: chosen})
    names = options.impl or presets.with_gpu_kernels(axes, "zipfmax")
    revisions.check_implementations(names, repository)
    return {(case.id, name): case for name in names for case in presets.cases(axes)}


def examine(
    cells: Mapping[Key, Case],
    pair: tuple[Side, Side],
    threads: int,
    threshold: float,
    policy: SamplingPolicy = POLICY,
) -> dict[Key, Finding]:
    """A finding for each cell that one of the sides can do; what is or may be slower was measured again.

    Args:
        cells: to measure.
        pair: the other revision and this one.
        threads: of every worker.
        threshold: relative slowdown that is let pass.
        policy: how long to measure each cell.
    """

    def again(keys: Sequence[Key]) -> dict[Key, Finding]:
        return beside({key: cells[key] for key in keys}, pair, threads, threshold, policy)

    return judge.twice(again(list(cells)), again)


def beside(
    cells: Mapping[Key, Case],
    pair: tuple[Side, Side],
    threads: int,
    threshold: float,
    policy: SamplingPolicy = POLICY,
    count_work: bool = True,
) -> dict[Key, Finding]:
    """A finding for each cell, from fresh processes of both sides, which serve all cells of an implementation.

    Cells that neither side can do are left out.
    """
    then, now = pair
    findings = {}
    with ExitStack() as stack:
        servers: dict[str, ForkServer] = {}
        if can_fork():
            pythons = dict.fromkeys(side.python for side in pair)
            servers = {each: stack.enter_context(ForkServer(threads, each)) for each in pythons}
        for name in dict.fromkeys(impl for _, impl in cells):
            workers = {
                side.name: [
                    WorkerProcess(
                        side.implementation(name), threads, None, side.python, servers.get(side.python)
                    )
                    for _ in range(PROCESSES)
                ]
                for side in pair
            }
            with Engine(workers) as engine:
                for key, case in cells.items():
                    if key[1] != name:
                        continue
                    found = engine.measure(dict.fromkeys(workers, case), policy, count_work=count_work)
                    one, other = found[then.name], found[now.name]
                    if (one.status, other.status) != ("skipped", "skipped"):
                        findings[key] = verdict(case, name, then.name, one, other, threshold)
    return findings


def verdict(
    case: Case, impl: str, base: str, then: Measurement, now: Measurement, threshold: float
) -> Finding:
    """What became of a cell between two revisions. More counted work fails; less is only reported."""

    def found(outcome: Outcome, text: str) -> Finding:
        return Finding(case=case.id, impl=impl, outcome=outcome, text=text, doubtful=outcome == "undecided")

    for who, measurement in ((base, then), ("this revision", now)):
        if not measurement.ok:
            return found("unmeasured", f"{who}: {measurement.status}: {measurement.reason}")
    changes = _work_changes(then, now)
    grown = [text for text, grew in changes if grew]
    ratio = ratios.speedup(seconds_by_round(then), seconds_by_round(now))
    if ratio is None or ratio.half_width is None:
        return found("unmeasured", "too few rounds")
    change = Change(base, -ratio.log, ratio.half_width, ratio.floor or 0.0)
    text = "; ".join([str(change), *(text for text, _ in changes)])
    return found("changed" if grown else change.outcome(threshold), text)


def _work_changes(then: Measurement, now: Measurement) -> list[tuple[str, bool]]:
    """Each counted figure that differs, in words, and whether it grew."""
    found = []
    for figure in FIGURES:
        before, after = getattr(then.work, figure), getattr(now.work, figure)
        if before != after:
            found.append((f"{figure} {before} -> {after}", before is None or (after or 0) > before))
    return found
