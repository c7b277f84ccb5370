"""Measures the operator's parts on this device, fits a `CostModel`, caches it by the machine's identity."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax import backends
from zipfmax.clusters import ClusterLayout
from zipfmax.cost import CostModel, PartCost, fit_nonnegative, part_features
from zipfmax.weights import TailWeights, Weights

FORMAT = 1
TASKS = ("train", "forward")


@dataclass(frozen=True)
class Trial:
    """One measurement: a layout and how many rows of a batch have labels in each of its parts."""

    layout: ClusterLayout
    rows: tuple[int, ...]

    @property
    def batch_size(self) -> int:
        """Rows in all."""
        return sum(self.rows)

    def features(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[10]: the head's work, then the work of all tails that have rows."""
        width = self.layout.in_features
        head = part_features(self.batch_size, self.layout.head_size, width)
        tails = np.zeros(len(head))
        for tail, rows in zip(self.layout, self.rows[1:], strict=True):
            if rows:
                tails += part_features(rows, tail.size, tail.projection_size, width)
        return np.concatenate([head, tails])


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
    on_trial: Callable[[float], None] | None = None,
) -> Calibration:
    """Measure head, tails and full softmax over a few shapes, and fit.

    Every trial is measured in each round, in random order, until the budget is spent; the median counts.

    Args:
        device, dtype: where, and in what.
        task: "train" (forward and backward of the mean loss) or "forward".
        backend: as `AdaptiveLogSoftmaxWithLoss` takes it.
        budget_s: seconds to spend; two rounds are made even if they take longer.
        on_trial: called after each measurement with the share of the budget that is spent.

    Raises:
        ValueError: an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; choose one of: {', '.join(TASKS)}")
    device = torch.device(device)
    chooser = random.Random(0)
    scale = 1 if device.type == "cpu" else 64
    fitted = _part_trials(chooser, scale)
    held_out = _whole_trials(chooser, scale)
    full = [(trial.batch_size, trial.layout.in_features, trial.layout.head_size) for trial in fitted[::3]]
    steps: dict[Any, Callable[[], Callable[[], None]]] = {}
    for trial in (*fitted, *held_out):
        steps[trial] = _adaptive_step(trial, device, dtype, task, backend)
    for shape in full:
        steps[shape] = _full_step(shape, device, dtype, task)
    seconds = _measure(steps, device, budget_s, on_trial)

    adaptive = fit_nonnegative(
        np.stack([trial.features() for trial in fitted]), np.array([seconds[trial] for trial in fitted])
    )
    full_fit = fit_nonnegative(
        np.stack([part_features(rows, classes, width) for rows, width, classes in full]),
        np.array([seconds[shape] for shape in full]),
    )
    model = CostModel(PartCost(*adaptive[:5]), PartCost(*adaptive[5:]), PartCost(*full_fit))
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
    on_trial: Callable[[float], None] | None = None,
) -> Calibration:
    """The calibration of this machine: from the cache where there is one for it, else measured."""
    path = (
        _cache_folder() / f"cost-{_digest(machine_identity(torch.device(device), dtype, task, backend))}.json"
    )
    if path.exists() and not refresh:
        record = json.loads(path.read_text())
        return Calibration(**{**record, "model": CostModel.from_record(record["model"])})
    calibration = calibrate(device, dtype, task, backend, on_trial=on_trial)
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


def _part_trials(chooser: random.Random, scale: int) -> list[Trial]:
    """Heads alone and single tails, spread over the shapes in use; bounded so that one takes under ~0.2 s."""
    trials: list[Trial] = []
    while len(trials) < 30:
        width = chooser.choice([128, 256, 512, 1024])
        batch = chooser.choice([256, 512, 1024, 2048, 4096])
        if len(trials) % 3 == 0:
            shortlist, rows = int(2 ** chooser.uniform(8, 15)), 0
            layout = ClusterLayout(width, shortlist + 64, (shortlist,), 4.0)
        else:
            classes = int(2 ** chooser.uniform(10, 18))
            rows = max(1, int(batch * 2 ** chooser.uniform(-7, 0)))
            layout = ClusterLayout(width, 256 + classes, (256,), float(chooser.choice([1, 4, 16, 64])))
        tail = layout.tails[0]
        products = batch * layout.head_size * width + rows * tail.size * max(tail.projection_size, 8)
        if 2e7 * scale < products < 4e9 * scale:
            trials.append(Trial(layout, (batch - rows, rows)))
    return trials


def _whole_trials(chooser: random.Random, scale: int) -> list[Trial]:
    """Layouts as users have them, with Zipf labels: what the fit is judged by."""
    trials: list[Trial] = []
    while len(trials) < 12:
        width, batch = chooser.choice([128, 256, 512, 1024]), chooser.choice([256, 512, 1024, 2048])
        n_classes = int(2 ** chooser.uniform(13, 18))
        cutoffs = sorted(
            {int(n_classes * 2 ** chooser.uniform(-7, -1)) for _ in range(chooser.randint(1, 4))}
        )
        layout = ClusterLayout(width, n_classes, tuple(cutoffs), 4.0)
        shares = layout.occupancy(1.0 / np.arange(1, n_classes + 1) ** chooser.uniform(0.6, 1.4))
        rows = np.random.default_rng(len(trials)).multinomial(batch, shares)
        if 2e7 * scale < batch * layout.head_size * width < 4e9 * scale:
            trials.append(Trial(layout, tuple(int(count) for count in rows)))
    return trials


def _adaptive_step(
    trial: Trial, device: torch.device, dtype: torch.dtype, task: str, backend: str
) -> Callable[[], Callable[[], None]]:
    def prepare() -> Callable[[], None]:
        layout, train = trial.layout, task == "train"

        def tensor(*shape: int) -> Tensor:
            return (torch.randn(shape, device=device, dtype=dtype) * 0.05).requires_grad_(train)

        weights = Weights(
            tensor(layout.head_size, layout.in_features),
            None,
            tuple(
                TailWeights(
                    tensor(tail.projection_size, layout.in_features), tensor(tail.size, tail.projection_size)
                )
                for tail in layout
            ),
        )
        hidden = tensor(trial.batch_size, layout.in_features)
        target = torch.cat(
            [
                torch.randint(low, high, (rows,))
                for low, high, rows in zip(layout.bounds, layout.bounds[1:], trial.rows, strict=False)
            ]
        )
        target = target[torch.randperm(len(target))].to(device)
        operator = backends.select(backend, hidden, weights)
        return lambda: _step(
            lambda: operator.nll(layout, weights, hidden, target)[1], [hidden, *weights.tensors()], train
        )

    return prepare


def _full_step(
    shape: tuple[int, int, int], device: torch.device, dtype: torch.dtype, task: str
) -> Callable[[], Callable[[], None]]:
    def prepare() -> Callable[[], None]:
        rows, width, classes = shape
        hidden = torch.randn(rows, width, device=device, dtype=dtype).requires_grad_(task == "train")
        weight = (torch.randn(classes, width, device=device, dtype=dtype) * 0.05).requires_grad_(
            task == "train"
        )
        target = torch.randint(0, classes, (rows,), device=device)
        return lambda: _step(
            lambda: F.cross_entropy(F.linear(hidden, weight), target), [hidden, weight], task == "train"
        )

    return prepare


def _step(loss: Callable[[], Tensor], leaves: list[Tensor], train: bool) -> None:
    if not train:
        with torch.no_grad():
            loss()
        return
    for leaf in leaves:
        leaf.grad = None
    torch.autograd.backward(loss())


def _measure(
    steps: dict[Any, Callable[[], Callable[[], None]]],
    device: torch.device,
    budget_s: float,
    on_trial: Callable[[float], None] | None,
) -> dict[Any, float]:
    began = time.monotonic()
    samples: dict[Any, list[float]] = {key: [] for key in steps}
    order = random.Random(1)
    rounds = 0
    while rounds < 2 or time.monotonic() - began < budget_s * rounds / (rounds + 1):
        for key in order.sample(list(steps), len(steps)):
            run = steps[key]()  # built anew, so that no more than one trial is in memory
            run()
            samples[key].extend(_seconds(run, device) for _ in range(2))
            if on_trial is not None:
                on_trial(min(1.0, (time.monotonic() - began) / budget_s))
        rounds += 1
    return {key: statistics.median(values) for key, values in samples.items()}


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


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
