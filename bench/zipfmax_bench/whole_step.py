"""Whole training steps on a GPU, and the layer's own: `python -m zipfmax_bench.whole_step`.

A step is what a user runs: embedding, transformer, output layer, backward, fused AdamW, in bfloat16, with
labels by Zipf's law; once without an output layer (the mean square of the hidden states is the loss), with
full softmax, with torch.nn's adaptive softmax and with zipfmax's. Eager, compiled, and compiled with
mode="reduce-overhead". All models are in one process and take turns in random order, because a host drifts by
a quarter over minutes; a sample is the wall time of two steps, and the median of each model's samples is
reported. The second table is of the layer alone, forward and backward of the mean loss.

Results go to a file of JSON lines, one a model and mode, and as tables in Markdown to standard output.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.backends.triton.captured import graphs
from zipfmax.errors import one_line

VOCABULARY = 267_735
CUTOFFS = {"20k/60k": [20_000, 60_000], "5k/20k/100k": [5_000, 20_000, 100_000]}
MODES = ("eager", "compiled", "reduce-overhead")
DEVICE = torch.device("cuda")


@dataclass(frozen=True)
class Trunk:
    """A transformer and a batch."""

    layers: int
    d: int
    sequences: int
    length: int
    vocabulary: int = VOCABULARY

    @property
    def rows(self) -> int:
        """Labels of a step."""
        return self.sequences * self.length

    def __str__(self) -> str:
        """As the tables name it."""
        return f"{self.layers} layers, d {self.d}, N {self.rows}, V {self.vocabulary}"


TRUNKS = {
    "large": Trunk(4, 512, 16, 256),
    "middle": Trunk(3, 384, 8, 256, 130_000),
    "small": Trunk(2, 256, 4, 256),
}


class NoOutputLayer(nn.Module):
    """The mean square of the hidden states."""

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        """A loss."""
        return hidden.float().square().mean()


class FullSoftmaxLoss(nn.Module):
    """Exact softmax over all labels: all logits at a time, or chunk by chunk of rows, computed twice."""

    def __init__(self, d: int, vocabulary: int, chunk: int | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(d, vocabulary, bias=False)
        self.chunk = chunk

    def _sum(self, hidden: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(self.linear(hidden), target, reduction="sum").float()

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        """The mean loss."""
        if self.chunk is None:
            return self._sum(hidden, target) / len(target)
        parts = zip(torch.split(hidden, self.chunk), torch.split(target, self.chunk), strict=True)
        sums = [checkpoint(self._sum, h, t, use_reentrant=False) for h, t in parts]
        return torch.stack(sums).sum() / len(target)


class LossOf(nn.Module):
    """An adaptive softmax of which the loss is taken."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        """The mean loss."""
        loss: Tensor = self.layer(hidden, target).loss
        return loss


class WholeModel(nn.Module):
    """Embedding, transformer and output layer."""

    def __init__(self, trunk: Trunk, output: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(trunk.vocabulary, trunk.d)
        layer = nn.TransformerEncoderLayer(
            trunk.d, trunk.d // 64, 4 * trunk.d, dropout=0.0, batch_first=True, norm_first=True
        )
        self.trunk = nn.TransformerEncoder(layer, trunk.layers, enable_nested_tensor=False)
        self.output = output
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(trunk.length))

    def forward(self, words: Tensor, target: Tensor) -> Tensor:
        """The loss of [sequences, length] words and their successors."""
        hidden = self.trunk(self.embedding(words), mask=self.mask, is_causal=True)
        loss: Tensor = self.output(hidden.flatten(0, 1), target.flatten())
        return loss


def outputs(trunk: Trunk) -> dict[str, Callable[[], nn.Module]]:
    """What computes the loss, by name."""
    made: dict[str, Callable[[], nn.Module]] = {
        "no output layer": NoOutputLayer,
        "full softmax": lambda: FullSoftmaxLoss(trunk.d, trunk.vocabulary),
        "full softmax, chunked": lambda: FullSoftmaxLoss(trunk.d, trunk.vocabulary, 1024),
    }
    for name, cutoffs in CUTOFFS.items():
        made[f"torch.nn {name}"] = lambda c=cutoffs: LossOf(  # type: ignore[misc]
            nn.AdaptiveLogSoftmaxWithLoss(trunk.d, trunk.vocabulary, c)
        )
        made[f"zipfmax {name}"] = lambda c=cutoffs: LossOf(  # type: ignore[misc]
            AdaptiveLogSoftmaxWithLoss(trunk.d, trunk.vocabulary, c)
        )
    return made


def zipf(n: int, vocabulary: int, seed: int, device: torch.device = DEVICE) -> Tensor:
    """n labels by Zipf's law with exponent 1, int64."""
    generator = torch.Generator().manual_seed(seed)
    weights = 1.0 / torch.arange(1, vocabulary + 1, dtype=torch.float64)
    drawn = torch.rand(n, generator=generator, dtype=torch.float64) * weights.sum()
    return torch.searchsorted(weights.cumsum(0), drawn).clamp_(max=vocabulary - 1).to(device)


@dataclass
class StepRow:
    """What was measured of one step in one mode."""

    table: str
    """"whole step" or "layer"."""
    shape: str
    model: str
    mode: str
    samples_ms: list[float]
    """Wall time of one step each."""
    error: str = ""
    """Why there are no samples."""

    @property
    def median_ms(self) -> float:
        """NaN where there are none."""
        return statistics.median(self.samples_ms) if self.samples_ms else float("nan")


Step = Callable[[], None]


def whole_steps(trunk: Trunk, modes: Iterable[str], names: str) -> Iterator[tuple[str, str, Step]]:
    """(model, mode, step) of each whole step that is asked for."""
    words = zipf(trunk.rows + 1, trunk.vocabulary, 0)
    inputs, target = (part.view(trunk.sequences, trunk.length) for part in (words[:-1], words[1:]))
    for name, output in outputs(trunk).items():
        if names and name not in names.split(","):
            continue
        torch.manual_seed(0)
        model = WholeModel(trunk, output()).to(DEVICE, torch.bfloat16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        for mode in modes:
            call = _in_mode(model, mode)

            def step(call: Any = call, optimizer: Any = optimizer) -> None:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                call(inputs, target).backward()
                optimizer.step()
                optimizer.zero_grad()

            yield name, mode, step


def _in_mode(module: Any, mode: str) -> Any:
    if mode == "eager":
        return module
    return torch.compile(module, mode=None if mode == "compiled" else mode)


LAYERS = {
    "1024, 256": (1024, 256),
    "4096, 512": (4096, 512),
    "16384, 1024": (16384, 1024),
}


def layer_steps(n: int, d: int, cutoffs: list[int], modes: Iterable[str]) -> Iterator[tuple[str, str, Step]]:
    """(what is compiled, mode, step) of the layer alone."""
    torch.manual_seed(0)
    hidden = torch.randn(n, d, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    target = zipf(n, VOCABULARY, 1)

    def step_of(call: Any, parameters: list[Any]) -> Step:
        def step() -> None:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            found = call(hidden, target)
            (found.loss if hasattr(found, "loss") else found).backward()
            hidden.grad = None
            for parameter in parameters:
                parameter.grad = None

        return step

    factory: dict[str, Any] = {"device": DEVICE, "dtype": torch.bfloat16}
    theirs = nn.AdaptiveLogSoftmaxWithLoss(d, VOCABULARY, cutoffs, **factory)
    yield "torch.nn", "eager", step_of(theirs, list(theirs.parameters()))
    ours = AdaptiveLogSoftmaxWithLoss(d, VOCABULARY, cutoffs, **factory)
    parameters = list(ours.parameters())
    eager = step_of(ours, parameters)
    yield "zipfmax", "eager", eager

    def launched() -> None:
        with graphs.paused():
            eager()

    yield "zipfmax, no captured steps", "eager", launched
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            eager()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        eager()
    yield "zipfmax", "CUDA graph", graph.replay
    for mode in modes:
        if mode == "eager":
            continue
        yield "zipfmax, layer returned", mode, step_of(_in_mode(ours, mode), parameters)
        yield "zipfmax, loss alone", mode, step_of(_in_mode(LossOf(ours), mode), parameters)
        try:
            told = AdaptiveLogSoftmaxWithLoss(d, VOCABULARY, cutoffs, gradients="loss", **factory)
        except TypeError:
            continue  # a version without that argument
        call = step_of(_in_mode(told, mode), list(told.parameters()))
        yield "zipfmax, layer returned, gradients='loss'", mode, call


def measure(
    table: str, shape: str, steps: Iterable[tuple[str, str, Step]], rounds: int, steps_a_sample: int
) -> list[StepRow]:
    """Run every step in random order, round by round; a step that fails is reported as its error."""
    rows: list[tuple[StepRow, Step]] = []
    for name, mode, step in steps:
        row = StepRow(table, shape, name, mode, [])
        try:
            for _ in range(8):  # zipfmax's steps are captured after five
                step()
            torch.cuda.synchronize()
            rows.append((row, step))
        except (RuntimeError, torch.OutOfMemoryError) as error:
            row.error = one_line(error)
            rows.append((row, step))
        print(f"ready: {shape}: {name}, {mode} {row.error}", file=sys.stderr, flush=True)
    order = random.Random(0)
    running = [(row, step) for row, step in rows if not row.error]
    for _ in range(rounds):
        order.shuffle(running)
        for row, step in running:
            step()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(steps_a_sample):
                step()
            torch.cuda.synchronize()
            row.samples_ms.append((time.perf_counter() - begin) * 1e3 / steps_a_sample)
    return [row for row, _ in rows]


def markdown(rows: list[StepRow]) -> str:
    """The rows as one table a kind: models across, shapes and modes down, milliseconds.

    Of the whole steps' models the part of the output layer is in brackets: what the step takes more than
    without one, in milliseconds and as a share of the step.
    """
    lines = []
    for table in dict.fromkeys(row.table for row in rows):
        of_table = [row for row in rows if row.table == table]
        names = list(dict.fromkeys(row.model for row in of_table))
        lines += [f"\n{table}, ms:\n", "| | | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
        for shape, mode in dict.fromkeys((row.shape, row.mode) for row in of_table):
            found = {row.model: row for row in of_table if (row.shape, row.mode) == (shape, mode)}
            bare = found.get("no output layer")
            cells = [_cell(found.get(name), bare) for name in names]
            lines.append(f"| {shape} | {mode} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: StepRow | None, bare: StepRow | None) -> str:
    if row is None:
        return ""
    if row.error:
        return "failed"
    if bare is None or bare is row or bare.error:
        return f"{row.median_ms:.2f}"
    more = row.median_ms - bare.median_ms
    return f"{row.median_ms:.2f} (+{more:.2f}, {more / row.median_ms:.0%})"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trunks", nargs="*", choices=list(TRUNKS), default=list(TRUNKS))
    parser.add_argument("--layers", nargs="*", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument(
        "--models", default="", help="names of models as the table has them, comma-separated (all)"
    )
    parser.add_argument("--rounds", type=int, default=30, help="samples of each")
    parser.add_argument("--output", type=Path, default=None, help="file of JSON lines to write")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("whole_step: needs a GPU, and torch sees none", file=sys.stderr)
        sys.exit(2)
    # All models share the code of their forward, which is compiled once a model and mode.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 256
    rows: list[StepRow] = []
    for name in arguments.layers:
        n, d = LAYERS[name]
        for cuts, cutoffs in CUTOFFS.items():
            steps = layer_steps(n, d, cutoffs, arguments.modes)
            rows += measure("layer", f"N {n}, d {d}, {cuts}", steps, arguments.rounds, 4)
            _forget()
        _write(rows, arguments.output)
    for name in arguments.trunks:
        trunk = TRUNKS[name]
        steps = whole_steps(trunk, arguments.modes, arguments.models)
        rows += measure("whole step", str(trunk), steps, arguments.rounds, 2)
        _forget()
        _write(rows, arguments.output)
    print(markdown(rows))


def _write(rows: list[StepRow], output: Path | None) -> None:
    """The rows as JSON lines: after every shape, so that what is done is kept."""
    if output is not None:
        machine = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "date": time.strftime("%Y-%m-%d"),
        }
        lines = ({**asdict(row), "median_ms": row.median_ms, **machine} for row in rows)
        output.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _forget() -> None:
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
