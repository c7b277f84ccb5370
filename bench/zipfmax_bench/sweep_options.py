"""From the choices of the command line to a plan: which cells, how thoroughly, and where to record them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch

from zipfmax.errors import UsageError
from zipfmax_bench import planning, presets
from zipfmax_bench.engine import SamplingPolicy
from zipfmax_bench.threads import checked_threads, default_threads
from zipfmax_reference.console import terminal
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.sources import digests
from zipfmax_reference.records import RUN_FILE, Plan, RunDirectory
from zipfmax_reference.runs import device
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.invocation import invocation

# The choices are kept under this name in `run.json`: a parity run may share the directory.
COMMAND = "sweep"
MOST_PROCESSES = 256
"""Replicates of one implementation, each a process that imports torch."""
PLANNED = "plan"
"""In place of a partition: the planner's own, for each case."""


@dataclass(frozen=True)
class SweepOptions:
    """What a user chose; None or () leaves it to the preset, or with `resume` to the interrupted run."""

    preset: str | None = None
    impl: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    cutoffs: tuple[str, ...] = ()
    features: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    div_value: tuple[float, ...] = ()
    dtype: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    logit_std: tuple[float, ...] = ()
    device: str | None = None
    seed: int | None = None
    threads: int | None = None
    processes: int | None = None
    rounds: int | None = None
    precision: str | None = None
    budget: float | None = None
    replay: bool | None = None

    def over(self, recorded: Mapping[str, Any]) -> Self:
        """These choices, and where there is none the recorded one."""
        merged: dict[str, Any] = {}
        for field in fields(self):
            own = getattr(self, field.name)
            value = recorded.get(field.name, own) if own in (None, ()) else own
            merged[field.name] = tuple(value) if isinstance(value, list) else value
        return type(self)(**merged)


@dataclass(frozen=True)
class ResolvedSweep:
    """A sweep to run."""

    cases: Sequence[Case]
    implementations: Sequence[str]
    policy: SamplingPolicy
    threads: int
    processes: int
    directory: RunDirectory


_IMPORTED = 77
"""Status of the process that imported a user's class; 0 is what a file gives that exits at import."""


def require(name: str) -> None:
    """Raise unless there is such an implementation; a user's class is imported by another process.

    Raises:
        UsageError: unknown name, or a class that cannot be found or imported.
    """
    if registry.runs_code_of_others(name):
        program = "import sys; from zipfmax_reference.contestants import registry as r\n"
        program += "try: r.implementation(sys.argv[1])\nexcept r.UsageError as error: sys.exit(str(error))\n"
        program += "sys.exit(int(sys.argv[2]))"
        command = [sys.executable, "-P", "-c", program, name, str(_IMPORTED)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode != _IMPORTED:
            said = done.stderr.strip().splitlines()
            ended = f"its process ended with status {done.returncode}"
            raise UsageError(
                said[-1] if done.returncode == 1 and said else f"{name} cannot be imported: {ended}"
            )
    else:
        registry.implementation(name)


def resolve(options: SweepOptions, out: Path | None, resume: bool, shared: bool = False) -> ResolvedSweep:
    """Check the choices, and only then make the run directory; `shared` as `RunDirectory.start` takes it.

    Raises:
        UsageError: a choice that does not exist, or a folder that cannot be used.
    """
    if resume and out is None:
        raise UsageError("--resume needs --out: the run directory to go on with")
    if resume and out is not None and (out / RUN_FILE).exists():
        options = options.over(_recorded(RunDirectory(out)))
    check_numbers(options)
    axes = presets.axes(
        "quick" if options.preset is None else options.preset,
        classes=options.classes,
        labels=options.labels,
        tasks=options.task,
        implementations=options.impl,
        cutoffs=tuple(presets.parse_cutoffs(text) for text in options.cutoffs if text != PLANNED),
        features=options.features,
        batch=options.batch,
        div_value=options.div_value,
        dtypes=options.dtype,
        logit_std=options.logit_std,
        device=chosen_device(options.device or presets.device(options.preset)),
        seed=options.seed,
    )
    if options.replay and not axes.device.startswith("cuda"):
        raise UsageError("--replay times replays of CUDA graphs: it needs --device cuda")
    for name in axes.implementations:
        require(name)
    given = presets.cases(axes)
    policy = replace(
        axes.policy,
        rounds=options.rounds,
        precision=_precision(options.precision),
        budget_s=options.budget or axes.policy.budget_s,
        replay=options.replay or axes.policy.replay,
    )
    called = invocation({COMMAND: asdict(options)}, sources=digests(axes.implementations, axes.labels))
    directory = RunDirectory.start(out or default_path(), called, resume, shared)
    cases: list[Case] = []
    if PLANNED not in options.cutoffs or len(options.cutoffs) > 1:
        cases += given
    if PLANNED in options.cutoffs:
        cases += planned_cases(presets.cases(replace(axes, cutoffs=())), directory, options.threads)
    return ResolvedSweep(
        cases=cases,
        implementations=axes.implementations,
        policy=policy,
        threads=options.threads or default_threads(),
        processes=options.processes or 1,
        directory=directory,
    )


def default_path() -> Path:
    """A new folder in runs/."""
    return Path("runs") / f"sweep-{time.strftime('%Y%m%d-%H%M%S')}"


def chosen_device(chosen: str | None) -> str:
    """The device that was named, or a GPU where there is one.

    Raises:
        UsageError: a device that is not there.
    """
    if chosen is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device.present(chosen)


def _precision(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise UsageError(f"--precision should be a share such as 2% or 0.02, got {text!r}")
    return value


def planned_cases(cases: Sequence[Case], directory: RunDirectory, threads: int | None) -> list[Case]:
    """The cases with the planner's cutoffs in place of theirs.

    Each plan is a line of `plans.jsonl`, which a resumed sweep uses again: a new calibration could plan
    otherwise.
    """
    known = {plan.planned_for: tuple(plan.cutoffs) for plan in directory.read(Plan)}
    planned = []
    for case in cases:
        if case.id not in known:
            options = planning.PlanOptions(
                labels=case.labels,
                classes=case.n_classes,
                features=case.in_features,
                batch=case.batch_size,
                div_value=case.div_value,
                device=case.device,
                dtype=case.dtype,
                task=case.task,
                threads=threads,
            )
            plan, calibration = planning.planned(options, terminal(stderr=True))
            known[case.id] = tuple(plan.cutoffs)
            line = planning.record(plan, calibration, options)
            its_case = replace(case, cutoffs=known[case.id])
            directory.write(Plan(**line, case=its_case.id, planned_for=case.id))
        planned.append(replace(case, cutoffs=known[case.id]))
    return planned


def _recorded(directory: RunDirectory) -> Mapping[str, Any]:
    """Choices of the latest sweep that the directory holds; none if it holds no sweep."""
    for run in reversed([directory.meta, *directory.meta.resumed]):
        if COMMAND in run.arguments:
            choices: Mapping[str, Any] = run.arguments[COMMAND]
            return choices
    return {}


def check_numbers(options: SweepOptions) -> None:
    """Raise UsageError for a number that no sweep has, and for two that say the same thing."""
    for name in ("classes", "features", "batch", "processes", "rounds", "budget"):
        value = getattr(options, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not 0 < number < float("inf"):
                raise UsageError(f"--{name} should be a positive number, got {number}")
    checked_threads(options.threads)
    if (options.processes or 1) > MOST_PROCESSES:
        raise UsageError(f"--processes should be at most {MOST_PROCESSES}, got {options.processes}")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed should be from 0 to 2**63 - 1, got {options.seed}")
    if options.rounds is not None and options.precision is not None:
        raise UsageError("--rounds and --precision exclude each other: both say how long to go on")
