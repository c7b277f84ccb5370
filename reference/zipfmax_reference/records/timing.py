"""Timing: what one implementation took on one case."""

from __future__ import annotations

from typing import ClassVar

from zipfmax_reference.records.base import CaseFields, Real, Record, Status


class Timing(CaseFields, Record):
    """One case of one implementation: a line of `timings.jsonl`. Times are in seconds.

    A number is null where the cell was not timed, or where it cannot be counted for the implementation.
    """

    FILE: ClassVar[str] = "timings"
    KEY: ClassVar[tuple[str, ...]] = ("case", "impl")

    case: str
    """Id of the case: all of its fields in one readable string."""
    impl: str
    """Name of the implementation."""
    status: Status
    """What became of the cell."""
    reason: str | None = None
    """Why it is not "ok"."""
    threads: int | None = None
    """CPU threads that the implementation computed with."""
    exact: bool = True
    """Whether its gradients are those of the loss, up to rounding; a sampled or filtered loss's are not."""
    exact_why: str | None = None
    """What makes them inexact."""
    settings: str | None = None
    """What the implementation was set to: block sizes, chunk sizes, as it says itself."""

    processes: int = 0
    """Worker processes that the samples come from."""
    occupancy: list[float] | None = None
    """Share of the timed labels in the shortlist and in each tail."""
    median_s: float | None = None
    """Median of the samples: device time on a GPU, wall time on a CPU."""
    wall_s: float | None = None
    """Median of the samples' wall time."""
    warm_up_s: float | None = None
    """Wall time of a process's first run of the case."""
    samples_s: list[float] = []
    """Every sample, in the order of the rounds."""
    samples_round: list[int] = []
    """Round of each sample: samples of one round and process are paired between implementations."""
    samples_process: list[int] = []
    """Worker process of each sample."""
    n_rounds: int = 0
    """Number of samples."""
    runs_per_sample: int = 1
    """A sample is the median of this many runs."""
    throttled: bool | None = None
    """Whether the device was slowed down during a sample; null where it could not be seen."""
    throttled_samples: int = 0
    """Samples that were left out because the device was slowed down."""
    verified_samples: int = 0
    """Samples whose results were compared with the reference's."""
    replayed: int = 0
    """Samples that were replays of a CUDA graph."""

    peak_bytes: int | None = None
    """Most memory that one run had allocated beyond what it started with."""
    flops: int | None = None
    """Floating point operations of the matrix products of one run."""
    launches: int | None = None
    """Kernels, or on a CPU operators, of one run."""
    synchronisations: int | None = None
    """Times that one run made the host wait for the device."""
    delegates: str | None = None
    """Another implementation that it called."""
    uncounted: str | None = None
    """Why its work was not counted."""

    speedup_vs_full: float | None = None
    """Times less time than full softmax, from paired rounds."""
    speedup_vs_full_low: float | None = None
    """Lower end of its 95 % interval."""
    speedup_vs_full_high: Real | None = None
    """Upper end of its 95 % interval."""
    speedup_vs_full_smallest_effect: Real | None = None
    """Smallest relative change that could have been seen."""
    speedup_vs_full_floor: Real | None = None
    """Relative difference between replicate processes of the same program."""
    speedup_vs_full_verdict: str | None = None
    """FASTER, SLOWER, SAME or UNRESOLVED."""
    speedup_vs_torch: float | None = None
    """As `speedup_vs_full`, over torch.nn.AdaptiveLogSoftmaxWithLoss."""
    speedup_vs_torch_low: float | None = None
    speedup_vs_torch_high: Real | None = None
    speedup_vs_torch_smallest_effect: Real | None = None
    speedup_vs_torch_floor: Real | None = None
    speedup_vs_torch_verdict: str | None = None
    speedup_vs_limit: float | None = None
    """As `speedup_vs_full`, over the bare matrix products of the same shapes."""
    speedup_vs_limit_low: float | None = None
    speedup_vs_limit_high: Real | None = None
    speedup_vs_limit_smallest_effect: Real | None = None
    speedup_vs_limit_floor: Real | None = None
    speedup_vs_limit_verdict: str | None = None

    limit_s: float | None = None
    """GEMM lower bound: median time of the bare matrix products of the same shapes."""
    efficiency: float | None = None
    """limit_s / median_s."""
    parts_s: list[float] | None = None
    """Time of the head and of each tail, each run by itself on one batch."""
    parts_whole_s: float | None = None
    """Time of the whole run on that batch."""
    parts_rows: list[int] | None = None
    """Rows of that batch in the shortlist and in each tail."""
    parts_passes: int | None = None
    """Passes over the parts that the times are medians of."""
    limit_parts_s: list[float] | None = None
    """The bare matrix products' `parts_s`."""
