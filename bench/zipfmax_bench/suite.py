"""The cells of `pytest --benchmark`, measured as a sweep measures them and handed to pytest-benchmark.

A case is measured once for all implementations that the session asks for, interleaved, each in its worker;
the benchmark of each implementation then gives pytest-benchmark the samples. Its timer is their own clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from zipfmax.errors import UsageError
from zipfmax_bench import presets
from zipfmax_bench.engine import Engine, Measurement, SamplingPolicy
from zipfmax_bench.messages import LIMIT
from zipfmax_bench.parity_guard import ParityGuard
from zipfmax_bench.timings import REFERENCES, timing_of
from zipfmax_reference.contestants import registry
from zipfmax_reference.records import RunDirectory, Timing
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.invocation import invocation

AXES = {
    "quick": presets.Axes(
        classes=(10_000,),
        labels=("zipf:1.0",),
        features=(64,),
        batch=(128,),
        policy=SamplingPolicy(seconds=0.5, least=5, budget_s=5.0),
    ),
    "full": replace(
        presets.PRESETS["quick"],
        classes=tuple(presets.LITERATURE_CUTOFFS),
        labels=("zipf:1.0", "wordfreq:en"),
        also=(),
        policy=SamplingPolicy(),
    ),
}
# Log-probabilities of all classes, which most implementations' topk reads too, take memory that grows with
# the vocabulary.
_ALL_CLASSES = ("log_prob", "topk")
_ALL_CLASSES_LIMIT = 50_000


def cases(size: str, task: str) -> list[Case]:
    """The cases of a task; on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = presets.cases(replace(AXES[size], tasks=(task,), device=device))
    return [case for case in found if task not in _ALL_CLASSES or case.n_classes <= _ALL_CLASSES_LIMIT]


def implementations(case: Case, own: Sequence[str] = ()) -> list[str]:
    """Every implementation that can do a case here. `zipfmax` is left to stand for the backend it takes.

    With layers of the user's `own`, which are not imported here: those, and what they are compared with.
    """
    names = REFERENCES if own else registry.names()
    able = [name for name in names if registry.implementation(name).unsupported_reason(case) is None]
    return [*own, *able]


def check_own(name: str) -> None:
    """See that a name stands for a class of the user's own, as far as that shows without importing it.

    Raises:
        UsageError: a built-in name, or a file that is not there.
    """
    if not registry.runs_code_of_others(name):
        raise UsageError(
            f"{name} is no class of your own: expected path/file.py:Class or package.module:Class"
        )
    registry.check_place(name)


class Clock:
    """A timer for pytest-benchmark that shows how much measured time has been handed over."""

    def __init__(self, samples: Iterable[float]) -> None:
        self._samples = iter(samples)
        self._now = 0.0

    def __call__(self) -> float:
        """Seconds so far."""
        return self._now

    def advance(self) -> None:
        """Let the next sample's time pass."""
        self._now += next(self._samples)


class Cell:
    """A measured cell, to be handed to pytest-benchmark with everything that its own statistics lack."""

    def __init__(self, timing: Timing, parity_error: float | None = None) -> None:
        self.timing = timing
        self.parity_error = parity_error
        self.clock = Clock(timing.samples_s)

    def hand_to(self, benchmark: Any) -> None:
        """Give the samples to the `benchmark` fixture, whose timer is this cell's clock."""
        fields = self.timing.model_dump(mode="json")
        benchmark.extra_info |= {k: value for k, value in fields.items() if not k.startswith("samples_")}
        benchmark.extra_info["parity_error"] = self.parity_error
        benchmark.pedantic(self.clock.advance, rounds=len(self.timing.samples_s))


class Suite:
    """Measures each case of a session once, and keeps what it found.

    Args:
        names: every implementation that the session will ask for.
        size: "quick" or "full".
        folder: where parity lines and the workers' output go.
        threads: of every worker.
        processes: replicates of every implementation.
    """

    def __init__(self, names: Sequence[str], size: str, folder: Path, threads: int, processes: int) -> None:
        self.policy = AXES[size].policy
        self.threads = threads
        self._directory = RunDirectory.start(folder / "run", invocation({"suite": {"size": size}}))
        log = self._directory.path / "workers.log"
        self._engine = Engine.of_processes([*names, LIMIT], threads, processes, log)
        self._guard = ParityGuard(self._directory, threads, log, self._engine.server)
        self._found: dict[str, dict[str, Measurement]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guard.__exit__(kind, error, trace)
        self._engine.__exit__(kind, error, trace)

    def cell(self, case: Case, name: str, together_with: Sequence[str]) -> Cell:
        """An implementation on a case, which is measured with others at the first call."""
        if case.id not in self._found:
            subjects = dict.fromkeys([*together_with, LIMIT], case)
            self._found[case.id] = self._engine.measure(
                subjects, self.policy, judge=self._guard.fault, verifier=self._guard
            )
        found = self._found[case.id]
        adaptive = registry.family(name) == "adaptive"
        timing = timing_of(case, name, found, found[LIMIT] if adaptive else None, self.threads)
        return Cell(timing, self.parity_error(case, name))

    def parity_error(self, case: Case, name: str) -> float | None:
        """The implementation's largest error as a share of its budget."""
        return self._guard.worst(name, case)
