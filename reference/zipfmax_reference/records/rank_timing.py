"""A layer whose vocabulary is split over ranks: what a step costs there, beside the same step on one."""

from __future__ import annotations

from typing import ClassVar

from zipfmax_reference.records.base import CaseFields, Record, Status


class RankTiming(Record):
    """One case over so many ranks: a line of `ranks.jsonl`. Times in seconds."""

    FILE: ClassVar[str] = "ranks"
    KEY: ClassVar[tuple[str, ...]] = ("case", "impl", "world")

    case: str
    """Id of the case."""
    impl: str
    """The layer that is split."""
    world: int
    """Number of ranks."""
    fields: CaseFields
    """The case."""
    threads: int
    """Of each rank, and of the one that it is compared with."""
    status: Status
    """What became of it."""
    reason: str | None = None
    """Why it is not "ok"."""
    median_s: float | None = None
    """Of a step over the ranks: of the slowest rank in each round."""
    one_rank_s: float | None = None
    """Of the same step on one rank, in rounds between."""
    samples_s: list[float] = []
    """The rounds over the ranks."""
    one_rank_samples_s: list[float] = []
    """The rounds on one."""
    collectives: int | None = None
    """That a step starts."""
    sent_bytes: int | None = None
    """That each rank sends in a step, by the rings that its collectives take."""
    peak_bytes: int | None = None
    """Most temporary memory that a rank holds in a step."""
    one_rank_peak_bytes: int | None = None
    """The same on one rank."""
    parameter_bytes: int | None = None
    """Of the weights that a rank holds, the largest of all ranks."""
    one_rank_parameter_bytes: int | None = None
    """Of all weights."""

    @property
    def efficiency(self) -> float | None:
        """Time on one rank over ranks times the time on them: 1 where every further rank is of full use."""
        if self.median_s is None or self.one_rank_s is None:
            return None
        return self.one_rank_s / (self.world * self.median_s)
