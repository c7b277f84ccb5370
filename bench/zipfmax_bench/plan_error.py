"""`python -m zipfmax_bench.plan_error`: how far a plan's predicted time is off, on cells that nobody fitted.

The distributions and shapes are others than those of `plan_proof`, which were looked at while the form of the
cost model was chosen, and none is among the steps of a calibration. Each planned step and full softmax of the
same shape are timed in interleaved rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import track
from rich.table import Table

from zipfmax.calibration import machine_identity
from zipfmax.planner import plan_cutoffs
from zipfmax.steps import FullTrial, StepTimer, Trial
from zipfmax_bench.threads import default_threads
from zipfmax_reference.console import print_table, terminal
from zipfmax_reference.records import PlanError
from zipfmax_reference.records.plan import errors
from zipfmax_reference.runs import labels as label_distributions

LABELS = (
    *(f"zipf:{exponent}" for exponent in (0.7, 0.9, 1.1, 1.35)),
    *(f"wordfreq:{language}" for language in ("it", "nl", "pl", "pt")),
)
# (n_classes, in_features, batch_size)
SHAPES = ((14_000, 128, 384), (33_000, 384, 768), (75_000, 320, 1536))
BATCHES, ROUNDS = 3, 2
"""Batches of labels, whose mean counts, and rounds of samples of each."""


def measured(
    labels: str, shape: tuple[int, int, int], task: str, dtype: torch.dtype, calibrate: bool
) -> PlanError:
    """One distribution and shape: planned, and timed."""
    n_classes, in_features, batch_size = shape
    probabilities = label_distributions.distribution(labels, n_classes)
    plan = plan_cutoffs(probabilities, in_features, batch_size, task=task, dtype=dtype, calibrate=calibrate)
    trials = []
    for seed in range(BATCHES):
        drawn = label_distributions.draw(probabilities, batch_size, np.random.default_rng(seed))
        rows = np.bincount(plan.layout.parts(drawn), minlength=1 + plan.layout.n_clusters)
        trials.append(Trial(plan.layout, tuple(rows.tolist())))
    full = FullTrial(batch_size, in_features, n_classes)
    device = torch.device("cpu")
    seconds = StepTimer(device, dtype, task).medians(
        [*dict.fromkeys(trials), full], lambda rounds: rounds == ROUNDS
    )
    return PlanError(
        labels=labels,
        n_classes=n_classes,
        in_features=in_features,
        batch_size=batch_size,
        task=task,
        dtype=str(dtype).removeprefix("torch."),
        cutoffs=list(plan.cutoffs),
        predicted_s=plan.predicted_s,
        measured_s=fmean(seconds[trial] for trial in trials),
        full_predicted_s=plan.full_s,
        full_s=seconds[full],
        source=plan.source,
        machine=machine_identity(device, dtype, task, "auto"),
    )


def error_table(records: Sequence[PlanError]) -> Table:
    """One line a cell."""
    table = Table(title="Predicted and measured time of planned steps, in ms")
    for heading in ("labels", "V", "d", "N", "plan", "predicted", "measured", "off by", "full, off by"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in records:
        table.add_row(
            one.labels,
            f"{one.n_classes:,}",
            str(one.in_features),
            str(one.batch_size),
            ",".join(map(str, one.cutoffs)),
            f"{one.predicted_s * 1e3:.2f}",
            f"{one.measured_s * 1e3:.2f}",
            f"{one.predicted_s / one.measured_s - 1:+.1%}",
            f"{one.full_predicted_s / one.full_s - 1:+.1%}",
        )
    return table


def main(
    task: Annotated[str, typer.Option(help="train or forward.")] = "train",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Plan with this machine's model, not the bundled one.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A file for the records, one JSON object a line.")] = None,
    threads: Annotated[int | None, typer.Option(help="By default all cores.")] = None,
) -> None:
    """Measure how far the predicted times of plans are off, on cells that took no part in the model."""
    torch.set_num_threads(threads or default_threads())
    console = terminal()
    records = [
        measured(labels, shape, task, getattr(torch, dtype), calibrate)
        for labels, shape in track(list(product(LABELS, SHAPES)), description="timing", console=console)
    ]
    if out is not None:
        out.write_text("".join(record.model_dump_json() + "\n" for record in records))
    print_table(console, error_table(records))
    median, p90 = errors([(one.predicted_s, one.measured_s) for one in records])
    full_median, full_p90 = errors([(one.full_predicted_s, one.full_s) for one in records])
    console.print(
        f"Planned steps: {median:.1%} off in the median, {p90:.1%} at the 90th percentile of {len(records)} "
        f"cells. Full softmax: {full_median:.1%} and {full_p90:.1%}.",
        highlight=False,
    )


if __name__ == "__main__":
    typer.run(main)
