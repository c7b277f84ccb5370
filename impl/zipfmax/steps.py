"""Steps of adaptive and full softmax on made-up data, and their time in interleaved rounds.

What a calibration measures, and what a plan is proven by. All steps run in this process, on the backends
only: no module, no optimiser.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax import backends, timers
from zipfmax.clusters import ClusterLayout
from zipfmax.errors import unknown
from zipfmax.weights import TailWeights, Weights

TASKS = ("train", "forward")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

WARM_RUNS = 3
"""Untimed runs of a short step: it is warm after the third."""


@dataclass(frozen=True)
class Trial:
    """A layout, and how many rows of a batch have labels in each of its parts."""

    layout: ClusterLayout
    rows: tuple[int, ...]

    @property
    def batch_size(self) -> int:
        """Rows in all."""
        return sum(self.rows)


@dataclass(frozen=True)
class FullTrial:
    """Full softmax: linear and cross entropy."""

    batch_size: int
    in_features: int
    n_classes: int


class StepTimer:
    """Builds steps on one device and times them.

    On a GPU a step of the kernels and of full softmax is the replay of a CUDA graph: the device's own time, which
    adds up by parts, where a step that is launched may wait for the host. Weights are views of one pool of random
    numbers, so a step costs nothing to build; their gradients are their own.

    Args:
        device, dtype: where, and in what.
        task: "train" (forward and backward of the mean loss) or "forward".
        backend: as `AdaptiveLogSoftmaxWithLoss` takes it.

    Raises:
        ValueError: an unknown task.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, task: str, backend: str = "auto") -> None:
        if task not in TASKS:
            raise ValueError(unknown("task", task, TASKS))
        self.device = device
        self.train = task == "train"
        self._backend = backend
        self._generator = torch.Generator().manual_seed(0)
        self._timer = timers.timer_for(device)
        self._pool = torch.empty(0, device=device, dtype=dtype)

    def step(self, trial: Trial | FullTrial) -> Callable[[], None]:
        """One step of the trial, ready to run."""
        return self._adaptive(trial) if isinstance(trial, Trial) else self._full(trial)

    def medians(
        self,
        trials: Sequence[Trial | FullTrial],
        enough: Callable[[int], bool],
        on_sample: Callable[[], None] | None = None,
        samples_a_round: int = 2,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> dict[Trial | FullTrial, float]:
        """Median seconds of each trial: a few samples a round, after untimed runs, in random order.

        Args:
            trials: all different.
            enough: asked before each round with the number of rounds that are done.
            on_sample: called after each trial.
            samples_a_round: of each trial.
            out_of_time: asked before each trial; ends the measuring, and what was not reached is left out.
        """
        samples: dict[Trial | FullTrial, list[float]] = {trial: [] for trial in trials}
        turns = timers.rounds(lambda done: () if enough(done) else trials, random.Random(1))
        for _, trial in turns:
            if out_of_time():
                break
            run = self.step(trial)  # built again, so that only one trial's gradients are in memory
            run_s = self._warm(run)
            runs = timers.runs_per_sample(run_s)
            samples[trial].extend(
                timers.sample(run, self._timer, runs).device_s for _ in range(samples_a_round)
            )
            if on_sample is not None:
                on_sample()
        return {trial: statistics.median(values) for trial, values in samples.items() if values}

    def _adaptive(self, trial: Trial) -> Callable[[], None]:
        layout = trial.layout
        weights = Weights(
            self._tensor(layout.head_size, layout.in_features),
            None,
            tuple(
                TailWeights(
                    self._tensor(tail.projection_size, layout.in_features),
                    self._tensor(tail.size, tail.projection_size),
                )
                for tail in layout
            ),
        )
        hidden = self._tensor(trial.batch_size, layout.in_features)
        targets = [
            torch.randint(low, high, (rows,), generator=self._generator)
            for (low, high), rows in zip(pairwise(layout.bounds), trial.rows, strict=True)
        ]
        shuffle = torch.randperm(trial.batch_size, generator=self._generator)
        target = torch.cat(targets)[shuffle].to(self.device)
        backend = backends.select(self._backend, hidden, weights, target)
        return self._step(
            lambda: backend.nll(layout, weights, hidden, target)[1],
            [hidden, *weights.tensors()],
            never_waits=self.device.type == "cuda" and backend is backends.load("triton"),
        )

    def _full(self, trial: FullTrial) -> Callable[[], None]:
        hidden = self._tensor(trial.batch_size, trial.in_features)
        weight = self._tensor(trial.n_classes, trial.in_features)
        target = torch.randint(0, trial.n_classes, (trial.batch_size,), generator=self._generator)
        target = target.to(self.device)
        return self._step(
            lambda: F.cross_entropy(F.linear(hidden, weight), target),
            [hidden, weight],
            never_waits=self.device.type == "cuda",
        )

    def _tensor(self, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        if size > len(self._pool):
            self._pool = 0.05 * torch.randn(size, device=self.device, dtype=self._pool.dtype)
        return self._pool[:size].view(shape).detach().requires_grad_(self.train)

    def _step(
        self, loss: Callable[[], Tensor], leaves: list[Tensor], never_waits: bool
    ) -> Callable[[], None]:
        """The step, or its replay where a CUDA graph can hold it: on a GPU, where it never waits for the device."""

        def train() -> None:
            for leaf in leaves:
                leaf.grad = None
            torch.autograd.backward(loss())

        def forward() -> None:
            with torch.no_grad():
                loss()

        run = train if self.train else forward
        return timers.replayed(run) if never_waits else run

    def _warm(self, run: Callable[[], None]) -> float:
        """Wall seconds of the shortest of the untimed runs; a step that is not short gets one."""
        walls: list[float] = []
        while len(walls) < WARM_RUNS and sum(walls) <= timers.SHORT_RUN_S:
            walls.append(self._timer(run).wall_s)
        return min(walls)
