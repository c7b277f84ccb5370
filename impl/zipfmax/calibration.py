"""Measures the operator's parts on this device within a bound of seconds, and fits a `CostModel`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zipfmax import model_cache, trials
from zipfmax.compile_ahead import compile_ahead
from zipfmax.cost_model import (
    TAIL_WIDTHS,
    WIDE,
    CostModel,
    PartCost,
    checked_error,
    fit_nonnegative,
    part_features,
)
from zipfmax.processor import processor_name
from zipfmax.steps import FullTrial, StepTimer, Trial

Floats = npt.NDArray[np.float64]

FORMAT = 7
"""Of the cached file; a model of another format is measured again."""
BUDGET_S = 45.0
"""Seconds that a calibration takes at most, and one step more."""
LEAST_SHARE = 0.5
"""Of the trials: a model is not fitted to fewer."""


@dataclass(frozen=True)
class Calibration:
    """A cost model, what it was measured on, and how far it was off on steps that it was not fitted to."""

    model: CostModel
    """With the median of those errors."""
    p90_error: float
    """90th percentile of |predicted - measured| / measured over the held-out steps."""
    held_out: int
    """How many steps that were."""
    identity: dict[str, Any]
    """What the model is valid for."""

    def to_record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**vars(self), "model": self.model.to_record()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Calibration:
        """Reads `to_record` back.

        Raises:
            KeyError, TypeError, ValueError: a record of another form.
        """
        return cls(
            CostModel.from_record(record["model"]),
            checked_error(record["p90_error"]),
            int(record["held_out"]),
            record["identity"],
        )


def calibrate(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    task: str = "train",
    backend: str = "auto",
    *,
    budget_s: float = BUDGET_S,
    on_sample: Callable[[float], None] | None = None,
) -> Calibration:
    """Measure head, tails and full softmax over a few shapes, and fit.

    The trials are measured in random order, round after round, until the budget is spent; the median of a
    trial's samples counts, and a trial that was not reached is left out.

    Args:
        device, dtype: where, and in what.
        task: "train" (forward and backward of the mean loss) or "forward".
        backend: as `AdaptiveLogSoftmaxWithLoss` takes it.
        budget_s: seconds after which no further step is begun. On a GPU the kernels are compiled first, which
            takes up to `compile_ahead.BOUND_S` more where they are not in Triton's cache.
        on_sample: called after each trial with the share of the budget that is spent; on a GPU compiling is the
            first half.

    Raises:
        ValueError: an unknown task.
        ImportError: SciPy, which fits the model, is not installed.
        TimeoutError: in the budget fewer than half of the trials were measured.
        RuntimeError: on a GPU a step failed while it was compiled.
    """
    import scipy.optimize  # noqa: F401 - to fail before the measuring, not after it

    device = torch.device(device)
    timer = StepTimer(device, dtype, task, backend)
    drawn = trials.drawn(device.type != "cpu")
    wanted: list[Trial | FullTrial] = [*drawn.adaptive, *drawn.full]
    done = on_sample or (lambda share: None)
    compiling = 0.0 if device.type == "cpu" else 0.5
    if compiling:
        compile_ahead(device, dtype, task, backend, on_share=lambda share: done(compiling * share))
        for trial in drawn.adaptive:
            timer.step(trial)()  # loads what was compiled
    began = time.monotonic()

    def spent() -> float:
        return (time.monotonic() - began) / budget_s

    seconds = timer.medians(
        wanted,
        enough=lambda rounds: False,
        on_sample=lambda: done(compiling + (1 - compiling) * min(1.0, spent())),
        out_of_time=lambda: spent() >= 1,
        samples_a_round=1,
    )
    if len(seconds) < LEAST_SHARE * len(wanted):
        raise TimeoutError(
            f"a calibration measured {len(seconds)} of {len(wanted)} steps in {budget_s:g} s; "
            "give it more seconds, or a quieter machine"
        )
    parts = [trial for trial in drawn.parts if trial in seconds]
    full = [trial for trial in drawn.full if trial in seconds]
    held_out = [trial for trial in drawn.held_out if trial in seconds]
    adaptive = fit_nonnegative(
        np.stack([_features(trial) for trial in parts]), np.array([seconds[trial] for trial in parts])
    )
    full_fit = fit_nonnegative(
        np.stack([part_features(trial.batch_size, trial.n_classes, trial.in_features) for trial in full]),
        np.array([seconds[trial] for trial in full]),
    )
    n_head = len(full_fit)  # the head is described by the same numbers
    fitted = CostModel(
        head=PartCost.of(adaptive[:n_head]),
        tail=PartCost.of(adaptive[n_head:], TAIL_WIDTHS),
        full=PartCost.of(full_fit),
    )
    errors = [
        abs(fitted.adaptive_s(trial.layout, trial.rows) - seconds[trial]) / seconds[trial]
        for trial in held_out
    ]
    return Calibration(
        replace(fitted, error=float(np.median(errors))),
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
    budget_s: float = BUDGET_S,
    on_sample: Callable[[float], None] | None = None,
) -> Calibration:
    """The calibration of this machine: from the cache where there is one for it, else measured.

    Raises:
        ValueError, ImportError, TimeoutError: as `calibrate`.
    """
    return model_cache.cached(
        machine_identity(torch.device(device), dtype, task, backend),
        parse=Calibration.from_record,
        make=lambda: calibrate(device, dtype, task, backend, budget_s=budget_s, on_sample=on_sample),
        record_of=Calibration.to_record,
        refresh=refresh,
    )


def machine_identity(device: torch.device, dtype: torch.dtype, task: str, backend: str) -> dict[str, Any]:
    """What a cost model is valid for: another value of any of these needs another model."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
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
