"""Where a whole training step is faster, and where not: `zipfmax study --map --out DIR`.

The parts of a step are measured by themselves: full softmax (the fastest exact one that is installed) and
zipfmax with customary cutoffs, over a grid of vocabularies and widths; the input embedding of that size; and
transformers of several depths. The page adds them up, so the map holds for any trunk, and lays the whole steps
that a study measured over it. A call that is stopped goes on with --resume.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from zipfmax.clusters import ClusterLayout
from zipfmax.errors import UsageError, one_line
from zipfmax_bench.presets import customary_cutoffs
from zipfmax_bench.study import outputs, trunk
from zipfmax_bench.study.full import choice
from zipfmax_bench.study.options import StudyOptions
from zipfmax_bench.study.steps import in_turns
from zipfmax_bench.study.training import autocast, release, update
from zipfmax_bench.whole_step import zipf
from zipfmax_reference.console import terminal
from zipfmax_reference.records import RunDirectory, StudyMap, StudyTrunk
from zipfmax_reference.runs.device import present
from zipfmax_reference.runs.invocation import invocation

CLASSES = (9_984, 29_952, 100_224, 300_288, 1_000_320)
"""10,000 to a million, in multiples of 384, so that no full softmax has to pad."""


@dataclass(frozen=True)
class MapOptions:
    """The grid."""

    classes: tuple[int, ...] = CLASSES
    features: tuple[int, ...] = (256, 512, 1024)
    depths: tuple[int, ...] = (2, 6, 12)
    """Of the transformers."""
    sequences: int = 32
    length: int = 256
    rounds: int = 7
    device: str = "cuda"

    @property
    def step(self) -> StudyOptions:
        """What every part of a step has in common."""
        return StudyOptions(sequences=self.sequences, length=self.length, device=self.device)


def grid(device: str) -> MapOptions:
    """What is measured on a device: smaller models on a CPU."""
    if device == "cpu":
        return MapOptions(
            features=(128, 256), depths=(1, 2, 4), sequences=8, length=32, rounds=3, device=device
        )
    return MapOptions(device=device)


def measure(options: MapOptions, directory: RunDirectory, over: Callable[[], bool] = lambda: False) -> bool:
    """Measure what the run directory lacks; returns whether all is done before `over` says stop."""
    console = terminal(soft_wrap=True)
    for features, depth in product(options.features, options.depths):
        key = (options.device, options.step.dtype, "transformer", depth, features, options.step.rows)
        if key not in directory.finished(StudyTrunk):
            if over():
                return False
            directory.write(found := trunk_time(options, features, depth))
            console.print(f"{depth} layers, d {features}: {found.step_s * 1e3:.2f} ms")
    for classes, features in product(options.classes, options.features):
        step = options.step
        if (step.device, step.dtype, classes, features, step.rows) not in directory.finished(StudyMap):
            if over():
                return False
            directory.write(cell := cell_times(options, classes, features))
            console.print(
                f"V {classes:,}, d {features}: full {_ms(cell.full_s)}, zipfmax {_ms(cell.adaptive_s)}, "
                f"inputs {_ms(cell.inputs_s)}; {cell.full_computes}"
            )
            release()
    return True


def trunk_time(options: MapOptions, features: int, depth: int) -> StudyTrunk:
    """The time of a transformer by itself."""
    step = options.step
    with torch.device(options.device):
        model = trunk.build("transformer", features, depth, options.length)
        given = torch.randn(options.sequences, options.length, features)

    def loss() -> Tensor:
        hidden: Tensor = model(given, None)[0]
        return hidden.float().square().mean()

    (samples,) = in_turns([_step(step, model, loss)], options.rounds, torch.device(options.device))
    return StudyTrunk(
        device=step.device,
        dtype=step.dtype,
        trunk="transformer",
        depth=depth,
        in_features=features,
        rows=step.rows,
        flops=trunk.forward_flops("transformer", features, depth, options.length),
        step_s=statistics.median(samples),
        samples_s=samples,
    )


def cell_times(options: MapOptions, classes: int, features: int) -> StudyMap:
    """The times of full softmax, zipfmax and the input embedding at one shape; a part that fails has none."""
    step, device = options.step, torch.device(options.device)
    cutoffs = customary_cutoffs(classes)
    target = zipf(step.rows, classes, 0, device)
    full_computes = ""
    steps: dict[str, Callable[[], None]] = {}
    try:
        chosen = choice("full", classes, features, step.rows, step.device, step.dtype)
        full_computes = chosen.text
        release()
        with torch.device(device):
            steps["full"] = _output_step(
                step, outputs.FullOutput(features, classes, chosen), features, target
            )
        steps["full"]()
    except (UsageError, RuntimeError, torch.OutOfMemoryError) as error:
        full_computes = one_line(error)
        steps.pop("full", None)
    with torch.device(device):
        name = outputs.parsed("zipfmax")
        layout = ClusterLayout(features, classes, cutoffs)
        steps["adaptive"] = _output_step(
            step, outputs.build(name, features, classes, layout, None), features, target
        )
        embedding = nn.Embedding(classes, features)
    steps["inputs"] = _step(step, embedding, lambda: embedding(target).square().mean())
    samples = dict(zip(steps, in_turns(list(steps.values()), options.rounds, device), strict=True))
    medians = {f"{part}_s": statistics.median(found) for part, found in samples.items()}
    return StudyMap(
        device=step.device,
        dtype=step.dtype,
        n_classes=classes,
        in_features=features,
        rows=step.rows,
        cutoffs=list(cutoffs),
        full_computes=full_computes,
        full_s=medians.get("full_s"),
        adaptive_s=medians.get("adaptive_s"),
        inputs_s=medians.get("inputs_s"),
        full_samples_s=samples.get("full", []),
        adaptive_samples_s=samples["adaptive"],
        inputs_samples_s=samples["inputs"],
    )


def _output_step(
    step: StudyOptions, output: outputs.Output, features: int, target: Tensor
) -> Callable[[], None]:
    hidden = torch.randn(len(target), features, device=target.device, requires_grad=True)

    def loss() -> Tensor:
        hidden.grad = None
        found: Tensor = output(hidden, target)
        return found

    return _step(step, output, loss)


def _step(options: StudyOptions, model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=True)

    def step() -> None:
        with autocast(options):
            found = loss()
        found.backward()  # type: ignore[no-untyped-call]
        update(model, optimizer)

    return step


def _ms(seconds: float | None) -> str:
    return "none" if seconds is None else f"{seconds * 1e3:.2f} ms"


def run(options: MapOptions, out: Path, resume: bool = False, limit_s: float | None = None) -> int:
    """Measure the map into a run directory, its own or a study's.

    Returns:
        0: it is done, or the limit was reached; `resume` goes on then.

    Raises:
        UsageError: a device that is not there, or a folder that holds something and `resume` is off.
    """
    present(options.device)
    ends_at = float("inf") if limit_s is None else time.monotonic() + limit_s
    directory = RunDirectory.start(out, invocation({"map": asdict(options)}), resume)
    if not measure(options, directory, lambda: time.monotonic() > ends_at):
        terminal().print(f"stopped after {limit_s:.0f} s; --resume goes on", soft_wrap=True)
    return 0
