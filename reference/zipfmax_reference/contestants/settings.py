"""The settings of a full-softmax baseline: those that are exact, and the fastest of them.

A fused loss has settings that change its time several times over, such as the rows of a chunk, and the best
ones depend on the shape. So each is tried once on a machine's device, dtype and shape, before anything is
timed; one that computes another loss or other gradients than full softmax is left out, however fast it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.errors import one_line
from zipfmax_reference.contestants.padding import UNPADDED, Padding
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import LOGIT_SCALE

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(hidden [N, d], weight [V, d], target [N], bias [V] or None) -> mean loss []."""

SEARCH_S = 60.0
"""Wall time after which no further setting is tried."""
TIMED_RUNS, LONG_RUN_S = 3, 5.0
"""Runs of a setting that are timed; of a longer run than that one is enough."""
MUCH_SLOWER = 1.5
"""A setting whose first timed run takes so many times the fastest's time is run no more."""
ALIKE = 0.02
"""Of settings whose times differ by less than this share, the one listed first is taken."""

CHECKED_ROWS, CHECKED_CLASSES, CHECKED_MULTIPLE = 512, 4096, 384
"""Most rows and classes, about, of the batch that exactness is checked on. The vocabulary's remainder by the
multiple is kept, so that a setting pads there as it does in the case."""
_KINDS = ("root mean square", "largest")


@dataclass(frozen=True)
class Setting:
    """One way to compute the loss.

    Args:
        text: as it is recorded, such as "chunk_mem_const=64".
        make: makes the loss.
        padding: how the matrix is held.
    """

    text: str
    make: Callable[[], Loss]
    padding: Padding = UNPADDED

    def describe(self, n_classes: int) -> str:
        """The text with what the padding does to a vocabulary."""
        return ", ".join(part for part in (self.text, self.padding.text(n_classes)) if part)


class LossOverMatrix:
    """A setting's loss over one matrix [V, d], held as the setting wants it."""

    def __init__(self, setting: Setting, weight: Tensor, train: bool) -> None:
        self._loss, self._padding = setting.make(), setting.padding
        self._shape = weight.shape
        self.bias = setting.padding.bias(weight)
        self.weight = setting.padding.weight(weight.detach()).requires_grad_(train)

    def loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Mean loss [] of hidden states [N, d] and targets [N]."""
        return self._loss(self._padding.hidden(hidden, self._shape[0]), self.weight, target, self.bias)

    def gradient(self) -> Tensor:
        """The gradient of the matrix, [V, d]; zeros where it is unset."""
        gradient = torch.zeros_like(self.weight) if self.weight.grad is None else self.weight.grad
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        return gradient[: self._shape[0], : self._shape[1]]


@dataclass(frozen=True)
class SettingTrial:
    """What came of a setting: `seconds` of a run, or the `reason` why it has none."""

    setting: Setting
    seconds: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Choice:
    """The setting taken, and all that were tried; none where there was no choice."""

    setting: Setting
    trials: tuple[SettingTrial, ...] = ()

    def text(self, n_classes: int) -> str:
        """What is recorded: the setting, of how many it is the fastest, and which were left out and why."""
        own = self.setting.describe(n_classes)
        if not self.trials:
            return own
        timed = sum(trial.seconds is not None for trial in self.trials)
        left_out = [
            f"{trial.setting.describe(n_classes)}: {trial.reason}" for trial in self.trials if trial.reason
        ]
        rest = f"; left out: {'; '.join(left_out)}" if left_out else ""
        return f"{own} (fastest of {timed} that are exact{rest})"


class NoExactSettingError(RuntimeError):
    """No setting of an implementation ran and was exact."""


def choose(
    settings: Sequence[Setting],
    inexact: Callable[[Setting], str | None],
    seconds: Callable[[Setting, float], float],
    clock: Callable[[], float] = time.monotonic,
) -> Choice:
    """The fastest exact setting; an only one is not timed. Given the same times it is the same one.

    Args:
        settings: in the order of preference; the first is tried however long it takes.
        inexact: why a setting is not exact, or None.
        seconds: time of a run with a setting, given the fastest time so far.
        clock: of the search's own time.

    Raises:
        NoExactSettingError: none is exact.
        Exception: what the first setting raised, where every one raised.
    """
    if len(settings) == 1:
        if reason := inexact(settings[0]):
            raise NoExactSettingError(reason)
        return Choice(settings[0])
    started, best = clock(), float("inf")
    trials: list[SettingTrial] = []
    raised: list[Exception] = []
    for setting in settings:
        if trials and clock() - started > SEARCH_S:
            trials.append(SettingTrial(setting, reason=f"not tried within {SEARCH_S:g} s"))
            continue
        try:
            reason = inexact(setting)
            taken = None if reason else seconds(setting, best)
        except Exception as error:  # recorded; raised again below if no setting works
            raised.append(error.with_traceback(None))  # whose frames would hold the setting's memory
            reason, taken = one_line(error), None
        if taken is not None:
            best = min(best, taken)
        trials.append(SettingTrial(setting, taken, reason))
    timed = [(trial.seconds, trial.setting) for trial in trials if trial.seconds is not None]
    if not timed:
        if raised:
            raise raised[0]
        raise NoExactSettingError("; ".join(f"{trial.setting.text}: {trial.reason}" for trial in trials))
    taken_setting = next(setting for taken, setting in timed if taken <= best * (1 + ALIKE))
    return Choice(taken_setting, tuple(trials))


def seconds_of(run: Callable[[], None], device: torch.device, best: float = float("inf")) -> float:
    """Median seconds of a few runs after an untimed one; of one that is long, or much slower than `best`."""
    run()
    times: list[float] = []
    while len(times) < TIMED_RUNS and not (times and times[0] > min(MUCH_SLOWER * best, LONG_RUN_S)):
        _finish(device)
        begun = time.perf_counter()
        run()
        _finish(device)
        times.append(time.perf_counter() - begun)
    return median(times)


class ExactnessCheck:
    """Checks settings against full softmax on a small batch of the case's width, dtype and logit spread.

    Truth is linear and cross entropy in float64. The errors of the loss, of the input's gradient and of the
    weight's, the last for classes in the batch and absent from it apart, should be at most twice those of
    linear and cross entropy in the case's dtype, plus twice the dtype's spacing times the truth's size; each
    as root mean square and as largest absolute value.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._dtype, self._device = getattr(torch, case.dtype), torch.device(case.device)
        n_rows = min(max(case.batch_size, 1), CHECKED_ROWS)
        n_classes = case.n_classes
        if n_classes > CHECKED_CLASSES:
            n_classes = CHECKED_CLASSES - CHECKED_CLASSES % CHECKED_MULTIPLE + n_classes % CHECKED_MULTIPLE
        rng = torch.Generator().manual_seed(case.seed)
        scale = (case.logit_std or LOGIT_SCALE) / max(case.in_features, 1) ** 0.5
        self._hidden = self._placed(torch.randn(n_rows, case.in_features, generator=rng))
        self._weight = self._placed(scale * torch.randn(n_classes, case.in_features, generator=rng))
        # Half of the classes at most, so that some are absent.
        self._target = torch.randint(max(1, n_classes // 2), (n_rows,), generator=rng).to(self._device)
        plain = Setting("", lambda: linear_cross_entropy)
        self._truth = self._computed(plain, torch.float64)
        own = self._errors(self._computed(plain, self._dtype))
        # In float64 the truth is rounded as the results are.
        eps = torch.finfo(self._dtype).eps * (2 if self._dtype == torch.float64 else 1)
        self._budgets = {
            name: tuple(
                2 * (error + eps * size)
                for error, size in zip(errors, _sizes(self._truth[name]), strict=True)
            )
            for name, errors in own.items()
        }

    def fault(self, setting: Setting) -> str | None:
        """Why a setting is not exact, or None where it is."""
        for name, errors in self._errors(self._computed(setting, self._dtype)).items():
            for kind, error, budget in zip(_KINDS, errors, self._budgets[name], strict=True):
                if not error <= budget:  # nor is NaN
                    return f"inexact: {kind} error of {name} {error:.2g}, allowed {budget:.2g}"
        return None

    def _placed(self, values: Tensor) -> Tensor:
        return values.to(self._device, self._dtype)

    def _computed(self, setting: Setting, dtype: torch.dtype) -> dict[str, Tensor]:
        """Loss, and gradients where the case trains, in float64."""
        train = self._case.task == "train"
        model = LossOverMatrix(setting, self._weight.to(dtype, copy=True), train)
        hidden = self._hidden.to(dtype, copy=True).requires_grad_(train)
        with torch.set_grad_enabled(train):
            loss = model.loss(hidden, self._target)
        found = {"the loss": loss.detach()}
        if train:
            loss.backward()  # type: ignore[no-untyped-call]
            gradient = model.gradient()
            assert hidden.grad is not None
            absent = torch.ones(len(self._weight), dtype=torch.bool, device=self._device)
            absent[self._target] = False
            found |= {
                "the input's gradient": hidden.grad,
                "the weight's gradient": gradient[~absent],
                "the weight's gradient of absent classes": gradient[absent],
            }
        return {name: value.double() for name, value in found.items()}

    def _errors(self, found: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
        return {name: _sizes(found[name] - truth) for name, truth in self._truth.items()}


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Linear and cross entropy: what most models do."""
    return F.cross_entropy(F.linear(hidden, weight, bias), target)


def _sizes(values: Tensor) -> tuple[float, float]:
    """Root mean square and largest absolute value; 0 for no values."""
    if not values.numel():
        return 0.0, 0.0
    return float(values.square().mean().sqrt()), float(values.abs().max())


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
