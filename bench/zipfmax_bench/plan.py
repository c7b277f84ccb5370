"""From the choices of the command line to a plan: which cells, how thoroughly, and where to record them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Console

from zipfmax.errors import UsageError
from zipfmax_bench import cutoffs, presets
from zipfmax_bench.coordinator import Effort, usable_cores
from zipfmax_reference.contestants import registry
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.rundir import RUN_FILE, RunDirectory, default_path

# The choices are kept under this name in `run.json`: a parity run may share the directory.
COMMAND = "sweep"
PLANNED = "plan"
"""In place of a partition: the planner's own, for each case."""


@dataclass(frozen=True)
class Options:
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
class Plan:
    """A sweep to run."""

    cases: Sequence[Case]
    implementations: Sequence[str]
    effort: Effort
    threads: int
    processes: int
    directory: RunDirectory


def make_plan(options: Options, out: Path | None, resume: bool) -> Plan:
    """Check the choices, and only then make the run directory.

    Raises:
        UsageError: a choice that does not exist, or a folder that cannot be used.
    """
    if resume and out is None:
        raise UsageError("--resume needs --out: the run directory to go on with")
    if resume and out is not None and (out / RUN_FILE).exists():
        options = options.over(_recorded(RunDirectory(out)))
    _check_positive(options)
    axes = presets.axes(
        options.preset or "quick",
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
        device=_device(options.device or presets.device(options.preset)),
        seed=options.seed,
    )
    for name in axes.implementations:
        registry.implementation(name)
    given = presets.cases(axes)
    directory = RunDirectory.create(out or default_path("sweep"), {COMMAND: asdict(options)}, resume)
    cases: list[Case] = []
    if PLANNED not in options.cutoffs or len(options.cutoffs) > 1:
        cases += given
    if PLANNED in options.cutoffs:
        cases += planned_cases(presets.cases(replace(axes, cutoffs=())), directory, options.threads)
    return Plan(
        cases=cases,
        implementations=axes.implementations,
        effort=replace(
            axes.effort,
            rounds=options.rounds,
            precision=_precision(options.precision),
            budget_s=options.budget or axes.effort.budget_s,
            replay=options.replay or axes.effort.replay,
        ),
        threads=options.threads or usable_cores(),
        processes=options.processes or 1,
        directory=directory,
    )


def _device(chosen: str | None) -> str:
    if chosen is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = chosen.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise UsageError(f"unknown device {chosen!r}; choose cpu, cuda or cuda:N")
    return chosen


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
    known = {line["planned_for"]: tuple(line["cutoffs"]) for line in directory.records("plans")}
    planned = []
    for case in cases:
        if case.id not in known:
            options = cutoffs.PlanOptions(
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
            plan, calibration = cutoffs.make_plan(options, Console(stderr=True))
            known[case.id] = tuple(plan.cutoffs)
            line = cutoffs.record(plan, calibration, options)
            its_case = replace(case, cutoffs=known[case.id])
            directory.append("plans", line | {"case": its_case.id, "planned_for": case.id})
        planned.append(replace(case, cutoffs=known[case.id]))
    return planned


def _recorded(directory: RunDirectory) -> Mapping[str, Any]:
    """Choices of the latest sweep that the directory holds; none if it holds no sweep."""
    runs = [directory.run, *directory.run.get("resumed", [])]
    for run in reversed(runs):
        if COMMAND in run.get("arguments", {}):
            choices: Mapping[str, Any] = run["arguments"][COMMAND]
            return choices
    return {}


def _check_positive(options: Options) -> None:
    for name in ("classes", "features", "batch", "threads", "processes", "rounds", "budget"):
        value = getattr(options, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not number > 0:
                raise UsageError(f"--{name} should be a positive number, got {number}")
