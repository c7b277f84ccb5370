"""`zipfmax plan`: counts from a file or a law, the planned cutoffs, and, where asked, their measured time."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from zipfmax import quality
from zipfmax.calibration import Calibration
from zipfmax.counts import LabelCounts
from zipfmax.errors import UsageError, unknown
from zipfmax.plan_code import plan_code
from zipfmax.planner import Plan, cost_models, plan_cutoffs
from zipfmax.steps import TASKS
from zipfmax_bench.engine import Engine, Measurement, SamplingPolicy
from zipfmax_bench.executors import WorkerProcess
from zipfmax_bench.presets import customary_cutoffs
from zipfmax_bench.threads import checked_threads, default_threads
from zipfmax_bench.timings import measured_ratio
from zipfmax_reference.console import print_table
from zipfmax_reference.runs import device, labels
from zipfmax_reference.runs.case import DTYPES, Case

ROUNDS = 9
MOST = 2**40
"""Of classes, width, rows and bounds: more than any machine holds."""
_RUN_LIMIT_S = 300.0


@dataclass(frozen=True)
class PlanOptions:
    """What the command was asked for."""

    labels: str
    classes: int | None
    features: int
    batch: int
    div_value: float = 4.0
    clusters: int | str = "auto"
    device: str = "cpu"
    dtype: str = "float32"
    task: str = "train"
    max_parameters: int | None = None
    max_memory: float | None = None
    """MiB of the layer's weights, and for training of their gradients and Adam's two moments as well."""
    min_projection: int | None = None
    """None for what the studies found."""
    min_shortlist_share: float | None = None
    """Likewise."""
    multiple: int | None = None
    threads: int | None = None
    calibrate: bool = False
    """Measure this machine, or take what was measured before, in place of the bundled cost model."""
    recalibrate: bool = False
    """Measure whatever is known."""
    world: tuple[int, ...] = ()
    """Numbers of ranks to predict a step over as well."""


def planned(options: PlanOptions, console: Console) -> tuple[Plan, Calibration]:
    """The plan, under the bundled cost model or under this machine's, which is measured where asked.

    Raises:
        UsageError: labels, counts or bounds that allow no plan, or a machine too slow to be measured in time.
    """
    _check(options)
    n_classes = options.classes or labels.vocabulary_size(options.labels)
    if n_classes is None:
        raise UsageError(f"labels {options.labels} need --classes: how many there are")
    counts = labels.distribution(options.labels, n_classes)
    torch.set_num_threads(options.threads or default_threads())
    measures = options.calibrate or options.recalibrate
    try:
        with Progress(
            TextColumn("measuring this machine's cost model"),
            BarColumn(),
            console=console,
            transient=True,
            disable=not measures,
        ) as progress:
            bar = progress.add_task("", total=1.0, visible=False)
            calibration, prior = cost_models(
                options.device,
                _dtype(options),
                options.task,
                calibrate=measures,
                refresh=options.recalibrate,
                on_sample=lambda share: progress.update(bar, completed=share, visible=True),
            )
        return _plan(counts, options, calibration, prior), calibration
    except (ValueError, ImportError, TimeoutError) as error:
        bound = f" (--max-memory {options.max_memory:g})" if options.max_memory is not None else ""
        raise UsageError(f"{error}{bound}") from error


def _dtype(options: PlanOptions) -> torch.dtype:
    if options.dtype not in DTYPES:
        raise UsageError(unknown("dtype", options.dtype, DTYPES))
    return cast(torch.dtype, getattr(torch, options.dtype))


def _check(options: PlanOptions) -> None:
    for name in ("classes", "features", "batch", "max_parameters", "max_memory"):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= MOST:
            allowed = "a positive number" if not value >= 1 else f"at most {MOST:,}"
            raise UsageError(f"--{name.replace('_', '-')} should be {allowed}, got {value}")
    checked_threads(options.threads)
    if options.task not in TASKS:
        raise UsageError(unknown("task", options.task, TASKS))
    asked = device.present if options.calibrate or options.recalibrate else device.named
    asked(options.device)


def _plan(
    counts: npt.ArrayLike, options: PlanOptions, calibration: Calibration, prior: Calibration | None = None
) -> Plan:
    return plan_cutoffs(
        counts,
        options.features,
        options.batch,
        options.div_value,
        options.clusters,
        max_parameters=_most_parameters(options),
        min_projection=options.min_projection,
        min_shortlist_share=options.min_shortlist_share,
        multiple=options.multiple,
        model=calibration,
        prior=prior,
    )


def _most_parameters(options: PlanOptions) -> int | None:
    """The bound on the layer's weights that the bounds on weights and on memory are."""
    if options.max_memory is None:
        return options.max_parameters
    tensors = 4 if options.task == "train" else 1
    fitting = int(options.max_memory * 2**20 / (tensors * _dtype(options).itemsize))
    return fitting if options.max_parameters is None else min(fitting, options.max_parameters)


def customary_plan(plan: Plan, calibration: Calibration, options: PlanOptions) -> Plan | None:
    """The plan whose shortlist holds as large a share of the labels as the literature's does.

    None where the plan holds it already, or the bounds leave no such plan.
    """
    if plan.layout.n_classes < 3:
        return None
    probabilities = plan.search.probabilities
    share = float(probabilities[: customary_cutoffs(plan.layout.n_classes)[0]].sum())
    if plan.occupancy[0] >= share:
        return None
    try:
        return _plan(probabilities, replace(options, min_shortlist_share=share), calibration)
    except ValueError:  # no cutoffs keep this and the other bounds
        return None


def record(
    plan: Plan, calibration: Calibration, options: PlanOptions, customary: Plan | None = None
) -> dict[str, Any]:
    """Plan, curve and calibration as JSON holds them; the figure is drawn from this.

    `customary` is `customary_plan`'s, kept as `customary_share`.
    """
    curve = {
        str(n_tails): [{"first_cutoff": first, "predicted_s": seconds} for first, seconds in points]
        for n_tails, points in plan.search.curve().items()
    }
    return {
        **plan.to_record(),
        "labels": options.labels,
        "task": options.task,
        "curve": curve,
        "customary_share": customary and customary.to_record(),
        "quality": quality.bundled().sentences(plan.layout),
        "calibration": {
            **calibration.identity,
            "median_error": calibration.model.error,
            "p90_error": calibration.p90_error,
            "held_out": calibration.held_out,
        },
    }


def measure(plan: Plan, options: PlanOptions, rounds: int = ROUNDS) -> dict[str, dict[str, Any]]:
    """The plan, the literature's cutoffs for that vocabulary and full softmax, timed in interleaved rounds.

    Each is a worker process of its own; one is asked at a time.

    Returns:
        For "plan", "literature" and "full": cutoffs, median_s, and speedup_vs_full with _low and _high.

    Raises:
        UsageError: a worker that could not do it, with its reason.
    """

    def case(cutoffs: tuple[int, ...]) -> Case:
        return Case(
            n_classes=plan.layout.n_classes,
            in_features=options.features,
            batch_size=options.batch,
            cutoffs=cutoffs,
            div_value=options.div_value,
            dtype=options.dtype,
            device=options.device,
            labels=options.labels,
            task=options.task,
        )

    literature = customary_cutoffs(plan.layout.n_classes)
    entries = {
        "plan": ("zipfmax", case(plan.cutoffs)),
        "literature": ("zipfmax", case(literature)),
        "full": ("full", case(plan.cutoffs)),
    }
    found = _race(entries, options.threads or default_threads(), rounds)
    result: dict[str, dict[str, Any]] = {}
    for name, (_, timed) in entries.items():
        ratio = measured_ratio(found["full"], found[name])
        result[name] = {
            "cutoffs": None if name == "full" else list(timed.cutoffs),
            "median_s": statistics.median(sample.seconds for sample in found[name].samples),
            "speedup_vs_full": ratio and ratio.estimate,
            "speedup_vs_full_low": ratio and ratio.low,
            "speedup_vs_full_high": ratio and ratio.high,
        }
    return result


def _race(entries: Mapping[str, tuple[str, Case]], threads: int, rounds: int) -> dict[str, Measurement]:
    """Each entry measured, in a process of its own."""
    policy = SamplingPolicy(rounds=rounds, budget_s=rounds * _RUN_LIMIT_S)
    workers = {
        name: [WorkerProcess(implementation, threads)] for name, (implementation, _) in entries.items()
    }
    with Engine(workers) as engine:
        subjects = {name: case for name, (_, case) in entries.items()}
        found = engine.measure(subjects, policy, count_work=False)
    for name, measurement in found.items():
        if not measurement.ok:
            raise UsageError(f"{name} could not be measured: {measurement.reason}")
    return found


def python_code(plan: Plan, options: PlanOptions) -> str:
    """The code that builds the planned layer for labels as their source has them.

    Raises:
        UsageError: the most frequent of labels that are not sorted, which are no labels 0 to n_classes - 1.
    """
    counts = label_counts(options)
    code = partial(plan_code, plan, device=options.device, dtype=_dtype(options))
    if counts is None or counts.are_sorted:
        return code()
    if plan.layout.n_classes < len(counts.values):
        raise UsageError(
            f"the labels of {options.labels} are not sorted, so the {plan.layout.n_classes:,} most frequent of "
            "them are not the first: leave --classes out, or sort them"
        )
    return code(counts=labels.expression(options.labels), counts_import=labels.IMPORT)


def label_counts(options: PlanOptions) -> LabelCounts | None:
    """The counts by label where they come from a file; None for a law."""
    form, _, argument = options.labels.partition(":")
    return labels.label_counts(argument) if form == "counts" else None


def counts_sentence(counts: LabelCounts) -> str:
    """What was read, and how."""
    return (
        f"Counts read as {counts.format}{' (a guess; --counts-format overrides it)' if counts.guessed else ''}: "
        f"{len(counts.values):,} labels, {counts.values.sum():,.0f} counted; the labels are {counts.labels}, "
        f"{'sorted' if counts.are_sorted else 'not sorted'} by falling frequency."
    )


def plan_table(plan: Plan, customary: Plan | None = None) -> Table:
    """The cheapest cutoffs of each number of tails, the plan, and those of a customary shortlist."""
    table = Table(title="Cheapest cutoffs for each number of tails, as predicted")
    for heading in ("tails", "cutoffs", "shortlist", "ms", "speedup", ""):
        table.add_column(heading, justify="left" if heading in ("cutoffs", "") else "right")

    def add(cutoffs: tuple[int, ...], seconds: float, note: str) -> None:
        table.add_row(
            str(len(cutoffs)),
            ", ".join(map(str, cutoffs)),
            f"{plan.search.probabilities[: cutoffs[0]].sum():.1%}",
            f"{seconds * 1e3:.2f}",
            f"{plan.full_s / seconds:.2f}x",
            note,
        )

    for cutoffs, seconds in plan.by_clusters:
        add(cutoffs, seconds, "cheapest" if seconds == min(cost for _, cost in plan.by_clusters) else "")
    add(plan.cutoffs, plan.predicted_s, "the plan")
    if customary is not None:
        add(customary.cutoffs, customary.predicted_s, "customary")
    return table


def verdict(plan: Plan, calibration: Calibration, customary: Plan | None = None) -> list[str]:
    """The plan in sentences."""
    shares = ", ".join(f"{share:.1%}" for share in plan.occupancy)
    sentences = [
        f"Full softmax is the better choice here: predicted {plan.full_s * 1e3:.2f} ms a step, against "
        f"{plan.predicted_s * 1e3:.2f} ms with the planned cutoffs."
        if plan.full_is_better
        else f"Predicted {plan.predicted_s * 1e3:.2f} ms a step, full softmax {plan.full_s * 1e3:.2f} ms: "
        f"{plan.predicted_speedup:.1f}x faster.",
        f"Labels in the shortlist and the tails: {shares}. "
        f"Weights: {plan.parameters:,}, full softmax {plan.full_parameters:,}.",
        f"The cheapest cutoffs are predicted {plan.predicted_s / plan.search.least_s() - 1:.1%} faster, within "
        "what the model cannot tell apart: the plan has fewer tails or rounder cutoffs. "
        f"A quarter lower or higher in one cutoff changes its time by {_neighbour_range(plan)}.",
        f"Cost model {plan.source}. It was off by {calibration.model.error:.0%} in the median and "
        f"{calibration.p90_error:.0%} at the 90th percentile on {calibration.held_out} steps held out.",
    ]
    if plan.unseen:
        sentences.append(
            f"{plan.unseen:,} classes have count 0: they rank last, in the last tail, and are never expected."
        )
    if not plan.full_is_better:
        sentences += quality.bundled().sentences(plan.layout)
    if customary is not None and not plan.full_is_better:
        widths = [tail.projection_size for tail in plan.layout]
        sentences.append(
            "Within its bounds a plan weighs only time. "
            f"Labels outside the shortlist are scored in {_and(widths)} dimensions, which "
            "may cost perplexity. Where that matters, keep more in the shortlist: the literature's "
            f"cutoffs hold {customary.occupancy[0]:.0%}, which takes "
            f"{customary.predicted_s / plan.predicted_s:.1f} times as long (customary, "
            f"--min-shortlist-share {customary.occupancy[0]:.2f}); or bound the width (--min-projection)."
        )
    return sentences


def _and(numbers: Sequence[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last


def _neighbour_range(plan: Plan) -> str:
    extra = [seconds / plan.predicted_s - 1 for _, seconds in plan.neighbours]
    return f"{min(extra):+.1%} to {max(extra):+.1%}" if extra else "nothing: there is no other partition"


def run(
    options: PlanOptions, *, as_json: bool, measured: bool, python: bool, console: Console
) -> dict[str, Any]:
    """Plan, print, and return the record."""
    plan, calibration = planned(options, console)
    counts = label_counts(options)
    if counts is not None:
        console.print(counts_sentence(counts), highlight=False)
    code = python_code(plan, options)
    customary = customary_plan(plan, calibration, options)
    result = record(plan, calibration, options, customary)
    if measured:
        result["measured"] = measure(plan, options)
    if options.world:
        from zipfmax_bench import rank_planning  # torch.distributed.tensor takes seconds to import

        result["over_ranks"] = rank_planning.over_ranks(
            plan, calibration, options.world, options.dtype, options.device, options.task
        )
    if as_json:
        print(json.dumps({**result, "code": code}, indent=1))
    elif python:
        print(code)
    else:
        print_table(console, plan_table(plan, customary))
        for sentence in verdict(plan, calibration, customary):
            console.print(sentence, highlight=False)
        if options.world:
            rank_planning.show(result["over_ranks"], console)
        for name, line in result.get("measured", {}).items():
            low, high = line["speedup_vs_full_low"], line["speedup_vs_full_high"]
            interval = f"{line['speedup_vs_full']:.2f}x full softmax [{low:.2f}, {high:.2f}]"
            console.print(f"measured {name}: {line['median_s'] * 1e3:.2f} ms, {interval}", highlight=False)
        console.print(code, highlight=False, soft_wrap=True)
    return result
