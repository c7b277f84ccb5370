"""The output layer's share of a training step: whole steps with it and without it, taking turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from zipfmax_bench.memory import peak_temporary_bytes
from zipfmax_bench.study.batches import TextBatches
from zipfmax_bench.study.model import StudyModel
from zipfmax_bench.study.options import StudyOptions
from zipfmax_bench.study.outputs import NoOutput, Output
from zipfmax_bench.study.training import WARM_UP_STEPS, autocast, synchronize, update

STEPS_OF_A_SAMPLE = {"cpu": 1, "cuda": 5}


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a whole step, in pairs: with the output layer, and of the same model without one."""

    with_output_s: list[float]
    without_s: list[float]
    temporary_bytes: int | None
    """On a CPU, the most bytes that a step with the output layer held for a time."""

    @property
    def step_s(self) -> float:
        """Median with the output layer."""
        return statistics.median(self.with_output_s)

    @property
    def bare_s(self) -> float:
        """Median without."""
        return statistics.median(self.without_s)

    @property
    def share(self) -> float:
        """The output layer's share of the step."""
        return 1 - self.bare_s / self.step_s


def measure(
    options: StudyOptions, batches: TextBatches, n_classes: int, make_output: Callable[[], Output]
) -> StepTimes:
    """Time whole steps: forward, backward, clipping and update; on other batches each time."""
    # Tied inputs belong to an output layer: without one they are plain, of the same size for full softmax.
    without = replace(options, inputs="plain") if options.inputs == "tied" else options
    steps = [
        _stepper(options, batches, StudyModel(options, n_classes, make_output, 0)),
        _stepper(without, batches, StudyModel(without, n_classes, NoOutput, 0)),
    ]
    device = torch.device(options.device)
    with_output_s, without_s = in_turns(steps, options.step_rounds, device)
    temporary = peak_temporary_bytes(steps[0]) if device.type == "cpu" else None
    return StepTimes(with_output_s, without_s, temporary)


def in_turns(steps: Sequence[Callable[[], None]], rounds: int, device: torch.device) -> list[list[float]]:
    """Seconds of each of several steps, `rounds` samples each, taken one after the other in changing order."""
    count = STEPS_OF_A_SAMPLE[device.type]
    samples: list[list[float]] = [[] for _ in steps]
    for step in steps:
        for _ in range(WARM_UP_STEPS):
            step()
    for turn in range(rounds):
        for which in range(len(steps))[:: 1 if turn % 2 else -1]:
            steps[which]()  # its weights are in the caches again
            synchronize(device)
            started = time.perf_counter()
            for _ in range(count):
                steps[which]()
            synchronize(device)
            samples[which].append((time.perf_counter() - started) / count)
    return samples


def _stepper(options: StudyOptions, batches: TextBatches, model: StudyModel) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=True)
    taken = 0

    def step() -> None:
        nonlocal taken
        batch = batches.at(0, taken)
        taken += 1
        with autocast(options):
            loss, _ = model(batch.ids, batch.targets, None)
        loss.backward()
        update(model, optimizer)

    return step
