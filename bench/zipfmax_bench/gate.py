"""`zipfmax gate`: does a run still do what the baseline says? Only confirmed findings fail it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zipfmax.errors import UsageError
from zipfmax_bench import baseline as baselines
from zipfmax_bench import gate_report, judge, timings
from zipfmax_bench.baseline import Baseline, Key
from zipfmax_bench.engine import Engine, SamplingPolicy
from zipfmax_bench.executors import usable_cores
from zipfmax_bench.messages import LIMIT
from zipfmax_reference.console import terminal
from zipfmax_reference.records import RUN_FILE, Finding, RunDirectory, Timing
from zipfmax_reference.records.files import check_writable, write_text
from zipfmax_reference.runs import machine
from zipfmax_reference.runs.case import Case

Rerun = Callable[[Sequence[Key]], Mapping[Key, Timing]]

# A confirmation is worth more samples than the finding it is to confirm.
RERUN_POLICY = SamplingPolicy(seconds=6.0, least=12, most=180)
RERUN_PROCESSES = 6
SHARP = 0.04
"""Half-width that a baseline's interval of a log-ratio may have; from a wider one 10 % are not told."""


@dataclass(frozen=True)
class GatedRun:
    """What a gate reads, whichever form it came in."""

    cells: Mapping[Key, Timing]
    machine: Mapping[str, Any]
    notes: Sequence[str]


def gate(
    source: Path,
    baseline: Path,
    *,
    update: bool = False,
    threshold: float = judge.THRESHOLD,
    rerun: bool = True,
    junit: Path | None = None,
    summary: Path | None = None,
) -> int:
    """Hold a run against a baseline, say what was found, and return the exit status.

    Args:
        source: a run directory, or the JSON of `pytest --benchmark --benchmark-json`.
        baseline: the file to hold it against, or with `update` to write.
        update: make the run the baseline.
        threshold: relative slowdown that is let pass.
        rerun: measure again, in fresh processes, what looks slower, to count it only if it does then too;
            what may be slower and has not been shown to be; and with `update` what is not known well
            enough. A run of another machine is judged as it is.
        junit, summary: files to write, JUnit XML and Markdown.

    Raises:
        UsageError: a run or a baseline that cannot be read, or files that cannot be written.
    """
    console = terminal()
    if not 0 <= threshold < 1:
        raise UsageError(f"--threshold should be a share between 0 and 1, got {threshold:g}")
    check_writable(junit, summary, baseline if update else None)
    run = read_run(source)
    for note in run.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    again = measure_again(run.cells) if rerun else None
    if again and not _is_of_this_machine(run):
        again = None
        console.print("note: the run is of another machine: nothing is measured again", highlight=False)
    if update:
        cells = sharpened(run.cells, again) if again else run.cells
        made = baselines.baseline_of(cells.values(), run.machine)
        write_text(baseline, made.text())
        console.print(f"wrote {len(made.cells)} cells to {baseline}", highlight=False, markup=False)
        return 0
    expected = baselines.read(baseline)
    notes = [*run.notes, *differences(expected.header, run.machine)]
    findings = examine(expected, run.cells, threshold, again)
    gate_report.show(findings, notes, console)
    if junit is not None:
        write_text(junit, gate_report.junit(findings))
    if summary is not None:
        write_text(summary, gate_report.summary(findings, notes))
    return 1 if any(finding.failed for finding in findings) else 0


def examine(
    expected: Baseline, found: Mapping[Key, Timing], threshold: float, rerun: Rerun | None
) -> list[Finding]:
    """A finding for every cell of the baseline; what is slower, or may be, has been measured again."""
    findings = {
        key: judge.judge(cell, found.get(key), threshold) for key, cell in sorted(expected.cells.items())
    }
    if rerun is None:
        return list(findings.values())

    def judged_again(keys: Sequence[Key]) -> dict[Key, Finding]:
        return {key: judge.judge(expected.cells[key], one, threshold) for key, one in rerun(keys).items()}

    return list(judge.twice(findings, judged_again).values())


def sharpened(found: Mapping[Key, Timing], rerun: Rerun) -> Mapping[Key, Timing]:
    """The cells, with those measured again whose ratios are too uncertain to hold later runs against."""
    blurred = [key for key, one in found.items() if baselines.is_kept(one) and judge.blur(one) > SHARP]
    again = rerun(blurred) if blurred else {}
    return {**found, **{key: one for key, one in again.items() if one.status == "ok"}}


def measure_again(found: Mapping[Key, Timing]) -> Rerun:
    """Measures cells of a run once more, each with the references it had, in fresh processes."""

    def rerun(keys: Sequence[Key]) -> dict[Key, Timing]:
        again: dict[Key, Timing] = {}
        for key in keys:
            first = found[key]
            case = Case.from_fields(first.model_dump())
            names = [key[1], *(name for name in timings.STEADY if timings.interval_of(first, name)[0])]
            threads = first.threads or usable_cores()
            with Engine.of_processes(names, threads, RERUN_PROCESSES) as engine:
                measured = engine.measure(dict.fromkeys(names, case), RERUN_POLICY)
            limit = measured.pop(LIMIT, None)
            again[key] = timings.timing_of(case, key[1], measured, limit, threads)
        return again

    return rerun


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


def _is_of_this_machine(run: GatedRun) -> bool:
    here = machine.describe()
    return all(run.machine[name] in (None, here[name]) for name in ("cpu", "gpus"))
