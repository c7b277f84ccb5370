"""Steps on a GPU and how they are timed, for `bench.gpu`: interleaved rounds in one process."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from zipfmax_bench import messages
from zipfmax_bench.engine import Engine, SamplingPolicy
from zipfmax_bench.executors import RunHere
from zipfmax_reference.runs.case import Case

Run = Callable[[], None]
Record = dict[str, Any]
DEVICE = torch.device("cuda", 0)
# Of a function that is built already, the engine needs to know the device only.
ANY_CASE = Case(n_classes=2, in_features=1, batch_size=1, cutoffs=(1,), device="cuda")


def zipf_labels(n_classes: int, n_rows: int, skew: float, seed: int = 0) -> Tensor:
    """[n_rows] ranks drawn from p(r) ~ (r + 1)**-skew."""
    weight = torch.arange(1, n_classes + 1, dtype=torch.float64, device=DEVICE).pow(-skew).cumsum(0)
    generator = torch.Generator(DEVICE).manual_seed(seed)
    uniform = torch.rand(n_rows, dtype=torch.float64, device=DEVICE, generator=generator) * weight[-1]
    return torch.searchsorted(weight, uniform).clamp_(max=n_classes - 1)


def training_step(forward: Callable[[Tensor], Tensor], leaves: Sequence[Tensor], hidden: Tensor) -> Run:
    """One forward and backward pass that leaves fresh gradients and keeps none from before."""

    def run() -> None:
        for leaf in (*leaves, hidden):
            leaf.grad = None
        forward(hidden).backward()  # type: ignore[no-untyped-call]

    return run


def temporaries(run: Run) -> int:
    """Peak bytes of a step beyond what stays: weights, their gradients, the input and its gradient."""
    run()
    torch.cuda.synchronize()
    kept = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - kept


def measured(runs: dict[str, Run], case: Record, rounds: int = 15, seconds: float = 8.0) -> Iterator[Record]:
    """A record of each run: median and samples, in interleaved rounds of this process.

    Args:
        runs: by the name of what they time; those of CUDA graphs have "graph" in it.
        case: fields that every record gets.
        rounds: at most so many.
        seconds: no run takes part in a further round once it has spent so many.
    """

    def work(name: str) -> Callable[[], messages.Work]:
        return lambda: messages.Work(peak_bytes=0 if "graph" in name else temporaries(runs[name]))

    executors = {name: [RunHere(run, DEVICE, work(name))] for name, run in runs.items()}
    policy = SamplingPolicy(seconds=seconds, least=1, most=rounds)
    for name, found in Engine(executors).measure(dict.fromkeys(runs, ANY_CASE), policy).items():
        samples = [sample.seconds for sample in found.samples]
        if found.ok and not samples:
            found.end("failed", "the GPU was throttled in every sample")
        record = {**case, "impl": name, "status": found.status}
        if found.ok:
            yield {
                **record,
                "median_s": statistics.median(samples),
                "wall_s": statistics.median(sample.wall_s for sample in found.samples),
                "samples_s": samples,
                "throttled": found.was_throttled,
                "throttled_samples": found.throttled,
                "temporary_bytes": found.work.peak_bytes,
            }
        else:
            yield {**record, "reason": found.reason}
