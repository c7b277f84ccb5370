"""Steps on a GPU and how they are timed, for `bench.gpu`: interleaved rounds in one process."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from zipfmax_bench.timing import CudaTimer

Run = Callable[[], None]
Record = dict[str, Any]
DEVICE = torch.device("cuda", 0)


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
    """Median and samples of each run, in interleaved rounds of random order, while the seconds last.

    Samples that were taken while the GPU was throttled are counted and left out; `throttled` is None where
    the driver could not be asked.
    """
    timer, order = CudaTimer(DEVICE), random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    walls: dict[str, list[float]] = {name: [] for name in runs}
    throttled, unknown = dict.fromkeys(runs, 0), False
    peaks: dict[str, int] = {}
    failed: dict[str, str] = {}
    for name, run in runs.items():
        try:
            for _ in range(3):
                run()
            peaks[name] = 0 if "graph" in name else temporaries(run)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            failed[name] = str(error).splitlines()[0][:160]
            torch.cuda.empty_cache()
    begun = time.monotonic()
    for _ in range(rounds):
        names = [name for name in runs if name not in failed]
        order.shuffle(names)
        for name in names:
            device_s, wall_s = timer(runs[name])
            state = timer.throttled()
            unknown |= state is None
            if state:
                throttled[name] += 1
            else:
                samples[name].append(device_s)
                walls[name].append(wall_s)
        if time.monotonic() - begun > seconds:
            break
    for name in runs:
        if name not in failed and not samples[name]:
            failed[name] = "the GPU was throttled in every sample"
        if name in failed:
            yield {**case, "impl": name, "status": "failed", "reason": failed[name]}
        else:
            yield {
                **case,
                "impl": name,
                "status": "ok",
                "median_s": statistics.median(samples[name]),
                "wall_s": statistics.median(walls[name]),
                "samples_s": samples[name],
                "throttled": True if throttled[name] else None if unknown else False,
                "throttled_samples": throttled[name],
                "temporary_bytes": peaks[name],
            }
