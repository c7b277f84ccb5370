"""What a coordinator and its workers say to each other. Plain values only: no array ever crosses a pipe."""

from __future__ import annotations

from dataclasses import dataclass

from zipfmax_reference.runs.case import Case

# Two names beside the implementations': the bare matrix products, and the process that checks parity.
LIMIT = "limit"
CHECKER = "parity"


@dataclass(frozen=True)
class Prepare:
    """Hold this case's weights and its first batch. Answered by `Prepared` or `Lacking`."""

    case: Case


@dataclass(frozen=True)
class WarmUp:
    """Run the prepared case once. Answered by `Timed`; it may be cold, so it is no sample."""


@dataclass(frozen=True)
class Sample:
    """Load the batch of this round and time runs on it. Answered by `Timed`, the median of the runs.

    With `replay` a GPU's run is captured in a CUDA graph, and replays of it are timed, where it can be.
    """

    round: int
    runs: int = 1
    replay: bool = False


@dataclass(frozen=True)
class Weigh:
    """Count what one run of the prepared case does besides taking time. Answered by `Work`."""


@dataclass(frozen=True)
class Split:
    """Time head and tails apart, for about so many seconds. Answered by `PartTimes`."""

    budget_s: float
    replay: bool = False
    """As in `Sample`."""


@dataclass(frozen=True)
class CheckParity:
    """Compare the implementation with the definition on this case. Answered by `Parity`."""

    implementation: str
    case: Case


@dataclass(frozen=True)
class Prepared:
    """The case is ready to run."""

    settings: str | None = None
    """What the implementation was set to, in words, where it has a choice."""


@dataclass(frozen=True)
class Lacking:
    """The implementation cannot do the case here."""

    reason: str


@dataclass(frozen=True)
class Timed:
    """One sample.

    `seconds` is device time on a GPU and wall time on a CPU; `wall_s` is wall time on both. `throttled` says
    that the GPU ran below its clocks meanwhile, so the sample does not count; None where that is unknown.
    """

    seconds: float
    wall_s: float
    occupancy: tuple[int, ...]
    """Rows of the batch in the shortlist and in each tail."""
    throttled: bool | None = None
    replayed: bool = False
    """Whether replays of a CUDA graph were timed."""


@dataclass(frozen=True)
class Work:
    """What one run does, counted and not timed; None where it cannot be counted for this implementation."""

    peak_bytes: int | None = None
    flops: int | None = None
    launches: int | None = None
    synchronisations: int | None = None


@dataclass(frozen=True)
class PartTimes:
    """How one batch's time divides; see `zipfmax_bench.split`."""

    whole_s: float
    parts_s: tuple[float, ...]
    """Of the head, with whatever a step does once, then of each tail."""
    rows: tuple[int, ...]
    """Rows of the batch in the shortlist and in each tail."""
    passes: int


@dataclass(frozen=True)
class Parity:
    """The parity lines, as the run directory holds them."""

    lines: tuple[dict[str, object], ...]


@dataclass(frozen=True)
class Failure:
    """The implementation raised; `status` is "failed" or "out_of_memory"."""

    status: str
    reason: str


Request = Prepare | WarmUp | Sample | Weigh | Split | CheckParity
Reply = Prepared | Lacking | Timed | Work | PartTimes | Parity | Failure
