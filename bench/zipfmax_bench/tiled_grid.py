"""`python -m zipfmax_bench.tiled_grid`: the tiled backend on a CPU against torch.nn, Paddle and its limit.

Three vocabularies, sizes and skews, and five shapes that nothing was tuned on; two dtypes, forward and training
step. Every implementation works in a process of its own, asked in random order round after round. Prints a
Markdown table, the geometric means of both parts, and the cells that are slower than torch.nn beyond their
interval; finished cells are on the disk at once, and the same command goes on where it stopped.

`torch / limit` is how much faster than torch.nn anything made of the same matrix products could be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated

import typer
from rich.progress import track

from zipfmax.errors import UsageError
from zipfmax_bench.engine import Engine, Measurement, SamplingPolicy
from zipfmax_bench.messages import LIMIT
from zipfmax_bench.presets import LITERATURE_CUTOFFS
from zipfmax_bench.threads import default_threads
from zipfmax_bench.timings import timing_of
from zipfmax_reference.console import terminal
from zipfmax_reference.records import RunDirectory, Timing
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.invocation import invocation

OURS = "zipfmax:tiled"
SIZES = ((256, 512), (512, 1024), (1024, 4096))
"""(in_features, batch_size)"""
SKEWS = (0.8, 1.0, 1.3)
HELD_OUT = {
    20_011: ((1500, 6000), 200, 640),
    33_000: ((1000, 5000, 15_000), 300, 1000),
    80_000: ((4000, 20_000), 640, 900),
    151_936: ((8000, 40_000), 448, 1280),
    256_000: ((10_000, 30_000, 100_000), 576, 2048),
}
"""Vocabularies of which no one looked at a time while the backend was written: cutoffs, in_features, batch_size."""
LEAST_ROUNDS = 3


def cases(
    classes: Iterable[int], skews: Iterable[float], dtypes: Iterable[str], tasks: Iterable[str]
) -> Iterator[Case]:
    """The grid, small cells first."""
    shapes: list[tuple[int, tuple[int, ...], int, int]] = []
    for n_classes in classes:
        if n_classes in HELD_OUT:
            shapes.append((n_classes, *HELD_OUT[n_classes]))
        else:
            shapes += [(n_classes, LITERATURE_CUTOFFS[n_classes], *size) for size in SIZES]
    # Cases that differ only in skew share their weights, so they come one after the other.
    for (n_classes, cutoffs, features, batch), dtype, task, skew in product(shapes, dtypes, tasks, skews):
        yield Case(
            n_classes=n_classes,
            in_features=features,
            batch_size=batch,
            cutoffs=cutoffs,
            dtype=dtype,
            labels=f"zipf:{skew:.1f}",
            task=task,
        )


def implementations(case: Case) -> list[str]:
    """Who takes part: Paddle where it is asked for, in float32 training."""
    paddle = ["paddle"] if (case.dtype, case.task) == ("float32", "train") else []
    return [OURS, "torch", *paddle]


class Grid:
    """Measures cases one after the other.

    Args:
        engine: of all implementations.
        policy: of a case.
        paddle_s: what one run of Paddle may take. Its CPU softmax is quadratic in the classes, so a case in
            which it takes longer ends its part in all that are as large.
        threads: of every worker.
    """

    def __init__(self, engine: Engine, policy: SamplingPolicy, paddle_s: float, threads: int) -> None:
        self._engine, self._policy, self._threads = engine, policy, threads
        self._paddle_policy = replace(policy, budget_s=policy.least_rounds * paddle_s)
        self._too_large_for_paddle: list[Case] = []

    def measure(self, case: Case) -> list[Timing]:
        """A timing of each implementation on a case."""
        names = implementations(case)
        smaller = self._paddle_failed_on(case) if "paddle" in names else None
        subjects = dict.fromkeys([*names, LIMIT], case)
        if smaller is not None:
            del subjects["paddle"]
        found = self._engine.measure(subjects, self._policy, policies={"paddle": self._paddle_policy})
        if smaller is not None:
            found["paddle"] = Measurement("over_budget", f"so it was in {smaller.id}")
        elif "paddle" in names and found["paddle"].status == "over_budget":
            self._too_large_for_paddle.append(case)
        limit = found.pop(LIMIT)
        return [timing_of(case, name, found, limit, self._threads) for name in names]

    def _paddle_failed_on(self, case: Case) -> Case | None:
        """A case no larger than this one in which Paddle was over its budget."""
        for smaller in self._too_large_for_paddle:
            if smaller.n_classes <= case.n_classes and smaller.batch_size <= case.batch_size:
                return smaller
        return None


@dataclass(frozen=True)
class GridRow:
    """Our timing of a case, and its rivals' where they were asked."""

    ours: Timing
    torch: Timing | None = None
    paddle: Timing | None = None

    @property
    def kind(self) -> tuple[bool, str, str]:
        """Whether the shape was held out, and task and dtype."""
        return self.ours.n_classes in HELD_OUT, self.ours.task, self.ours.dtype

    def ratio(self, rival: str) -> float | None:
        """How many times as long as ours a rival takes; None where it has no time."""
        other: Timing | None = getattr(self, rival)
        if other is None or other.median_s is None or self.ours.median_s is None:
            return None
        return other.median_s / self.ours.median_s

    @property
    def torch_by_limit(self) -> float | None:
        """torch's time over the limit."""
        if self.torch is None or not self.torch.median_s or not self.ours.limit_s:
            return None
        return self.torch.median_s / self.ours.limit_s


def rows(timings: Iterable[Timing]) -> list[GridRow]:
    """One row for each case that has a time of ours."""
    by_case: dict[str, dict[str, Timing]] = {}
    for timing in timings:
        by_case.setdefault(timing.case, {})[timing.impl] = timing
    return [
        GridRow(ours, group.get("torch"), group.get("paddle"))
        for group in by_case.values()
        if (ours := group.get(OURS)) is not None and ours.median_s is not None
    ]


def markdown(found: Sequence[GridRow]) -> str:
    """The table: milliseconds, times faster, efficiency, and temporary memory."""
    head = (
        "| task | dtype | classes | d | N | Zipf | tiled ms | torch ms | x torch | x Paddle | limit ms "
        "| torch / limit | efficiency | MiB | torch MiB |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for row in found:
        ours, torch = row.ours, row.torch
        cells = (
            ours.task,
            ours.dtype,
            f"{ours.n_classes:,}",
            ours.in_features,
            ours.batch_size,
            ours.labels.removeprefix("zipf:"),
            _number(ours.median_s, 1e3, ".1f"),
            _number(torch.median_s if torch else None, 1e3, ".1f"),
            _number(row.ratio("torch"), 1, ".2f"),
            _number(row.ratio("paddle"), 1, ".2f"),
            _number(ours.limit_s, 1e3, ".1f"),
            _number(row.torch_by_limit, 1, ".2f"),
            _number(ours.efficiency, 1, ".2f"),
            _number(ours.peak_bytes, 2**-20, ".0f"),
            _number(torch.peak_bytes if torch else None, 2**-20, ".0f"),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def summary(found: Sequence[GridRow]) -> list[str]:
    """Geometric mean and worst cell of each task and dtype, against each rival; least efficiency; slower cells."""
    said = []
    for held_out, task, dtype in sorted({row.kind for row in found}):
        group = [row for row in found if row.kind == (held_out, task, dtype)]
        part = ", held out" if held_out else ""
        for rival in ("torch", "paddle"):
            ratios = [ratio for row in group if (ratio := row.ratio(rival))]
            if ratios:
                said.append(
                    f"{task} {dtype}{part} against {rival}: {geometric_mean(ratios):.2f}x in the geometric mean of "
                    f"{len(ratios)} cells, {min(ratios):.2f}x to {max(ratios):.2f}x"
                )
        ceilings = [ceiling for row in group if (ceiling := row.torch_by_limit)]
        if ceilings:
            said.append(
                f"{task} {dtype}{part}, torch / limit: {geometric_mean(ceilings):.2f} in the geometric mean, "
                f"{min(ceilings):.2f} to {max(ceilings):.2f}"
            )
        large = [row.ours.efficiency for row in group if row.ours.in_features >= 512 and row.ours.efficiency]
        if large:
            said.append(f"{task} {dtype}{part} efficiency for d >= 512: {min(large):.2f} to {max(large):.2f}")
    slower = [row.ours.case for row in found if row.ours.speedup_vs_torch_verdict == "SLOWER"]
    said.append(f"slower than torch beyond the 95 % interval: {len(slower)} of {len(found)} cells")
    return [*said, *slower]


def _number(value: float | None, factor: float, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value * factor, form)


def main(
    out: Annotated[Path, typer.Option(help="Run directory; a finished cell in it is not measured again.")],
    classes: Annotated[list[int] | None, typer.Option(help="Vocabularies; by default all eight.")] = None,
    skew: Annotated[list[float] | None, typer.Option(help="Zipf exponents; by default all three.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16; by default both.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="train, forward; by default both.")] = None,
    seconds: Annotated[float, typer.Option(help="Of samples for each implementation in a cell.")] = 1.0,
    paddle_seconds: Annotated[
        float, typer.Option(help="Of one run of Paddle; beyond it, it is over budget.")
    ] = 2.0,
    threads: Annotated[int | None, typer.Option(help="By default all cores.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write the table and the summary there too.")
    ] = None,
) -> None:
    """Measure the tiled backend over its grid."""
    known = [*sorted(LITERATURE_CUTOFFS), *HELD_OUT]
    unknown = sorted(set(classes or ()) - set(known))
    if unknown:
        raise UsageError(f"--classes should be of {known}, got {unknown}")
    threads = threads or default_threads()
    directory = RunDirectory.start(out, invocation({"threads": threads, "seconds": seconds}), out.exists())
    done = {timing.case for timing in directory.read(Timing)}
    wanted = cases(
        classes or known,
        skew or SKEWS,
        dtype or ("float32", "bfloat16"),
        task or ("train", "forward"),
    )
    todo = [case for case in wanted if case.id not in done]
    policy = SamplingPolicy(seconds=seconds, least=LEAST_ROUNDS, budget_s=120.0)
    console = terminal()
    names = [OURS, "torch", "paddle", LIMIT]
    with Engine.of_processes(names, threads, log=out / "workers.log") as engine:
        grid = Grid(engine, policy, paddle_seconds, threads)
        for case in track(todo, description="measuring", console=console, transient=True):
            directory.write(*grid.measure(case))
    found = rows(directory.read(Timing))
    text = "\n".join([markdown(found), "", *(f"- {line}" for line in summary(found))])
    print(text)
    if markdown_file is not None:
        markdown_file.write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
