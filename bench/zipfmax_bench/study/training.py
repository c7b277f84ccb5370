"""One training run: one output layer, one seed, from the first step to the last, over as many calls as it takes.

The run is a loop of steps between points; at a point the validation loss is taken, and time stands still. What
it needs to go on is in its checkpoint, points included, so a run that is killed loses the steps since then, and
one that goes on is, on a CPU, bit for bit the run that was never stopped.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zipfmax_bench.study.batches import TextBatches
from zipfmax_bench.study.gradients import errors_by_band
from zipfmax_bench.study.model import StudyModel
from zipfmax_bench.study.options import StudyOptions
from zipfmax_bench.study.trunk import State

CLIP = 1.0
"""Largest norm of a step's gradient."""
STEPS_BETWEEN_LOOKS = 10
"""On a GPU, steps between two looks at the clock: each look waits for the device."""
WARM_UP_STEPS = 3


@dataclass
class Point:
    """Losses in nats a token after so many steps, which took so many seconds."""

    step: int
    seconds: float
    train_loss: float
    valid_loss: float
    band_losses: list[float | None]
    """Validation loss of the classes between each two of `Progress.edges`."""


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    seconds: float = 0.0
    warm_up_s: float = 0.0
    points: list[Point] = field(default_factory=list)
    edges: list[int] = field(default_factory=list)
    """Ranks at which the bands of the points' losses begin, and the last one's end."""
    peak_bytes: int = 0


class TrainingRun:
    """Trains a model, in this process alone or going on where a checkpoint is.

    Args:
        model: freshly made.
        options: of the study.
        batches: the text.
        seed: which batches.
        checkpoint: file to keep it in; None keeps nothing.
        edges: of the bands that losses are taken by; a checkpoint's own count before these.
    """

    def __init__(
        self,
        model: StudyModel,
        options: StudyOptions,
        batches: TextBatches,
        seed: int,
        checkpoint: Path | None = None,
        edges: Sequence[int] = (),
    ) -> None:
        self.model, self.progress = model, Progress(edges=list(edges))
        self._options, self._batches, self._seed = options, batches, seed
        self._device = torch.device(options.device)
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self._state: State = None
        self._losses: list[Tensor] = []
        self._checkpoint = checkpoint
        self._saved_at = time.monotonic()
        if checkpoint is not None and checkpoint.is_file():
            self._restore(checkpoint)
        self._warm_up()

    @property
    def finished(self) -> bool:
        """Whether it has trained for long enough."""
        if self._options.steps is not None:
            return self.progress.step >= self._options.steps
        return self.progress.seconds >= (self._options.seconds or 0.0)

    def train(
        self,
        on_point: Callable[[Point], None] = lambda point: None,
        stop: Callable[[], bool] = lambda: False,
        checkpoint_every_s: float = 60.0,
    ) -> bool:
        """Train until the end, or until `stop`, which leaves a checkpoint; returns whether it is the end.

        Args:
            on_point: called with each point.
            stop: asked every few steps.
            checkpoint_every_s: least time between two checkpoints, which are taken at points.
        """
        while not self.finished:
            if stop():
                self.save()
                return False
            self._advance(self._steps_to_take())
            if self.finished or self.progress.step % self._options.evaluate_every == 0:
                self.progress.points.append(point := self._point())
                on_point(point)
                if not self.finished and time.monotonic() - self._saved_at > checkpoint_every_s:
                    self.save()
        return True

    def sampled_nll(self) -> tuple[Tensor, Tensor]:
        """-log p of each token of the validation sample, and the tokens: two of [n], on the CPU."""
        self.model.eval()
        ids, targets = self._batches.valid_ids, self._batches.valid_targets
        batch = self._options.sequences
        with torch.no_grad(), autocast(self._options):
            found = [
                self.model.nll(ids[at : at + batch], targets[at : at + batch]).float()
                for at in range(0, len(ids), batch)
            ]
        self.model.train()
        return torch.cat(found).cpu(), targets.flatten().cpu()

    def bands(self) -> list[tuple[int, int, int, float | None, float | None]]:
        """Start, stop, tokens of the sample, their mean loss and the gradient's error: of each band, now."""
        losses = band_losses(*self.sampled_nll(), self.progress.edges)
        errors = self.gradient_errors(self.progress.edges)
        return [(*band, error) for band, error in zip(losses, errors, strict=True)]

    def gradient_errors(self, edges: list[int]) -> list[float | None]:
        """Relative error of the gradient by bands of classes, on one batch of the validation sample."""
        ids = self._batches.valid_ids[: self._options.sequences]
        targets = self._batches.valid_targets[: self._options.sequences].flatten()
        with autocast(self._options):
            with torch.no_grad():
                hidden = self.model.hidden(ids)
            return errors_by_band(self.model.output, hidden, targets, edges)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if self._checkpoint is None:
            return
        partial = self._checkpoint.with_suffix(".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "random": random_state(self._device),
                "state": self._state,
                "losses": self._losses,
                "progress": asdict(self.progress),
            },
            partial,
        )
        partial.replace(self._checkpoint)
        self._saved_at = time.monotonic()

    def _restore(self, checkpoint: Path) -> None:
        kept: dict[str, Any] = torch.load(checkpoint, map_location=self._device, weights_only=True)
        self.model.load_state_dict(kept["model"])
        self._optimizer.load_state_dict(kept["optimizer"])
        set_random_state(self._device, kept["random"])
        self._state, self._losses = kept["state"], kept["losses"]
        progress = kept["progress"]
        self.progress = Progress(**{**progress, "points": [Point(**point) for point in progress["points"]]})

    def _warm_up(self) -> None:
        """Steps that change nothing: compiling, tuning and the first allocations take no time of the run."""
        started = time.monotonic()
        random = random_state(self._device)
        for step in range(WARM_UP_STEPS):
            self._backward(step, None)
            self._optimizer.zero_grad()
        set_random_state(self._device, random)
        synchronize(self._device)
        self.progress.warm_up_s += time.monotonic() - started

    def _steps_to_take(self) -> int:
        """Until the next point, the next look at the clock, or the end."""
        step, every = self.progress.step, self._options.evaluate_every
        at_most = every - step % every
        if self._options.steps is not None:
            at_most = min(at_most, self._options.steps - step)
        return min(at_most, STEPS_BETWEEN_LOOKS if self._device.type == "cuda" else 1)

    def _advance(self, steps: int) -> None:
        synchronize(self._device)
        reset_peak(self._device)
        started = time.perf_counter()
        for _ in range(steps):
            self._step()
        synchronize(self._device)
        self.progress.seconds += time.perf_counter() - started
        self.progress.peak_bytes = max(self.progress.peak_bytes, peak(self._device))

    def _step(self) -> None:
        step = self.progress.step
        warm = min(1.0, (step + 1) / self._options.warm_up) if self._options.warm_up else 1.0
        for group in self._optimizer.param_groups:
            group["lr"] = self._options.learning_rate * warm
        loss, self._state = self._backward(step, self._state)
        update(self.model, self._optimizer)
        self._losses.append(loss.detach())
        self.progress.step += 1

    def _backward(self, step: int, state: State) -> tuple[Tensor, State]:
        batch = self._batches.at(self._seed, step)
        if batch.is_start or state is None:
            state = None
        with autocast(self._options):
            loss, state = self.model(batch.ids, batch.targets, state)
        loss.backward()
        return loss, None if state is None else (state[0].detach(), state[1].detach())

    def _point(self) -> Point:
        nll, targets = self.sampled_nll()
        bands = band_losses(nll, targets, self.progress.edges) if self.progress.edges else []
        train_loss = float(torch.stack([loss.float() for loss in self._losses]).double().mean())
        self._losses = []
        return Point(
            self.progress.step,
            self.progress.seconds,
            train_loss,
            float(nll.double().mean()),
            [loss for _, _, _, loss in bands],
        )


def update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Clip the gradient, step, and forget the gradient."""
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()


def autocast(options: StudyOptions) -> AbstractContextManager[Any]:
    """bfloat16 products on a GPU; nothing on a CPU."""
    device = torch.device(options.device).type
    return torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bfloat16")


def band_losses(nll: Tensor, targets: Tensor, edges: list[int]) -> list[tuple[int, int, int, float | None]]:
    """(start, stop, tokens, mean loss) of the classes between each two edges."""
    losses, ranks = nll.double().numpy(), targets.numpy()
    band = np.searchsorted(np.asarray(edges), ranks, side="right") - 1
    tokens = np.bincount(band, minlength=len(edges) - 1)
    sums = np.bincount(band, losses, minlength=len(edges) - 1)
    return [
        (edges[i], edges[i + 1], int(n), float(sums[i] / n) if n else None)
        for i, n in enumerate(tokens.tolist())
    ]


def random_state(device: torch.device) -> list[Tensor]:
    """torch's generators: the CPU's, and the device's where it has another."""
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def set_random_state(device: torch.device, state: list[Tensor]) -> None:
    """Set torch's generators to what `random_state` gave."""
    torch.set_rng_state(state[0].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1].cpu(), device)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Begin to watch the most memory that is allocated on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int:
    """The most bytes allocated on a GPU since `reset_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def release() -> None:
    """Give back what dropped models held on a GPU."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
