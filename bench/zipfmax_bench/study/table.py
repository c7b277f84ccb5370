"""What a study found so far, as the terminal shows it; the page says it in full."""

from __future__ import annotations

import math
import statistics

from rich.table import Table

from zipfmax_reference.records import RunDirectory, StudyLayer, StudyRun


def summary_table(directory: RunDirectory) -> Table:
    """A row a layer: the end of its runs, its step and its share of it."""
    table = Table(title="Validation perplexity at the end of training")
    for heading in ("layer", "perplexity", "seeds", "steps", "seconds", "step ms", "output layer's share"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    runs = [run for run in directory.latest(StudyRun) if run.status == "ok"]
    for layer in directory.latest(StudyLayer):
        own = [run for run in runs if run.layer == layer.layer]
        if not own:
            continue
        perplexities = [math.exp(run.valid_loss) for run in own if run.valid_loss is not None]
        table.add_row(
            layer.layer,
            _with_spread(perplexities),
            str(len(own)),
            f"{statistics.mean(run.n_steps for run in own):.0f}",
            f"{statistics.mean(run.seconds for run in own):.1f}",
            "" if layer.step_s is None else f"{layer.step_s * 1e3:.2f}",
            "" if layer.output_share is None else f"{layer.output_share:.0%}",
        )
    return table


def _with_spread(values: list[float]) -> str:
    middle = statistics.mean(values)
    return f"{middle:.2f}" if len(values) < 2 else f"{middle:.2f} ± {statistics.stdev(values):.2f}"
