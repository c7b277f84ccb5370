"""Fill the tile table for the GPU at hand: `python -m zipfmax_bench.kernels.tune`.

Every candidate tile of the two kernels that stream a vocabulary is compiled in parallel, timed on a tail of
typical size, and checked against the result of the first; the fastest of each width is written to the table.
It runs for minutes, once; nothing is tuned when a model runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from zipfmax import timers
from zipfmax.backends.triton import tiles
from zipfmax.backends.triton.routing import Routes, route
from zipfmax.backends.triton.runtime import architecture
from zipfmax.backends.triton.tail import Tail
from zipfmax.backends.triton.tail_backward import WeightGradient, tail_weight_gradient_kernel
from zipfmax.backends.triton.tail_combine import Combine
from zipfmax.backends.triton.tail_forward import GRADIENT, Forward, tail_forward_kernel
from zipfmax.backends.triton.tiles import Tile
from zipfmax.errors import one_line

KERNELS = ("forward", "backward")
WIDTHS = (16, 32, 64, 128, 256, 512)
DTYPES = {"half": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
_ROWS = 1536
SAMPLES = 15

_CLASSES = {16: 150_000, 32: 150_000, 64: 150_000, 128: 60_000, 256: 40_000, 512: 20_000}


@dataclass(frozen=True)
class Candidate:
    """A tile to try for one kernel at one width."""

    kernel: str
    dtype: str
    width: int
    tile: tuple[tuple[str, int], ...]


def candidates(kernel: str, dtype: str, width: int) -> Iterator[Candidate]:
    """The tiles that could be fast: rows held and streamed, columns at a time, warps, stages."""
    exact = dtype == "float32"
    held, streamed = ("BM", "BN") if kernel == "forward" else ("BV", "BM")
    widest = 128 if exact else 256
    columns = (width,) if width <= widest // 2 else (min(width, widest), widest // 2, widest // 4)
    for a, b, k, warps, stages in itertools.product((64, 128), (32, 64, 128), columns, (4, 8), (2, 3)):
        # Registers a thread for the scores and for the float32 sums; more than this spills.
        if a * b / (32 * warps) > (32 if exact else 64) or a * k / (32 * warps) > (64 if exact else 128):
            continue
        if a // 16 < warps or (exact and stages > 2):
            continue
        tile = {held: a, streamed: b, "BK": k, "num_warps": warps, "num_stages": stages}
        for per_sm in ((2, 4) if exact else (1, 2, 4)) if kernel == "forward" else (0,):
            extra = {"PER_SM": per_sm} if per_sm else {}
            yield Candidate(kernel, dtype, width, tuple(sorted({**tile, **extra}.items())))


@dataclass(frozen=True)
class Problem:
    """A tail of typical size: its rows hold all there is of the batch."""

    h: Tensor
    weight: Tensor
    base: Tensor
    """Of each slot's softmax, as `Combine` writes it; its inverse is one over the classes."""
    routes: Routes

    @classmethod
    def draw(cls, dtype: str, width: int, device: torch.device) -> Problem:
        """Random weights and rows, the same for every candidate."""
        generator = torch.Generator(device).manual_seed(width)
        n_classes = _CLASSES[width]
        target = torch.randint(1, 1 + n_classes, (_ROWS,), generator=generator, device=device)
        routes = route(target, (1, 1 + n_classes), None)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(DTYPES[dtype])

        slots = routes.row.shape[0]
        h, weight = normal(slots, width), normal(n_classes, width) / width**0.5
        return cls(h, weight, torch.zeros(slots, device=device), routes)

    def run(self, candidate: Candidate) -> Tensor:
        """One call of the candidate's kernel; its result."""
        torch.set_float32_matmul_precision("high" if candidate.dtype == "tf32" else "highest")
        with tiles.overridden(candidate.kernel, dict(candidate.tile)):
            return self._backward() if candidate.kernel == "backward" else self._forward()

    @property
    def _tail(self) -> Tail:
        return Tail(0, self.h.shape[1], self.h.shape[1], self.weight.shape[0], False, False)

    def _backward(self) -> Tensor:
        """dW2."""
        gradient = torch.empty_like(self.weight)
        routes, h, base = self.routes, (self.h,), self.base
        inverse = torch.full_like(base, 1.0 / self.weight.shape[0])
        WeightGradient([self._tail], self.h.dtype, self.h.device, False, 1.0)(
            None, h, (self.weight,), h, base, inverse, routes.row, routes.target, routes.start, routes.rows,
            base, (gradient,), h,
        )  # fmt: skip
        return gradient

    def _forward(self) -> Tensor:
        """dH of each row."""
        routes, h, weight = self.routes, self.h, self.weight
        forward = Forward([self._tail], _ROWS, h.dtype, h.device, GRADIENT)
        peak, total, extra = (
            (torch.empty(shape, dtype=dtype, device=h.device),) for dtype, shape in forward.partials[0]
        )
        forward(None, (h,), (weight,), (h,), routes.start, routes.rows, peak, total, extra)
        output, dh = torch.zeros(_ROWS, device=h.device), torch.empty_like(h)
        base = torch.empty_like(self.base)
        Combine([self._tail], forward, _ROWS, h.dtype, True, False)(
            None, peak, total, extra, (h,), (weight,), (h,), routes.row, routes.target, routes.start,
            routes.rows,
            output, output, base, torch.empty_like(base), (dh,),
        )  # fmt: skip
        return dh[:_ROWS]


def _compile(candidate: Candidate) -> str:
    """Compile into Triton's cache, in a process of its own; the reason where the tile is of no use."""
    kernel = tail_forward_kernel if candidate.kernel == "forward" else tail_weight_gradient_kernel
    compiled = kernel.device_caches[torch.cuda.current_device()][0]
    compiled.clear()
    try:
        Problem.draw(candidate.dtype, candidate.width, torch.device("cuda")).run(candidate)
        torch.cuda.synchronize()
    except (triton.CompilationError, triton.runtime.errors.OutOfResources) as error:
        return one_line(error)
    spills = max(variant.n_spills for variant in compiled.values())
    return f"spills {spills} registers" if spills else ""


@dataclass(frozen=True)
class TileTiming:
    """What came of a candidate."""

    candidate: Candidate
    milliseconds: float | None
    reason: str


def measure(
    candidate: Candidate, problem: Problem, expected: Tensor | None
) -> tuple[TileTiming, Tensor | None]:
    """Median milliseconds of a candidate, and its result, which must be the expected one."""
    try:
        result = problem.run(candidate).float()
        if expected is not None:
            error = ((result - expected).norm() / expected.norm()).item()
            if not error < 2e-2:
                return TileTiming(candidate, None, f"differs from the first candidate by {error:.1e}"), None
        # Replays of a graph: at these lengths the host would be timed with it otherwise.
        replay = timers.replayed(lambda: _discard(problem.run(candidate)))
        seconds = timers.sample(replay, timers.timer_for("cuda"), SAMPLES)
    except (triton.CompilationError, triton.runtime.errors.OutOfResources) as error:
        return TileTiming(candidate, None, one_line(error)), None
    return TileTiming(candidate, seconds.device_s * 1e3, ""), result


def _discard(result: Tensor) -> None:
    """Let go of a result that nobody reads."""


def tune(dtypes: list[str], widths: list[int], kernels: list[str], workers: int) -> list[TileTiming]:
    """Time every candidate; those that do not compile or compute something else have a reason instead."""
    device = torch.device("cuda")
    everything = [c for d in dtypes for w in widths for k in kernels for c in candidates(k, d, w)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        reasons = list(pool.map(_compile, everything, chunksize=2))
    timings = []
    for key, group in itertools.groupby(
        zip(everything, reasons, strict=True), lambda pair: (pair[0].dtype, pair[0].width, pair[0].kernel)
    ):
        problem, expected = Problem.draw(key[0], key[1], device), None
        for candidate, reason in group:
            if reason:
                timings.append(TileTiming(candidate, None, reason))
                continue
            one, result = measure(candidate, problem, expected)
            expected = result if expected is None else expected
            timings.append(one)
    return timings


def best(timings: list[TileTiming]) -> dict[str, dict[str, dict[str, Tile]]]:
    """{dtype: {kernel: {width: fastest tile}}}."""
    chosen: dict[tuple[str, str, int], TileTiming] = {}
    for one in timings:
        if one.milliseconds is None:
            continue
        c = one.candidate
        key = (c.dtype, c.kernel, c.width)
        if key not in chosen or one.milliseconds < (chosen[key].milliseconds or 0.0):
            chosen[key] = one
    out: dict[str, dict[str, dict[str, Tile]]] = {}
    for (dtype, kernel, width), one in chosen.items():
        out.setdefault(dtype, {}).setdefault(kernel, {})[str(width)] = dict(one.candidate.tile)
    return out


def merged(table: dict[str, Any], arch: str, found: dict[str, dict[str, dict[str, Tile]]]) -> dict[str, Any]:
    """The table with what was found put in; what was not tuned stays."""
    part = json.loads(json.dumps(table.get(arch, table["sm_80"])))
    for dtype, kernels in found.items():
        for kernel, by_width in kernels.items():
            part.setdefault(dtype, {}).setdefault(kernel, {}).update(by_width)
    return {**table, arch: part}


def dump(table: dict[str, Any]) -> str:
    """The table as JSON with one tile a line."""
    text = json.dumps(table, indent=1)
    return (
        re.sub(r'\{\s*("B[^{}]*?)\s*\}', lambda m: "{" + re.sub(r"\s+", " ", m.group(1)) + "}", text) + "\n"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--widths", nargs="+", type=int, choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="compiler processes")
    parser.add_argument(
        "--output", type=Path, default=None, help="where to write (default: the package's table)"
    )
    parser.add_argument(
        "--log", type=Path, default=None, help="every candidate's time, one JSON object a line"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("tune: needs a GPU, and torch sees none", file=sys.stderr)
        sys.exit(2)
    timings = tune(arguments.dtypes, arguments.widths, arguments.kernels, arguments.workers)
    if arguments.log is not None:
        lines = (
            {**vars(t.candidate), "tile": dict(t.candidate.tile), "ms": t.milliseconds, "reason": t.reason}
            for t in timings
        )
        arguments.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arch = architecture(torch.device("cuda", torch.cuda.current_device()))
    table = merged(tiles.table(), arch, best(timings))
    output = arguments.output or Path(str(files("zipfmax.backends.triton").joinpath("tiles.json")))
    output.write_text(dump(table))
    for dtype, kernels in best(timings).items():
        for kernel, by_width in kernels.items():
            for width, tile in by_width.items():
                ms = min(
                    t.milliseconds
                    for t in timings
                    if t.milliseconds is not None
                    and t.candidate.tile == tuple(sorted(tile.items()))
                    and (t.candidate.dtype, t.candidate.kernel, t.candidate.width)
                    == (dtype, kernel, int(width))
                )
                print(f"{arch} {dtype} {kernel} K={width}: {ms:.4f} ms {tile}")


if __name__ == "__main__":
    main()
