"""What a study's records say: losses at equal time and at equal steps, their differences, and intervals.

Runs with one seed have the same trunk to begin with and the same batches, so layers are compared seed by seed;
an interval is Student's, at 95 %, over the seeds' differences. A difference whose interval holds 0 is not told
apart from none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean, stdev

from zipfmax_reference.records.study import StudyBand, StudyPoint, StudyRun

_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t at 97.5 %, by degrees of freedom from 1."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds, and the ends of its 95 % interval; infinite where there is one seed."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Of one value a seed.

        Raises:
            ValueError: no value.
        """
        if not values:
            raise ValueError("an interval needs at least one value")
        middle = mean(values)
        if len(values) == 1:
            return cls(middle, -math.inf, math.inf, 1)
        quantile = _QUANTILES[len(values) - 2] if len(values) - 2 < len(_QUANTILES) else 2.0
        reach = quantile * stdev(values) / math.sqrt(len(values))
        return cls(middle, middle - reach, middle + reach, len(values))

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def mapped(self, function: Callable[[float], float]) -> Interval:
        """With an increasing function of mean and ends."""
        ends = (function(self.low) if math.isfinite(self.low) else self.low, function(self.high))
        return Interval(function(self.mean), ends[0], ends[1], self.n)


@dataclass(frozen=True)
class Curve:
    """The points of one layer and seed, by rising step."""

    layer: str
    seed: int
    points: tuple[StudyPoint, ...]
    bands: tuple[StudyBand, ...] = field(repr=False)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self.points[-1].step

    @property
    def seconds(self) -> float:
        """Time taken."""
        return self.points[-1].seconds

    def loss_at_seconds(self, seconds: float) -> float | None:
        """Validation loss after so long, on the line between two points; None outside of them."""
        return _between([(point.seconds, point.valid_loss) for point in self.points], seconds)

    def loss_at_step(self, step: float) -> float | None:
        """Validation loss after so many steps, likewise."""
        return _between([(point.step, point.valid_loss) for point in self.points], step)

    def seconds_to(self, loss: float) -> float | None:
        """Time until the loss is first that low, on the line between two points; None where it never is."""
        before: StudyPoint | None = None
        for point in self.points:
            if point.valid_loss <= loss:
                if before is None:
                    return point.seconds
                share = (before.valid_loss - loss) / (before.valid_loss - point.valid_loss)
                return before.seconds + share * (point.seconds - before.seconds)
            before = point
        return None

    def band_loss(self, start: int, stop: int, step: int | None = None) -> float | None:
        """Mean loss of the sample's tokens from rank `start` up to `stop`: at the end, or at a point's step.

        None where there are no tokens, no such point, or no bands that are cut at both ranks.
        """
        losses: Sequence[float | None] = [band.loss for band in self.bands]
        if step is not None:
            found = [point.band_losses for point in self.points if point.step == step]
            if not found or len(found[0]) != len(self.bands):
                return None
            losses = found[0]
        if {start, stop} - {0, *(band.stop for band in self.bands)}:
            return None
        total = tokens = 0.0
        for band, loss in zip(self.bands, losses, strict=True):
            if start <= band.start and band.stop <= stop and loss is not None:
                total, tokens = total + band.tokens * loss, tokens + band.tokens
        return total / tokens if tokens else None


@dataclass(frozen=True)
class Readings:
    """All curves of a study."""

    curves: tuple[Curve, ...]

    @classmethod
    def of(cls, points: Iterable[StudyPoint], runs: Iterable[StudyRun]) -> Readings:
        """The curves of the runs that ended well."""
        by_run: dict[tuple[str, int], dict[int, StudyPoint]] = {}
        for point in points:
            by_run.setdefault((point.layer, point.seed), {})[point.step] = point
        curves = []
        for run in {(run.layer, run.seed): run for run in runs if run.status == "ok"}.values():
            own = by_run.get((run.layer, run.seed), {})
            # An earlier attempt that was killed may have written points beyond the end of the last one.
            kept = [own[step] for step in sorted(own) if step <= run.n_steps]
            if kept:
                curves.append(Curve(run.layer, run.seed, tuple(kept), tuple(run.bands)))
        return cls(tuple(curves))

    @property
    def layers(self) -> list[str]:
        """In the order in which they were trained."""
        return list(dict.fromkeys(curve.layer for curve in self.curves))

    def of_layer(self, layer: str) -> dict[int, Curve]:
        """The curves of a layer by seed."""
        return {curve.seed: curve for curve in self.curves if curve.layer == layer}

    @property
    def equal_seconds(self) -> float:
        """The longest time that every run reached."""
        return min(curve.seconds for curve in self.curves)

    @property
    def equal_steps(self) -> int:
        """The last step at which every run has a point."""
        common = set.intersection(*({point.step for point in curve.points} for curve in self.curves))
        return max(common, default=0)

    def values(self, layer: str, value: Callable[[Curve], float | None]) -> dict[int, float]:
        """A number of each curve of a layer, by seed, where it has one."""
        found = {seed: value(curve) for seed, curve in self.of_layer(layer).items()}
        return {seed: number for seed, number in found.items() if number is not None}

    def over_seeds(self, layer: str, value: Callable[[Curve], float | None]) -> Interval | None:
        """The mean of a number over a layer's seeds; None where no curve has it."""
        found = self.values(layer, value)
        return Interval.of(list(found.values())) if found else None

    def difference(self, layer: str, base: str, value: Callable[[Curve], float | None]) -> Interval | None:
        """The mean over seeds of a layer's number less another's of the same seed; None without such a seed."""
        own, other = self.values(layer, value), self.values(base, value)
        common = [own[seed] - other[seed] for seed in own if seed in other]
        return Interval.of(common) if common else None

    def at_equal_time(self, curve: Curve) -> float | None:
        """Loss after `equal_seconds`."""
        return curve.loss_at_seconds(self.equal_seconds)

    def at_equal_steps(self, curve: Curve) -> float | None:
        """Loss after `equal_steps`; None where no step is common to all."""
        return curve.loss_at_step(self.equal_steps) if self.equal_steps else None


def as_ratio(nats: float) -> float:
    """The relative change of perplexity that a difference in loss is: 0.01 for one percent more."""
    return math.exp(nats) - 1


def _between(places: Sequence[tuple[float, float]], at: float) -> float | None:
    for (left, low), (right, high) in pairwise(places):
        if left <= at <= right:
            return low + (high - low) * (at - left) / (right - left) if right > left else high
    return places[-1][1] if places and at == places[-1][0] else None
