"""Measures the operator's parts on this device, fits a `CostModel`, caches it by the machine's identity."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zipfmax.clusters import ClusterLayout
from zipfmax.cost_model import TAIL_WIDTHS, WIDE, CostModel, PartCost, fit_nonnegative, part_features
from zipfmax.steps import FullTrial, StepTimer, Trial

Floats = npt.NDArray[np.float64]

FORMAT = 6
"""Of the cached file; a model of another format is measured again."""

# How many trials of each kind: together they take about ten seconds a round on two cores.
HEADS = 20
TAILS_OF_A_WIDTH = 9
WHOLES = 24
STACKS = 24
FULLS = 14
WIDE_TAILS = (128, 256, 512)
MOST_PRODUCTS = 2e9
"""Multiply-adds of a trial's forward, so that one takes under a fifth of a second."""
SMALLEST_BATCH = 256 * 128
"""Rows times width of the smallest batch of the trials."""
MOST_PRODUCTS_GPU = 64 * MOST_PRODUCTS


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
    most = MOST_PRODUCTS if device.type == "cpu" else MOST_PRODUCTS_GPU
    kinds = (_head_trials, _tail_trials, _whole_trials, _stack_trials)
    parts = [trial for kind in kinds for trial in kind(chooser, most)]
    held_out = [trial for trial in _whole_trials(chooser, most) if trial not in parts]
    full = _full_trials(chooser, most)
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
    n_head = len(full_fit)  # the head is described by the same numbers
    model = CostModel(
        head=PartCost.of(adaptive[:n_head]),
        tail=PartCost.of(adaptive[n_head:], TAIL_WIDTHS),
        full=PartCost.of(full_fit),
    )
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


def _features(trial: Trial) -> Floats:
    """The head's work, then the work of all tails that have rows."""
    layout = trial.layout
    head = part_features(trial.batch_size, layout.shortlist_size, layout.in_features, slots=layout.n_clusters)
    tails = np.zeros(len(head) - len(WIDE) + len(TAIL_WIDTHS))
    for tail, rows in zip(layout, trial.rows[1:], strict=True):
        if rows:
            tails += part_features(
                rows, tail.size, tail.projection_size, layout.in_features, widths=TAIL_WIDTHS
            )
    return np.concatenate([head, tails])


def _head_trials(chooser: random.Random, most: float) -> list[Trial]:
    """Heads with a tail that no label is in, their shortlists spread evenly on a logarithmic axis."""
    trials = []
    for shortlist in _spread(chooser, HEADS, 1 << 3, min(1 << 16, int(most / SMALLEST_BATCH))):

        def trial(shortlist: int = shortlist) -> Trial:
            width, batch = _shape(chooser)
            return Trial(ClusterLayout(width, shortlist + 64, (shortlist,)), (batch, 0))

        trials.append(_affordable(trial, most))
    return trials


def _tail_trials(chooser: random.Random, most: float) -> list[Trial]:
    """Single tails of every width, their classes spread as the shortlists are.

    Behind a head of 16 columns and with many of the rows: or the head's time would hide the price of a logit.
    """
    trials = []
    for width in (*TAIL_WIDTHS, *WIDE_TAILS):
        # Half of what the fewest rows, 256 / 8, can afford: or no draw might be affordable.
        largest = min(1 << 18, int(most / (64 * max(width, 16))))
        for classes in _spread(chooser, TAILS_OF_A_WIDTH, 1 << 8, largest):

            def trial(width: int = width, classes: int = classes) -> Trial:
                in_features, batch = _shape(chooser, at_least=width, at_most=max(256, width))
                rows = int(batch * 2 ** chooser.uniform(-3, 0))
                layout = ClusterLayout(in_features, 16 + classes, (16,), projection_sizes=(width,))
                return Trial(layout, (batch - rows, rows))

            trials.append(_affordable(trial, most))
    return trials


def _whole_trials(chooser: random.Random, most: float) -> list[Trial]:
    """Layouts as users have them, with Zipf labels."""

    def trial() -> Trial:
        while True:
            width, batch = _shape(chooser)
            n_classes = int(2 ** chooser.uniform(13, 18))
            cutoffs = sorted(
                {int(n_classes * 2 ** chooser.uniform(-9, -1)) for _ in range(chooser.randint(1, 4))}
            )
            layout = ClusterLayout(width, n_classes, tuple(cutoffs))
            if layout.tails[-1].projection_size > 0:
                break
        shares = layout.occupancy(1.0 / np.arange(1, n_classes + 1) ** chooser.uniform(0.6, 1.4))
        rows = np.random.default_rng(chooser.getrandbits(32)).multinomial(batch, shares)
        return Trial(layout, tuple(rows.tolist()))

    return [_affordable(trial, most) for _ in range(WHOLES)]


def _stack_trials(chooser: random.Random, most: float) -> list[Trial]:
    """Several small tails of any widths: only these tell what a tail costs from what a step costs."""

    def trial() -> Trial:
        width, batch = _shape(chooser)
        bounds = [int(2 ** chooser.uniform(2, 9))]
        for _ in range(chooser.randint(2, 5)):
            bounds.append(bounds[-1] + int(2 ** chooser.uniform(4, 13)))
        n_tails = len(bounds) - 1
        widths = tuple(chooser.choice(TAIL_WIDTHS) for _ in range(n_tails))
        rows = [max(1, int(batch / n_tails * 2 ** chooser.uniform(-7, -1))) for _ in range(n_tails)]
        layout = ClusterLayout(width, bounds[-1], tuple(bounds[:-1]), projection_sizes=widths)
        return Trial(layout, (batch - sum(rows), *rows))

    return [_affordable(trial, most) for _ in range(STACKS)]


def _full_trials(chooser: random.Random, most: float) -> list[FullTrial]:
    """Full softmax over vocabularies spread evenly on a logarithmic axis."""
    trials = []
    for n_classes in _spread(chooser, FULLS, 1 << 7, min(1 << 16, int(most / SMALLEST_BATCH))):
        while True:
            width, batch = _shape(chooser)
            if batch * n_classes * width < most:
                break
        trials.append(FullTrial(batch, width, n_classes))
    return trials


def _spread(chooser: random.Random, count: int, least: int, most: int) -> Iterator[int]:
    """Numbers of classes between the two, one in each of `count` equal parts of a logarithmic axis."""
    for position in range(count):
        yield int(least * (most / least) ** ((position + chooser.random()) / count))


def _affordable(draw: Callable[[], Trial], most: float) -> Trial:
    while _products(trial := draw()) > most:
        pass
    return trial


def _shape(chooser: random.Random, at_least: int = 0, at_most: int = 1024) -> tuple[int, int]:
    widths = [width for width in (128, 256, 512, 1024) if at_least <= width <= at_most]
    return chooser.choice(widths), chooser.choice([256, 512, 1024, 2048, 4096])


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
