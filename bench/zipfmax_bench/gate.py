"""`zipfmax gate`: does a run still do what the baseline says? Only confirmed findings fail it.

Counted figures are compared with the baseline exactly. A time that the baseline makes suspect is not a finding
yet, for the machine may have changed since: it becomes one where base and head, measured interleaved now, differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zipfmax.errors import UsageError
from zipfmax_bench import baseline as baselines
from zipfmax_bench import compare, gate_report, judge, revisions, timings
from zipfmax_bench.baseline import Baseline, Key
from zipfmax_bench.engine import Engine, SamplingPolicy
from zipfmax_bench.messages import LIMIT
from zipfmax_bench.threads import default_threads
from zipfmax_reference.console import terminal
from zipfmax_reference.records import RUN_FILE, Finding, RunDirectory, Timing
from zipfmax_reference.records.files import check_writable, write_text
from zipfmax_reference.runs import machine
from zipfmax_reference.runs.case import Case

Rerun = Callable[[Sequence[Key]], Mapping[Key, Timing]]
Beside = Callable[[Sequence[Key]], Mapping[Key, Finding]]

# A confirmation is worth more samples than the finding it is to confirm.
RERUN_POLICY = SamplingPolicy(seconds=6.0, least=12, most=180)
RERUN_PROCESSES = 6
DECISIVE = ("cpu", "gpus", "threads", "torch")
"""What a baseline and a run have to share to be comparable; other differences are noted."""
SHARP = 0.04
"""Half-width that a baseline's interval of a log-ratio may have; from a wider one 10 % are not told."""


@dataclass(frozen=True)
class GatedRun:
    """What a gate reads, whichever form it came in."""

    cells: Mapping[Key, Timing]
    machine: Mapping[str, Any]
    notes: Sequence[str]


@dataclass(frozen=True)
class GateOptions:
    """How a run is judged.

    Attributes:
        threshold: relative slowdown that is let pass.
        rerun: measure again, in fresh processes, what is or may be slower than the baseline; and with
            `update` what is not known well enough. A run of another machine is judged as it is.
        base: a git revision that is measured interleaved with the working tree where a cell is suspect;
            without one such a cell ends undecided.
        force: judge by a baseline of another machine.
    """

    threshold: float = judge.THRESHOLD
    rerun: bool = True
    base: str | None = None
    force: bool = False


def gate(
    source: Path,
    baseline: Path,
    *,
    update: bool = False,
    options: GateOptions | None = None,
    left: gate_report.Left | None = None,
) -> int:
    """Hold a run against a baseline, say what was found, and return the exit status.

    Args:
        source: a run directory, or the JSON of `pytest --benchmark --benchmark-json`.
        baseline: the file to hold it against, or with `update` to write.
        update: make the run the baseline.
        options: how it is judged.
        left: the files to write, and whether undecided cells fail.

    Raises:
        UsageError: a run or a baseline that cannot be read, one of another machine, or files that cannot be
            written.
    """
    console = terminal()
    options, left = options or GateOptions(), left or gate_report.Left()
    judge.check_threshold(options.threshold)
    check_writable(left.junit, left.summary, baseline if update else None)
    run = read_run(source)
    for note in run.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    again = measure_again(run.cells) if options.rerun else None
    if not _is_of_this_machine(run):
        if options.base is not None:
            raise UsageError("--base measures here, and the run is of another machine: judge it there")
        if again:
            again = None
            console.print("note: the run is of another machine: nothing is measured again", highlight=False)
    if update:
        cells = sharpened(run.cells, again) if again else run.cells
        made = baselines.baseline_of(cells.values(), run.machine)
        write_text(baseline, made.text())
        console.print(f"wrote {len(made.cells)} cells to {baseline}", highlight=False, markup=False)
        return 0
    expected = baselines.read(baseline)
    if not options.force:
        refuse_other_machine(baseline, expected.header, run.machine)
    notes = [*run.notes, *differences(expected.header, run.machine)]
    if fresh := [
        key for key, one in run.cells.items() if baselines.is_kept(one) and key not in expected.cells
    ]:
        notes.append(f"{len(fresh)} cells of the run are not in the baseline: --update would add them")
    beside = beside_base(run.cells, options) if options.base is not None else None
    findings = examine(expected, run.cells, options.threshold, again, beside)
    return gate_report.tell(findings, notes, console, left)


def examine(
    expected: Baseline,
    found: Mapping[Key, Timing],
    threshold: float,
    rerun: Rerun | None,
    beside: Beside | None = None,
) -> list[Finding]:
    """A finding for every cell of the baseline.

    Args:
        expected: the baseline.
        found: the run's cells.
        threshold: relative slowdown that is let pass.
        rerun: measures cells again, to be held against the baseline.
        beside: judges cells by measurements of base and head; without it nothing is called slower.
    """
    findings = {
        key: judge.judge(cell, found.get(key), threshold) for key, cell in sorted(expected.cells.items())
    }
    if beside is not None:
        return list(judge.confirmed(findings, beside).values())

    def judged_again(keys: Sequence[Key]) -> dict[Key, Finding]:
        assert rerun is not None
        return {key: judge.judge(expected.cells[key], one, threshold) for key, one in rerun(keys).items()}

    if rerun is not None:
        findings = judge.twice(findings, judged_again)
    return [judge.unconfirmed(finding) for finding in findings.values()]


def beside_base(found: Mapping[Key, Timing], options: GateOptions) -> Beside:
    """Judges cells of a run by measuring the base revision and the working tree interleaved.

    Raises:
        UsageError: no repository, no such revision, or one that cannot be measured.
    """
    assert options.base is not None
    base, repository = options.base, revisions.repository_here()
    revisions.commit_of(base, repository)
    kept = [name for (_, name), one in found.items() if baselines.is_kept(one)]
    revisions.check_implementations(list(dict.fromkeys(kept)), repository)

    def beside(keys: Sequence[Key]) -> dict[Key, Finding]:
        cells = {key: Case.from_fields(found[key].model_dump()) for key in keys}
        threads = next((found[key].threads for key in keys if found[key].threads), None)
        with revisions.sides(base, repository) as pair:
            return compare.beside(
                cells, pair, threads or default_threads(), options.threshold, RERUN_POLICY, count_work=False
            )

    return beside


def sharpened(found: Mapping[Key, Timing], rerun: Rerun) -> Mapping[Key, Timing]:
    """The cells, with those measured again whose ratios are too uncertain to hold later runs against."""
    blurred = [key for key, one in found.items() if baselines.is_kept(one) and judge.blur(one) > SHARP]
    again = rerun(blurred) if blurred else {}
    return {**found, **{key: one for key, one in again.items() if one.status == "ok"}}


def measure_again(found: Mapping[Key, Timing]) -> Rerun:
    """Measures cells of a run once more, each with the references it had.

    The processes are fresh, and serve all cells of one implementation.
    """

    def rerun(keys: Sequence[Key]) -> dict[Key, Timing]:
        again: dict[Key, Timing] = {}
        for impl in dict.fromkeys(impl for _, impl in keys):
            own = [key for key in keys if key[1] == impl]
            names = {key: [impl, *_references(found[key])] for key in own}
            threads = found[own[0]].threads or default_threads()
            together = dict.fromkeys(name for each in names.values() for name in each)
            with Engine.of_processes(together, threads, RERUN_PROCESSES) as engine:
                for key in own:
                    case = Case.from_fields(found[key].model_dump())
                    measured = engine.measure(dict.fromkeys(names[key], case), RERUN_POLICY)
                    limit = measured.pop(LIMIT, None)
                    again[key] = timings.timing_of(case, impl, measured, limit, threads)
        return again

    return rerun


def _references(timing: Timing) -> list[str]:
    """The references that a cell was measured beside."""
    return [name for name in timings.STEADY if timings.interval_of(timing, name)[0]]


def read_run(source: Path) -> GatedRun:
    """The records of a run directory or of a pytest-benchmark JSON.

    Raises:
        UsageError: neither, or nothing in it.
    """
    run = _read_directory(source) if source.is_dir() else _read_benchmark_json(source)
    if not run.cells:
        raise UsageError("; ".join([f"{source} holds no timing", *run.notes]))
    return run


def _by_key(cells: Sequence[Timing]) -> dict[Key, Timing]:
    return {(cell.case, cell.impl): cell for cell in cells}


def _read_directory(source: Path) -> GatedRun:
    directory = RunDirectory(source)
    cells = directory.read(Timing)
    measured_on = machine_of(directory.meta.machine.model_dump(), directory.meta.versions, cells)
    return GatedRun(_by_key(cells), measured_on, directory.remarks)


def _read_benchmark_json(source: Path) -> GatedRun:
    try:
        content = json.loads(source.read_text())
        notes = [benchmark["extra_info"] for benchmark in content["benchmarks"]]
        about = content["machine_info"]["zipfmax"]
        versions = about["versions"]
    except FileNotFoundError:
        raise UsageError(f"no run at {source}: expected a folder with {RUN_FILE}, or a JSON file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{source} cannot be read: {error}") from error
    except KeyError as error:
        raise UsageError(f"{source} is not a JSON of `pytest --benchmark`: {error} is missing") from error
    except TypeError as error:
        raise UsageError(f"{source} is not a JSON of `pytest --benchmark`") from error
    cells = [_noted(source, number, note) for number, note in enumerate(notes, start=1)]
    return GatedRun(_by_key(cells), machine_of(about, versions, cells), [])


def _noted(source: Path, number: int, note: Any) -> Timing:
    """The cell that a benchmark's `extra_info` holds, with whatever else was noted there."""
    try:
        return Timing.model_validate({name: note[name] for name in Timing.model_fields if name in note})
    except (TypeError, ValidationError) as error:
        fields = (
            [str(fault["loc"][0]) for fault in error.errors()] if isinstance(error, ValidationError) else []
        )
        wrong = ", ".join(fields) or "everything"
        raise UsageError(f"{source}: benchmark {number} is not a timing of zipfmax: see {wrong}") from error


def machine_of(
    about: Mapping[str, Any], versions: Mapping[str, Any], cells: Sequence[Timing]
) -> dict[str, Any]:
    """What figures depend on: the processor, the GPUs, the threads and the versions of what computes."""
    threads = sorted({cell.threads for cell in cells if cell.threads})
    return {
        "cpu": about.get("cpu"),
        "gpus": about.get("gpus"),
        "threads": threads[0] if len(threads) == 1 else threads,
        **{name: versions.get(name) for name in ("torch", "numpy", "triton")},
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What the baseline was measured on and the run was not."""
    return [
        f"the baseline has {name} {then.get(name)}, this run {value}"
        for name, value in now.items()
        if then.get(name) != value
    ]


def refuse_other_machine(file: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """See that a baseline was measured where the run was.

    Raises:
        UsageError: on another processor, GPU, number of threads or version of torch.
    """
    shared = {name: now.get(name) for name in DECISIVE}
    if wrong := differences(then, shared):
        raise UsageError(
            f"{file} says nothing of this run: {'; '.join(wrong)}. Make a baseline here by --update, measure two "
            "revisions by zipfmax compare, or judge by it anyway with --force"
        )


def _is_of_this_machine(run: GatedRun) -> bool:
    here = machine.describe()
    return all(run.machine[name] in (None, here[name]) for name in ("cpu", "gpus"))
