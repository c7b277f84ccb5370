"""The steps that a calibration measures: heads, tails, whole layouts and full softmax, of drawn shapes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from zipfmax.clusters import ClusterLayout
from zipfmax.cost_model import TAIL_WIDTHS
from zipfmax.steps import FullTrial, Trial


@dataclass(frozen=True)
class Numbers:
    """How many layouts of each kind, and by what their rows are multiplied to make several trials of one."""

    heads: int
    tails_of_a_width: int
    wholes: int
    stacks: int
    full: int
    factors: tuple[float, ...]
    largest_head: int = 1 << 16
    """Classes, of full softmax too."""
    largest_tail: int = 1 << 18


# Together they take about half a minute on two quiet cores.
ON_CPU = Numbers(heads=16, tails_of_a_width=6, wholes=24, stacks=20, full=14, factors=(1.0,))
# Kernels are compiled for each layout, which takes seconds; most of them serve any number of rows.
ON_GPU = Numbers(
    heads=8,
    tails_of_a_width=3,
    wholes=12,
    stacks=8,
    full=14,
    factors=(0.25, 1.0, 4.0),
    largest_head=1 << 18,
    largest_tail=1 << 20,
)
WIDE_TAILS = (128, 256, 512)
MOST_PRODUCTS = 1e9
"""Multiply-adds of a trial's forward, so that one takes about a tenth of a second on a CPU. The head and full
softmax, whose rows are longer, may have twice as many."""
MOST_PRODUCTS_GPU = 128 * MOST_PRODUCTS
SMALLEST_BATCH = 256 * 128
"""Rows times width of the smallest batch of the trials."""


@dataclass(frozen=True)
class Trials:
    """Steps to fit a cost model to, and steps to try it on."""

    parts: list[Trial]
    """To fit head and tails to."""
    full: list[FullTrial]
    """To fit full softmax to."""
    held_out: list[Trial]
    """Layouts as users have them, none of them in `parts`."""

    @property
    def adaptive(self) -> list[Trial]:
        """All whose steps are adaptive softmax's."""
        return [*self.parts, *self.held_out]


def drawn(on_gpu: bool, most: float | None = None) -> Trials:
    """The same trials at each call; `most` is the largest number of multiply-adds of one forward."""
    if most is None:
        most = MOST_PRODUCTS_GPU if on_gpu else MOST_PRODUCTS
    chooser, numbers = random.Random(0), ON_GPU if on_gpu else ON_CPU
    parts = [
        *_head_trials(chooser, 2 * most, numbers),
        *_tail_trials(chooser, most, numbers),
        *_whole_trials(chooser, most, numbers.wholes),
        *_stack_trials(chooser, most, numbers.stacks),
    ]
    held_out = [trial for trial in _whole_trials(chooser, most, numbers.wholes) if trial not in parts]
    return Trials(
        _multiplied(parts, numbers.factors),
        _full_trials(chooser, 2 * most, numbers),
        _multiplied(held_out, numbers.factors),
    )


def _multiplied(trials: list[Trial], factors: tuple[float, ...]) -> list[Trial]:
    """Each layout with its rows multiplied by each factor; a part that has rows keeps at least one."""
    made = [
        replace(trial, rows=tuple(max(1, round(factor * n)) if n else 0 for n in trial.rows))
        for trial in trials
        for factor in factors
    ]
    return list(dict.fromkeys(made))


def _head_trials(chooser: random.Random, most: float, numbers: Numbers) -> list[Trial]:
    """Heads with a tail that no label is in, their shortlists spread evenly on a logarithmic axis."""
    trials = []
    for shortlist in _spread(
        chooser, numbers.heads, 1 << 3, min(numbers.largest_head, int(most / SMALLEST_BATCH))
    ):

        def trial(shortlist: int = shortlist) -> Trial:
            width, batch = _shape(chooser)
            return Trial(ClusterLayout(width, shortlist + 64, (shortlist,)), (batch, 0))

        trials.append(_affordable(trial, most))
    return trials


def _tail_trials(chooser: random.Random, most: float, numbers: Numbers) -> list[Trial]:
    """Single tails of every width, their classes spread as the shortlists are.

    Behind a head of 16 columns and with many of the rows: or the head's time would hide the price of a logit.
    """
    trials = []
    for width in (*TAIL_WIDTHS, *WIDE_TAILS):
        # Half of what the fewest rows, 256 / 8, can afford: or no draw might be affordable.
        largest = min(numbers.largest_tail, int(most / (64 * max(width, 16))))
        for classes in _spread(chooser, numbers.tails_of_a_width, 1 << 8, largest):

            def trial(width: int = width, classes: int = classes) -> Trial:
                in_features, batch = _shape(chooser, at_least=width, at_most=max(256, width))
                rows = int(batch * 2 ** chooser.uniform(-3, 0))
                layout = ClusterLayout(in_features, 16 + classes, (16,), projection_sizes=(width,))
                return Trial(layout, (batch - rows, rows))

            trials.append(_affordable(trial, most))
    return trials


def _whole_trials(chooser: random.Random, most: float, count: int) -> list[Trial]:
    """Layouts as users have them, with Zipf labels."""

    def trial() -> Trial:
        while True:
            width, batch = _shape(chooser)
            n_classes = int(2 ** chooser.uniform(13, 18))
            cutoffs = sorted(
                {int(n_classes * 2 ** chooser.uniform(-9, -1)) for _ in range(chooser.randint(1, 4))}
            )
            layout = ClusterLayout(width, n_classes, tuple(cutoffs))
            if layout.tails[-1].projection_size > 0:
                break
        shares = layout.occupancy(1.0 / np.arange(1, n_classes + 1) ** chooser.uniform(0.6, 1.4))
        rows = np.random.default_rng(chooser.getrandbits(32)).multinomial(batch, shares)
        return Trial(layout, tuple(rows.tolist()))

    return [_affordable(trial, most) for _ in range(count)]


def _stack_trials(chooser: random.Random, most: float, count: int) -> list[Trial]:
    """Several small tails of any widths: only these tell what a tail costs from what a step costs."""

    def trial() -> Trial:
        width, batch = _shape(chooser)
        bounds = [int(2 ** chooser.uniform(2, 9))]
        for _ in range(chooser.randint(2, 5)):
            bounds.append(bounds[-1] + int(2 ** chooser.uniform(4, 13)))
        n_tails = len(bounds) - 1
        widths = tuple(chooser.choice(TAIL_WIDTHS) for _ in range(n_tails))
        rows = [max(1, int(batch / n_tails * 2 ** chooser.uniform(-7, -1))) for _ in range(n_tails)]
        layout = ClusterLayout(width, bounds[-1], tuple(bounds[:-1]), projection_sizes=widths)
        return Trial(layout, (batch - sum(rows), *rows))

    return [_affordable(trial, most) for _ in range(count)]


def _full_trials(chooser: random.Random, most: float, numbers: Numbers) -> list[FullTrial]:
    """Full softmax over vocabularies spread evenly on a logarithmic axis."""
    trials = []
    for n_classes in _spread(
        chooser, numbers.full, 1 << 7, min(numbers.largest_head, int(most / SMALLEST_BATCH))
    ):
        while True:
            width, batch = _shape(chooser)
            if batch * n_classes * width < most:
                break
        trials.append(FullTrial(batch, width, n_classes))
    return trials


def _spread(chooser: random.Random, count: int, least: int, most: int) -> Iterator[int]:
    """Numbers of classes between the two, one in each of `count` equal parts of a logarithmic axis."""
    for position in range(count):
        yield int(least * (most / least) ** ((position + chooser.random()) / count))


def _affordable(draw: Callable[[], Trial], most: float) -> Trial:
    while _products(trial := draw()) > most:
        pass
    return trial


def _shape(chooser: random.Random, at_least: int = 0, at_most: int = 1024) -> tuple[int, int]:
    widths = [width for width in (128, 256, 512, 1024) if at_least <= width <= at_most]
    return chooser.choice(widths), chooser.choice([256, 512, 1024, 2048, 4096])


def _products(trial: Trial) -> float:
    """Multiply-adds of the forward, narrow tails charged for their exponentials."""
    layout = trial.layout
    return trial.batch_size * layout.head_size * layout.in_features + sum(
        rows * tail.size * max(tail.projection_size, 16)
        for tail, rows in zip(layout, trial.rows[1:], strict=True)
    )
