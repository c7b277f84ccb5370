"""From samples to statements: the median, and how much faster one implementation is than another.

Samples of one round were taken one after the other on the same labels, so they are compared in pairs: what
slows the machine for a while slows both. The ratio's interval is a bootstrap over processes and over rounds
within them, because two processes of the same program differ by more than two runs of one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit  # `scipy.stats` takes two seconds to import

RESAMPLES = 2000
CONFIDENCE = 0.95
POWER = 0.8
ENOUGH_PROCESSES = 4
"""From so many on the spread between processes is known from themselves; with fewer, rounds are drawn too."""
MARGIN = 0.02
"""Relative difference that nobody would act on."""

Verdict = Literal["FASTER", "SAME", "SLOWER", "UNRESOLVED"]

Key = tuple[int, int]
"""(process, round) of a sample."""


@dataclass(frozen=True)
class Ratio:
    """How many times faster the candidate is, with its interval, which a single pair has none of."""

    estimate: float
    low: float | None
    high: float | None
    pairs: int
    floor: float | None = None
    """How far replicate processes of the same program lie apart: standard deviation of their log-ratios."""

    @property
    def log(self) -> float:
        """Logarithm of the estimate."""
        return math.log(self.estimate)

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval of the log-ratio: 0.02 is about 2 %."""
        if self.low is None or self.high is None:
            return None
        return math.log(self.high / self.low) / 2

    @property
    def smallest_effect(self) -> float | None:
        """The smallest relative change that this many samples would have shown four times in five."""
        if self.half_width is None:
            return None
        z_interval, z_power = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2), NormalDist().inv_cdf(POWER)
        return math.expm1(self.half_width * (z_interval + z_power) / z_interval)

    def verdict(self, margin: float = MARGIN) -> Verdict:
        """What the interval says of a candidate against its reference.

        SAME where all of it lies within a factor 1 + margin of 1; otherwise FASTER or SLOWER where it
        excludes 1; otherwise UNRESOLVED: neither a difference nor its absence has been shown.
        """
        if self.low is None or self.high is None:
            return "UNRESOLVED"
        if 1 / (1 + margin) <= self.low and self.high <= 1 + margin:
            return "SAME"
        if self.low > 1:
            return "FASTER"
        if self.high < 1:
            return "SLOWER"
        return "UNRESOLVED"


def speedup(reference: Mapping[Key, float], candidate: Mapping[Key, float], seed: int = 0) -> Ratio | None:
    """Time of the reference over time of the candidate, from the rounds that both have.

    The estimate is exp of the mean over processes of the median log-ratio within each. Its 95 % interval is
    the percentile interval of a bootstrap over processes, and where those are few over rounds too, with tails
    widened for small samples (Hesterberg 2015, "What teachers should know about the bootstrap", section 4.3).

    Args:
        reference: seconds by (process, round).
        candidate: the same of the implementation whose speedup is asked for.
        seed: of the resampling.

    Returns:
        None where no round has both.
    """
    shared = sorted(reference.keys() & candidate.keys())
    if not shared:
        return None
    by_process: dict[int, list[float]] = defaultdict(list)
    for key in shared:
        by_process[key[0]].append(float(np.log(reference[key] / candidate[key])))
    clusters = [np.asarray(values) for values in by_process.values()]
    medians = [float(np.median(values)) for values in clusters]
    estimate = float(np.exp(np.mean(medians)))
    if len(shared) == 1:
        return Ratio(estimate, None, None, 1)
    floor = float(np.std(medians, ddof=1)) if len(medians) > 1 else None
    low, high = np.exp(_clustered_interval(clusters, np.random.default_rng(seed)))
    return Ratio(estimate, float(low), float(high), len(shared), floor)


def _clustered_interval(
    clusters: Sequence[npt.NDArray[np.float64]], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Bounds of the mean over clusters of the clusters' medians."""
    chosen = rng.integers(len(clusters), size=(RESAMPLES, len(clusters)))
    if len(clusters) >= ENOUGH_PROCESSES:
        # Whole processes are drawn: the medians differ by the noise of the rounds as well.
        means = np.array([np.median(values) for values in clusters])[chosen].mean(axis=1)
    else:
        # [cluster, resample]: the median of each cluster under a resampling of its rounds.
        medians = np.empty((len(clusters), RESAMPLES))
        for row, values in zip(medians, clusters, strict=True):
            drawn = rng.integers(len(values), size=(RESAMPLES, len(values)))
            row[:] = np.median(values[drawn], axis=1)
        means = medians[chosen, rng.integers(RESAMPLES, size=chosen.shape)].mean(axis=1)
    units = len(clusters) if len(clusters) > 1 else len(clusters[0])
    tail = _widened_tail(units)
    bounds: npt.NDArray[np.float64] = np.quantile(means, [tail, 1 - tail])
    return bounds


def _widened_tail(units: int) -> float:
    """Share of the bootstrap distribution to cut on each side so that n independent units give 95 %."""
    quantile = float(stdtrit(units - 1, 0.5 + CONFIDENCE / 2))
    return NormalDist().cdf(-math.sqrt(units / (units - 1)) * quantile)
