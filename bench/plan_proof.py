"""`python -m zipfmax.bench.plan_proof`: planned cutoffs against the best that a brute-force search finds.

For each label distribution and shape, every partition of a coarse geometric grid is timed, then the fastest
few of them, the plan and the literature's cutoffs again, with fresh samples in interleaved rounds: so neither
a lucky sample nor a drift of the machine decides which is best.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from zipfmax.bench.coordinator import usable_cores
from zipfmax.bench.presets import customary_cutoffs
from zipfmax.calibration import calibrated
from zipfmax.clusters import ClusterLayout
from zipfmax.planner import plan_cutoffs
from zipfmax.reference import labels as label_distributions
from zipfmax.steps import StepTimer, Trial

LABELS = (
    *(f"zipf:{exponent}" for exponent in (0.6, 0.8, 1.0, 1.2, 1.5)),
    *(f"wordfreq:{language}" for language in ("en", "de", "fr", "es", "ru")),
    "uniform",
)
# (n_classes, in_features, batch_size)
SHAPES = ((10_000, 256, 512), (50_000, 512, 1024), (100_000, 256, 2048))
FINALISTS = 8
ROUNDS = 5


@dataclass(frozen=True)
class Outcome:
    """One distribution and shape: what the plan, the best of the grid and the literature's cutoffs took."""

    labels: str
    n_classes: int
    in_features: int
    batch_size: int
    plan: tuple[int, ...]
    predicted_s: float
    plan_s: float
    best: tuple[int, ...]
    best_s: float
    literature: tuple[int, ...]
    literature_s: float

    @property
    def excess(self) -> float:
        """Time of the plan beyond the best of the grid, as a share; negative where the plan is faster."""
        return self.plan_s / self.best_s - 1

    @property
    def gain(self) -> float:
        """Time of the literature's cutoffs over that of the plan."""
        return self.literature_s / self.plan_s


def grid(n_classes: int) -> Iterator[tuple[int, ...]]:
    """Every partition in up to three tails whose cutoffs are n_classes over a power of two down to 2**9."""
    ranks = sorted({n_classes >> power for power in range(1, 10)} - {0})
    for tails in (1, 2, 3):
        yield from combinations(ranks, tails)


def prove(labels: str, shape: tuple[int, int, int], timer: StepTimer, task: str) -> Outcome:
    """Plan and search for one distribution and shape."""
    n_classes, in_features, batch_size = shape
    probabilities = label_distributions.distribution(labels, n_classes)
    plan = plan_cutoffs(probabilities, in_features, batch_size, task=task)
    literature = customary_cutoffs(n_classes)
    drawn = label_distributions.draw(probabilities, batch_size, np.random.default_rng(0))

    def trial(cutoffs: Sequence[int]) -> Trial:
        layout = ClusterLayout(in_features, n_classes, tuple(cutoffs))
        rows = np.bincount(layout.parts(drawn), minlength=1 + layout.n_clusters)
        return Trial(layout, tuple(rows.tolist()))

    searched = timer.medians([trial(cutoffs) for cutoffs in grid(n_classes)], lambda rounds: rounds == 1)
    finalists = sorted(searched, key=searched.__getitem__)[:FINALISTS]
    own = [trial(plan.cutoffs), trial(literature)]
    seconds = timer.medians(list(dict.fromkeys([*own, *finalists])), lambda rounds: rounds == ROUNDS)
    best = min(finalists, key=seconds.__getitem__)
    assert isinstance(best, Trial)
    return Outcome(
        labels=labels,
        n_classes=n_classes,
        in_features=in_features,
        batch_size=batch_size,
        plan=plan.cutoffs,
        predicted_s=plan.predicted_s,
        plan_s=seconds[own[0]],
        best=best.layout.cutoffs,
        best_s=seconds[best],
        literature=literature,
        literature_s=seconds[own[1]],
    )


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """One line an outcome."""
    table = Table(title="Planned cutoffs, the best of a brute-force grid, and the literature's, in ms")
    for heading in (
        "labels",
        "V",
        "d",
        "N",
        "plan",
        "predicted",
        "plan ms",
        "best",
        "best ms",
        "excess",
        "gain",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in outcomes:
        table.add_row(
            one.labels,
            f"{one.n_classes:,}",
            str(one.in_features),
            str(one.batch_size),
            ",".join(map(str, one.plan)),
            f"{one.predicted_s * 1e3:.2f}",
            f"{one.plan_s * 1e3:.2f}",
            ",".join(map(str, one.best)),
            f"{one.best_s * 1e3:.2f}",
            f"{one.excess:+.1%}",
            f"{one.gain:.2f}x",
        )
    return table


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """What the outcomes say together."""
    excess = [one.excess for one in outcomes]
    gain = [one.gain for one in outcomes]
    errors = [abs(one.predicted_s / one.plan_s - 1) for one in outcomes]
    return [
        f"Against the best of the grid: {np.median(excess):+.1%} in the median, {max(excess):+.1%} at worst.",
        f"Against the literature's cutoffs: {np.median(gain):.2f}x faster in the median, "
        f"{min(gain):.2f}x at worst.",
        f"Predicted against measured: {np.median(errors):.1%} off in the median.",
    ]


def main(
    counts: Annotated[Path | None, typer.Option(help="One more distribution: a text or counts.")] = None,
    task: Annotated[str, typer.Option(help="train or forward.")] = "train",
    out: Annotated[Path | None, typer.Option(help="A file for the outcomes, one JSON object a line.")] = None,
    threads: Annotated[int | None, typer.Option(help="By default all cores.")] = None,
) -> None:
    """Compare planned cutoffs with a measured brute-force search, over distributions and shapes."""
    torch.set_num_threads(threads or usable_cores())
    distributions = [*LABELS, *([f"counts:{counts}"] if counts else [])]
    calibrated(task=task)  # measured now if it was not, not within the first comparison
    timer = StepTimer(torch.device("cpu"), torch.float32, task)
    console = Console()
    outcomes = []
    cells = list(product(distributions, SHAPES))
    for labels, (n_classes, *rest) in track(cells, description="comparing", console=console):
        own_size = label_distributions.vocabulary_size(labels)
        shape = (min(n_classes, own_size or n_classes), rest[0], rest[1])
        outcomes.append(prove(labels, shape, timer, task))
        if out is not None:
            with out.open("a") as file:
                file.write(json.dumps(asdict(outcomes[-1])) + "\n")
    console.print(outcome_table(outcomes))
    for line in summary(outcomes):
        console.print(line, highlight=False)


if __name__ == "__main__":
    typer.run(main)
