"""Which full softmax to compare with: the fastest exact one of those that are installed.

The implementations and their settings are the contestants'; each setting is checked for exactness and timed
once at the study's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from zipfmax.errors import UsageError
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.full import Full
from zipfmax_reference.contestants.settings import (
    ExactnessCheck,
    Loss,
    LossOverMatrix,
    NoExactSettingError,
    Setting,
    choose,
    seconds_of,
)
from zipfmax_reference.runs.case import Case

ON_A_CPU = ("full",)
ON_A_GPU = ("full:liger", "full", "full:chunked", "full:compiled", "full:cce-exact", "full:quack")


@dataclass(frozen=True)
class Chosen:
    """An implementation of a loss over all classes, with a setting."""

    name: str
    """As `zipfmax sweep --impl` takes it."""
    setting: str
    exact: bool
    make: Callable[[], Loss]
    dtype: torch.dtype
    """Of the matrix and the hidden states that it takes."""

    @property
    def text(self) -> str:
        """As it is recorded."""
        return f"{self.name}: {self.setting}" if self.setting else self.name


def choice(
    name: str, n_classes: int, in_features: int, rows: int, device: str, dtype: str, known: str | None = None
) -> Chosen:
    """The fastest exact setting of an implementation, or for "full" on a GPU of all of them.

    Args:
        name: "full", "full:chunked", "sampled", ...
        n_classes, in_features, rows, device, dtype: the shape to choose for.
        known: the text of what was chosen before, which is taken without a search.

    Raises:
        UsageError: none that can run here and is exact.
    """
    cutoffs = (max(1, n_classes // 4),)
    case = Case(n_classes, in_features, rows, cutoffs, dtype=dtype, device=device)
    found: dict[str, Chosen] = {}
    reasons: list[str] = []
    names = (ON_A_CPU if device == "cpu" else ON_A_GPU) if name == "full" else (name,)
    for one in names:
        implementation = registry.implementation(one)
        assert isinstance(implementation, Full)
        reason = implementation.unsupported_reason(case)
        if reason is not None:
            reasons.append(reason)
            continue
        for setting in implementation.settings(case):
            if setting.padding.added(n_classes):
                continue  # the study's vocabularies are multiples that need none
            chosen = Chosen(
                one, setting.text, implementation.gradients.exact, setting.make, getattr(torch, dtype)
            )
            found[chosen.text] = chosen
    if known in found:
        return found[known]
    if not found:
        raise UsageError(f"layer {name} cannot run here: {'; '.join(reasons) or 'no setting fits'}")
    if len(found) == 1 or not all(chosen.exact for chosen in found.values()):
        return next(iter(found.values()))
    return found[_fastest(found, case)]


def _fastest(found: dict[str, Chosen], case: Case) -> str:
    device, dtype = torch.device(case.device), getattr(torch, case.dtype)
    draw = torch.Generator(device).manual_seed(0)
    scale = case.in_features**-0.5
    weight = torch.randn(case.n_classes, case.in_features, generator=draw, device=device) * scale
    weight = weight.to(dtype)
    hidden = torch.randn(case.batch_size, case.in_features, generator=draw, device=device)
    hidden = hidden.to(dtype).requires_grad_()
    target = torch.randint(case.n_classes, (case.batch_size,), generator=draw, device=device)
    check = ExactnessCheck(case)

    def seconds(setting: Setting, best: float) -> float:
        model = LossOverMatrix(setting, weight, train=True)

        def run() -> None:
            model.weight.grad = hidden.grad = None
            model.loss(hidden, target).backward()  # type: ignore[no-untyped-call]

        return seconds_of(run, device, best)

    try:
        return choose(list(_settings(found)), check.fault, seconds).setting.text
    except NoExactSettingError as error:
        raise UsageError(f"no full softmax here is exact: {error}") from error


def _settings(found: dict[str, Chosen]) -> Iterator[Setting]:
    for text, chosen in found.items():
        yield replace(Setting("", chosen.make), text=text)
