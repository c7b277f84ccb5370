"""What the engine asks of an executor, and the answers.

Plain values only: no array crosses a pipe. Results travel as files, from the process that runs an
implementation to the one that judges them and runs no user's code. Requests are pickled; replies are not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast, get_args

from pydantic import TypeAdapter

from zipfmax_reference.contestants.implementation import Family
from zipfmax_reference.runs.case import Case

PROTOCOL = 3
"""Raised with every change of a request, a reply, `Case` or how a worker is started: `compare` asks workers of other
revisions."""

# Two names beside the implementations': the bare matrix products, and the process that judges results.
LIMIT = "limit"
CHECKER = "parity"


@dataclass(frozen=True)
class PrepareCase:
    """Hold this case's weights and its first batch. Answered by `Prepared` or `Lacking`."""

    case: Case
    fastest: bool = True
    """Whether settings are searched for the fastest that is exact, as for timing."""


@dataclass(frozen=True)
class WarmUp:
    """Run the prepared case once. Answered by `Timed`; it may be cold, so it is not a sample."""


@dataclass(frozen=True)
class Load:
    """Draw a batch and load it in new storage; no other run of the case sees it. Answered by `Loaded`.

    Where `warm` names another batch, a sample begins: a short run, or a GPU's, is first done on that batch,
    untimed, to have memory and threads at hand. With `replay` a GPU's run is then captured in a CUDA graph,
    where it can be, and this batch and the following ones are copied into the graph's input.
    """

    batch: int
    warm: int | None = None
    replay: bool = False


@dataclass(frozen=True)
class TakeSample:
    """Time one run on the loaded batch, and do nothing else. Answered by `Timed`.

    An `empty` one times nothing: what its round trip takes is the cost of asking.
    """

    empty: bool = False


@dataclass(frozen=True)
class Keep:
    """Save what the last run computed: an .npy file for each tensor in `folder`. Answered by `Kept`.

    Without a timed run before it, the first batch of the case is run.
    """

    folder: str


@dataclass(frozen=True)
class Forget:
    """Let go of the case's weights. Answered by `Kept`."""


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
class Judge:
    """Compare results that `Keep` saved with the definition. Answered by `Compared`."""

    implementation: str
    family: Family
    case: Case
    batch: int
    folder: str
    mismatches: tuple[tuple[str, str], ...] = ()
    """Tensors whose dtype, device or storage is wrong, and how."""


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
class Loaded:
    """A batch is ready to be run."""

    occupancy: tuple[int, ...] = ()
    """Rows of the batch in the shortlist and in each tail."""
    replayed: bool = False
    """Whether replays of a CUDA graph will be timed."""


@dataclass(frozen=True)
class Timed:
    """One run.

    `seconds` is device time on a GPU and wall time on a CPU; `wall_s` is wall time on both. `throttled` says
    that the GPU ran below its clocks meanwhile, so the sample does not count; None where that is unknown.
    """

    seconds: float
    wall_s: float
    throttled: bool | None = None


@dataclass(frozen=True)
class Kept:
    """The results are in the folder."""

    mismatches: tuple[tuple[str, str], ...] = ()
    """Tensors whose dtype, device or storage is wrong, and how; "*" stands for the whole run."""


@dataclass(frozen=True)
class Work:
    """What one run does, counted and not timed; None where it cannot be counted for this implementation."""

    peak_bytes: int | None = None
    flops: int | None = None
    launches: int | None = None
    synchronisations: int | None = None
    all_counted: bool = False
    """Whether every operation was torch's own, whose FLOPs are known."""
    delegates: str | None = None
    """The layer of torch.nn that does the work, if one was called."""
    uncounted: str | None = None
    """What went wrong while work was counted."""


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
class Compared:
    """The parity lines, as the run directory holds them."""

    lines: tuple[dict[str, object], ...]


@dataclass(frozen=True)
class Failure:
    """The implementation raised; `status` is "failed" or "out_of_memory"."""

    status: str
    reason: str


Request = PrepareCase | WarmUp | Load | TakeSample | Keep | Forget | Weigh | Split | Judge
Reply = Prepared | Lacking | Loaded | Timed | Kept | Work | PartTimes | Compared | Failure


Encoded = tuple[str, dict[str, object]]
"""A reply as plain values: its class and its fields."""

_REPLIES = {reply.__name__: TypeAdapter(reply) for reply in get_args(Reply)}


def encoded(reply: Reply) -> Encoded:
    """The reply as plain values."""
    return type(reply).__name__, asdict(reply)


def decoded(message: Any) -> Reply:
    """The reply that a worker encoded.

    Raises:
        ValueError: it is none: the worker runs code of others.
    """
    match message:
        case [str(name), dict(fields)] if name in _REPLIES:
            return cast(Reply, _REPLIES[name].validate_python(fields))
    raise ValueError("it is not a worker's reply")
