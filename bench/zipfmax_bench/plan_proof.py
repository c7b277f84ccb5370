"""`python -m zipfmax_bench.plan_proof`: planned cutoffs against the best that a brute-force search finds.

For each label distribution and shape every partition of a coarse geometric grid is timed on one batch, by
successive halving: all of them once, the fastest few again and again with fresh samples. Then the winner, the
plan and the literature's cutoffs meet on batches that chose none of them, in interleaved rounds, so neither a
lucky sample, nor a batch that spares a cluster, nor a drift of the machine decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, combinations, groupby, product
from pathlib import Path
from statistics import fmean
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import track
from rich.table import Table

from zipfmax.calibration import Calibration
from zipfmax.clusters import ClusterLayout
from zipfmax.planner import cost_models, plan_cutoffs
from zipfmax.steps import FullTrial, StepTimer, Trial
from zipfmax_bench.presets import customary_cutoffs
from zipfmax_bench.threads import default_threads
from zipfmax_reference.console import print_table, terminal
from zipfmax_reference.records import PlanProof
from zipfmax_reference.runs import labels as label_distributions

LABELS = (
    *(f"zipf:{exponent}" for exponent in (0.6, 0.8, 1.0, 1.2, 1.5)),
    *(f"wordfreq:{language}" for language in ("en", "de", "fr", "es", "ru")),
    "uniform",
)
# (n_classes, in_features, batch_size)
SHAPES = ((10_000, 256, 512), (50_000, 512, 1024), (100_000, 256, 2048))

MOST_TAILS = 4
FINEST = 10
"""The grid's cutoffs are n_classes over 2, 4, ..., 2**FINEST."""
HALVING = ((16, 2), (5, 5))
"""How many of the fastest partitions are timed again, and in how many rounds."""
FINAL_BATCHES, FINAL_ROUNDS = 6, 2
"""Fresh batches on which the finalists meet, and how many rounds on each; the batches' mean counts."""
HOPELESS = 1.1
"""Partitions of which only the head takes longer than this times the fastest step so far are not tried."""

# What a plan is held to.
MEDIAN_EXCESS, WORST_EXCESS = 0.05, 0.15
WORST_AGAINST_LITERATURE = 1 / 1.03


class ProofOutcome(PlanProof):
    """The record of one distribution and shape, and what follows from its times."""

    @property
    def excess(self) -> float:
        """Time of the plan beyond the best of the grid, as a share; negative where the plan is faster."""
        return self.plan_s / self.best_s - 1

    @property
    def gain(self) -> float:
        """Time of the literature's cutoffs over that of the plan."""
        return self.literature_s / self.plan_s

    @property
    def full_is_faster(self) -> bool:
        """Whether full softmax was measured to be faster than the plan."""
        return self.full_s < self.plan_s

    @property
    def says_full(self) -> bool:
        """Whether the plan says that full softmax is the better choice."""
        return self.full_predicted_s <= self.predicted_s


def grid(n_classes: int) -> Iterator[tuple[int, ...]]:
    """Every partition in up to `MOST_TAILS` tails of the grid's cutoffs, smallest shortlists first."""
    ranks = sorted({n_classes >> power for power in range(1, FINEST + 1)} - {0})
    partitions = [cutoffs for tails in range(1, MOST_TAILS + 1) for cutoffs in combinations(ranks, tails)]
    yield from sorted(partitions)


class Prover:
    """Compares plans with searches on this machine."""

    def __init__(self, timer: StepTimer, calibration: Calibration, task: str) -> None:
        self._timer, self._calibration, self._task = timer, calibration, task
        self._full_s: dict[FullTrial, float] = {}

    def prove(self, labels: str, name: str, shape: tuple[int, int, int]) -> ProofOutcome:
        """Plan and search for one distribution, recorded under the name, and one shape."""
        n_classes, in_features, batch_size = shape
        probabilities = label_distributions.distribution(labels, n_classes)
        # Without the bounds that keep quality, which the search does not have either.
        plan = plan_cutoffs(
            probabilities,
            in_features,
            batch_size,
            min_projection=1,
            min_shortlist_share=0.0,
            model=self._calibration,
        )
        literature = customary_cutoffs(n_classes)
        batches = [
            label_distributions.draw(probabilities, batch_size, np.random.default_rng(seed))
            for seed in range(1 + FINAL_BATCHES)
        ]

        def trial(cutoffs: Sequence[int], batch: int) -> Trial:
            layout = ClusterLayout(in_features, n_classes, tuple(cutoffs))
            rows = np.bincount(layout.parts(batches[batch]), minlength=1 + layout.n_clusters)
            return Trial(layout, tuple(rows.tolist()))

        searched = self._search([trial(cutoffs, 0) for cutoffs in grid(n_classes)])
        best = self._halve(searched).layout.cutoffs
        finals = {
            cutoffs: [trial(cutoffs, batch) for batch in range(1, 1 + FINAL_BATCHES)]
            for cutoffs in (plan.cutoffs, best, literature)
        }
        by_trial = self._timer.medians(
            list(dict.fromkeys(chain(*finals.values()))), lambda rounds: rounds == FINAL_ROUNDS
        )
        seconds = {cutoffs: fmean(by_trial[one] for one in own) for cutoffs, own in finals.items()}
        return ProofOutcome(
            labels=name,
            n_classes=n_classes,
            in_features=in_features,
            batch_size=batch_size,
            task=self._task,
            plan=list(plan.cutoffs),
            predicted_s=plan.predicted_s,
            plan_s=seconds[plan.cutoffs],
            best=list(best),
            best_s=seconds[best],
            tried=len(searched),
            literature=list(literature),
            literature_s=seconds[literature],
            full_predicted_s=plan.full_s,
            full_s=self._full(FullTrial(batch_size, in_features, n_classes)),
            machine=self._calibration.identity,
        )

    def _search(self, trials: Sequence[Trial]) -> dict[Trial, float]:
        """A sample of each trial, but for those of which only the head is slower than the fastest step.

        A step does all that its head does, so no partition that is left out can be the best.
        """
        found: dict[Trial, float] = {}
        for shortlist, group in groupby(trials, key=lambda trial: trial.layout.shortlist_size):
            members = list(group)
            alone = _head_alone(members[0], shortlist)
            head_s = self._timer.medians([alone], lambda rounds: rounds == 1)[alone]
            if found and head_s > HOPELESS * min(found.values()):
                continue
            seconds = self._timer.medians(members, lambda rounds: rounds == 1, samples_a_round=1)
            found |= {trial: seconds[trial] for trial in members}
        return found

    def _halve(self, seconds: dict[Trial, float]) -> Trial:
        for count, rounds in HALVING:
            fastest = sorted(seconds, key=seconds.__getitem__)[:count]
            fresh = self._timer.medians(fastest, lambda done, rounds=rounds: done == rounds)  # type: ignore[misc]
            seconds = {trial: fresh[trial] for trial in fastest}
        return min(seconds, key=seconds.__getitem__)

    def _full(self, trial: FullTrial) -> float:
        """Full softmax knows no partition: one measurement a shape."""
        if trial not in self._full_s:
            self._full_s |= {trial: self._timer.medians([trial], lambda rounds: rounds == 2)[trial]}
        return self._full_s[trial]


def _head_alone(trial: Trial, shortlist: int) -> Trial:
    layout = ClusterLayout(trial.layout.in_features, shortlist + 1, (shortlist,))
    return Trial(layout, (trial.batch_size, 0))


def outcome_table(outcomes: Sequence[ProofOutcome]) -> Table:
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
        "best of the grid",
        "best ms",
        "excess",
        "literature ms",
        "gain",
        "full ms",
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
            f"{one.literature_s * 1e3:.2f}",
            f"{one.gain:.2f}x",
            f"{one.full_s * 1e3:.1f}" + (" (faster)" if one.full_is_faster else ""),
        )
    return table


def claims(outcomes: Sequence[ProofOutcome]) -> list[tuple[bool, str]]:
    """What a plan is held to, each with whether it holds."""
    excess = [one.excess for one in outcomes]
    gain = [one.gain for one in outcomes]
    judged = sum(one.says_full == one.full_is_faster for one in outcomes)
    return [
        (
            float(np.median(excess)) <= MEDIAN_EXCESS and max(excess) <= WORST_EXCESS,
            f"Against the best of the grid the plan takes {np.median(excess):+.1%} in the median and "
            f"{max(excess):+.1%} at worst (at most +5% and +15% wanted).",
        ),
        (
            float(np.median(gain)) > 1 and min(gain) >= WORST_AGAINST_LITERATURE,
            f"Against the literature's cutoffs it is {np.median(gain):.2f}x as fast in the median and "
            f"{min(gain):.2f}x at worst (more than 1x and at least 0.97x wanted).",
        ),
        (
            judged == len(outcomes),
            f"Whether full softmax is the better choice the plan says rightly in {judged} of {len(outcomes)} "
            f"cells; it was the better one in {sum(one.full_is_faster for one in outcomes)}.",
        ),
    ]


def read(path: Path) -> list[ProofOutcome]:
    """The outcomes of a file; a line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [ProofOutcome.model_validate_json(line) for line in lines]


def main(
    counts: Annotated[Path | None, typer.Option(help="One more distribution: a text or counts.")] = None,
    task: Annotated[str, typer.Option(help="train or forward.")] = "train",
    out: Annotated[
        Path | None,
        typer.Option(help="A file for the outcomes, one JSON object a line; cells in it are not done again."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="By default all cores.")] = None,
) -> None:
    """Compare planned cutoffs with a measured brute-force search, over distributions and shapes."""
    torch.set_num_threads(threads or default_threads())
    outcomes = [] if out is None else read(out)
    if out is not None and outcomes:
        out.write_text("".join(_line(outcome) for outcome in outcomes))  # without a line that was cut short
    done = {(one.labels, one.n_classes, one.in_features, one.batch_size, one.task) for one in outcomes}
    names = {labels: labels for labels in LABELS}
    if counts is not None:
        names[f"counts:{counts}"] = f"counts:{counts.name}"
    console = terminal()
    prover = Prover(StepTimer(torch.device("cpu"), torch.float32, task), cost_models(task=task)[0], task)
    cells = list(product(names, SHAPES))
    for labels, (n_classes, *rest) in track(cells, description="comparing", console=console):
        own_size = label_distributions.vocabulary_size(labels)
        shape = (min(n_classes, own_size or n_classes), rest[0], rest[1])
        if (names[labels], *shape, task) in done:
            continue
        outcomes.append(prover.prove(labels, names[labels], shape))
        if out is not None:
            with out.open("a") as file:
                file.write(_line(outcomes[-1]))
    print_table(console, outcome_table(outcomes))
    judged = claims(outcomes)
    for holds, sentence in judged:
        console.print("holds " if holds else "FAILS ", sentence, highlight=False, sep="")
    raise typer.Exit(0 if all(holds for holds, _ in judged) else 1)


def _line(outcome: ProofOutcome) -> str:
    return outcome.model_dump_json() + "\n"


if __name__ == "__main__":
    typer.run(main)
