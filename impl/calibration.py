"""Measures the operator's parts on this device, fits a `CostModel`, caches it by the machine's identity."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zipfmax.clusters import ClusterLayout
from zipfmax.cost import CostModel, PartCost, fit_nonnegative, part_features
from zipfmax.steps import FullTrial, StepTimer, Trial

FORMAT = 1


@dataclass(frozen=True)
class Calibration:
    """A cost model and how far it was off on steps that it was not fitted to."""

    model: CostModel
    median_error: float
    """Median of |predicted - measured| / measured over the held-out steps."""
    p90_error: float
    held_out: int
    identity: dict[str, Any]


def calibrate(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    task: str = "train",
    backend: str = "auto",
    *,
    budget_s: float = 45.0,
    on_sample: Callable[[float], None] | None = None,
) -> Calibration:
    """Measure head, tails and full softmax over a few shapes, and fit.

    Every trial is measured in each round, in random order, until the budget is spent; the median counts.

    Args:
        device, dtype: where, and in what.
        task: "train" (forward and backward of the mean loss) or "forward".
        backend: as `AdaptiveLogSoftmaxWithLoss` takes it.
        budget_s: seconds to spend; two rounds are made even if they take longer.
        on_sample: called after each measurement with the share of the budget that is spent.

    Raises:
        ValueError: an unknown task.
    """
    device = torch.device(device)
    timer = StepTimer(device, dtype, task, backend)
    chooser = random.Random(0)
    scale = 1 if device.type == "cpu" else 64
    parts = [*_part_trials(chooser, scale), *_whole_trials(chooser, scale)]
    held_out = _whole_trials(chooser, scale)
    full = [
        FullTrial(trial.batch_size, trial.layout.in_features, trial.layout.head_size)
        for trial in parts[:30:3]
    ]
    began = time.monotonic()

    def spent() -> float:
        return (time.monotonic() - began) / budget_s

    seconds = timer.medians(
        [*parts, *held_out, *full],
        enough=lambda rounds: rounds >= 2 and spent() * (rounds + 1) > rounds,
        on_sample=None if on_sample is None else lambda: on_sample(min(1.0, spent())),
    )
    adaptive = fit_nonnegative(
        np.stack([_features(trial) for trial in parts]), np.array([seconds[trial] for trial in parts])
    )
    full_fit = fit_nonnegative(
        np.stack([part_features(trial.batch_size, trial.n_classes, trial.in_features) for trial in full]),
        np.array([seconds[trial] for trial in full]),
    )
    head, tail, whole = (PartCost(*fit.tolist()) for fit in (adaptive[:5], adaptive[5:], full_fit))
    model = CostModel(head, tail, whole)
    errors = [
        abs(model.adaptive_s(trial.layout, trial.rows) - seconds[trial]) / seconds[trial]
        for trial in held_out
    ]
    return Calibration(
        model,
        median_error=float(np.median(errors)),
        p90_error=float(np.quantile(errors, 0.9)),
        held_out=len(held_out),
        identity=machine_identity(device, dtype, task, backend),
    )


def calibrated(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    task: str = "train",
    backend: str = "auto",
    *,
    refresh: bool = False,
    on_sample: Callable[[float], None] | None = None,
) -> Calibration:
    """The calibration of this machine: from the cache where there is one for it, else measured."""
    path = (
        _cache_folder() / f"cost-{_digest(machine_identity(torch.device(device), dtype, task, backend))}.json"
    )
    if path.exists() and not refresh:
        record = json.loads(path.read_text())
        return Calibration(**{**record, "model": CostModel.from_record(record["model"])})
    calibration = calibrate(device, dtype, task, backend, on_sample=on_sample)
    record = {**vars(calibration), "model": calibration.model.to_record()}
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(record, indent=1))
    scratch.replace(path)  # whole or not at all, whoever else calibrates meanwhile
    return calibration


def machine_identity(device: torch.device, dtype: torch.dtype, task: str, backend: str) -> dict[str, Any]:
    """What a cost model is valid for: another value of any of these needs another model."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor_name()
    return {
        "format": FORMAT,
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "task": task,
        "backend": backend,
    }


def _features(trial: Trial) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[10]: the head's work, then the work of all tails that have rows."""
    layout = trial.layout
    head = part_features(trial.batch_size, layout.head_size, layout.in_features)
    tails = np.zeros(len(head))
    for tail, rows in zip(layout, trial.rows[1:], strict=True):
        if rows:
            tails += part_features(rows, tail.size, tail.projection_size, layout.in_features)
    return np.concatenate([head, tails])


def _part_trials(chooser: random.Random, scale: int) -> list[Trial]:
    """Heads alone and single tails, spread over the shapes in use; bounded so that one takes under ~0.2 s."""
    trials: list[Trial] = []
    while len(trials) < 30:
        width, batch = _shape(chooser)
        if len(trials) % 3 == 0:
            shortlist, rows = int(2 ** chooser.uniform(6, 15)), 0
            layout = ClusterLayout(width, shortlist + 64, (shortlist,))
        else:
            classes = int(2 ** chooser.uniform(5, 18))
            rows = max(1, int(batch * 2 ** chooser.uniform(-7, 0)))
            layout = ClusterLayout(width, 64 + classes, (64,), float(chooser.choice([1, 4, 16, 64])))
        trial = Trial(layout, (batch - rows, rows))
        if _products(trial) < 4e9 * scale:
            trials.append(trial)
    return trials


def _whole_trials(chooser: random.Random, scale: int) -> list[Trial]:
    """Layouts as users have them, with Zipf labels."""
    trials: list[Trial] = []
    while len(trials) < 12:
        width, batch = _shape(chooser)
        n_classes = int(2 ** chooser.uniform(13, 18))
        cutoffs = sorted(
            {int(n_classes * 2 ** chooser.uniform(-9, -1)) for _ in range(chooser.randint(1, 4))}
        )
        layout = ClusterLayout(width, n_classes, tuple(cutoffs))
        shares = layout.occupancy(1.0 / np.arange(1, n_classes + 1) ** chooser.uniform(0.6, 1.4))
        rows = np.random.default_rng(chooser.getrandbits(32)).multinomial(batch, shares)
        trial = Trial(layout, tuple(rows.tolist()))
        if layout.tails[-1].projection_size > 0 and _products(trial) < 4e9 * scale:
            trials.append(trial)
    return trials


def _shape(chooser: random.Random) -> tuple[int, int]:
    return chooser.choice([128, 256, 512, 1024]), chooser.choice([256, 512, 1024, 2048, 4096])


def _products(trial: Trial) -> float:
    """Multiply-adds of the forward, narrow tails charged for their exponentials."""
    layout = trial.layout
    return trial.batch_size * layout.head_size * layout.in_features + sum(
        rows * tail.size * max(tail.projection_size, 16)
        for tail, rows in zip(layout, trial.rows[1:], strict=True)
    )


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "zipfmax"


def _digest(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _processor_name() -> str:
    lines: Iterable[str] = ()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
    for line in lines:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
