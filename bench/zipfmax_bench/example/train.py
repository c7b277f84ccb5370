"""`zipfmax train`: train a small language model, and report its perplexity and the time of a step.

This is the whole program: the text becomes one long row of word ids, cut into `batch` equal streams; each
step takes the next `window` words of every stream, and the LSTM's state travels from window to window.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from zipfmax import backends, decoding
from zipfmax.errors import UsageError
from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax_bench.example.model import LanguageModel, ModelOptions, State
from zipfmax_bench.example.text import Text, made_text, read_text
from zipfmax_reference.console import terminal
from zipfmax_reference.runs.device import present


@dataclass(frozen=True)
class TrainOptions:
    """What to train on, and how."""

    text: Path | None = None
    """A text file; without one a small text is made from the seed."""
    model: ModelOptions = field(default_factory=ModelOptions)
    epochs: int = 1
    steps: int | None = None
    """Take that many steps, whatever epochs says."""
    batch: int = 16
    """Streams read side by side."""
    window: int = 32
    """Words a step, in each stream."""
    learning_rate: float = 2e-3
    """Of Adam."""
    vocabulary: int | None = None
    """Keep that many words; rarer ones become <unk>."""
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class TrainResult:
    """What a training run measured."""

    losses: list[float]
    """Training loss of each step, nats a word."""
    step_s: float
    """Median wall time of a step, seconds: forward, backward and update."""
    valid_perplexity: float
    """exp of the mean loss over the validation words."""
    opened: dict[int, float]
    """For k = 1, 10 and 100: the share of (word, tail) pairs of the validation text that an exact topk had to
    compute. Empty for other layers than zipfmax's."""
    n_words: int


def run(options: TrainOptions) -> int:
    """Train with a progress bar and print the results: the command line's `zipfmax train`."""
    text = load(options)
    model, steps = prepared(options, text)
    console = terminal(soft_wrap=True)
    name = options.text.name if options.text else "a made-up text"
    console.print(
        f"{name}: {len(text.train):,} words to train on, {len(text.valid):,} to validate, "
        f"{len(text.vocabulary):,} different; output layer: {options.model.layer}"
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=steps, loss=math.nan)
        result = _train(options, text, model, steps, lambda loss: progress.update(task, advance=1, loss=loss))
    console.print(f"validation perplexity  {result.valid_perplexity:.2f}")
    console.print(f"median time of a step  {result.step_s * 1e3:.1f} ms")
    for k, share in result.opened.items():
        console.print(f"topk({k}) opened {share:.1%} of the (word, tail) pairs of the validation text")
    return 0


def load(options: TrainOptions) -> Text:
    """The text that the options name.

    Raises:
        UsageError: a file that cannot be read, a device that is not there, or a number that no training has.
    """
    present(options.device)
    _check(options)
    return (
        made_text(seed=options.seed) if options.text is None else read_text(options.text, options.vocabulary)
    )


def train(
    options: TrainOptions, text: Text, on_step: Callable[[float], None] = lambda loss: None
) -> TrainResult:
    """Train, then measure perplexity on the validation words.

    Same options, text and machine: same losses. zipfmax's and torch's layers start from the same weights.

    Args:
        options: see `TrainOptions`.
        text: what `load` gives.
        on_step: called with the loss after each step.

    Raises:
        UsageError: options that fit no model, or a text too short for one step.
    """
    return _train(options, text, *prepared(options, text), on_step)


def prepared(options: TrainOptions, text: Text) -> tuple[LanguageModel, int]:
    """The model with its first weights, and the number of steps; what cannot be trained is refused here.

    Raises:
        UsageError: as `train`.
    """
    steps = _steps(options, text)
    torch.manual_seed(options.seed)
    model = LanguageModel(len(text.vocabulary), options.model).to(options.device, options.dtype)
    _check_backend(model, options)
    return model, steps


def _train(
    options: TrainOptions, text: Text, model: LanguageModel, steps: int, on_step: Callable[[float], None]
) -> TrainResult:
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    losses, seconds = [], []
    state: State | None = None
    for ids, targets, is_start in _windows(options, text.train, steps):
        started = time.perf_counter()
        state = None if is_start or state is None else (state[0].detach(), state[1].detach())
        loss, state = model(ids, targets, state)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())  # also waits for the device
        seconds.append(time.perf_counter() - started)
        on_step(losses[-1])
    perplexity, opened = evaluate(model, options, text.valid)
    return TrainResult(losses, statistics.median(seconds), perplexity, opened, len(text.vocabulary))


@torch.no_grad()
def evaluate(model: LanguageModel, options: TrainOptions, words: Tensor) -> tuple[float, dict[int, float]]:
    """Perplexity on words in one stream, and the share of tails that topk opens; see `TrainResult`."""
    words = words.to(options.device)
    total, state = 0.0, None
    opened: dict[int, float] = {}
    for start in range(0, len(words) - 1, 512):
        targets = words[start + 1 : start + 513]
        hidden, state = model.hidden(words[start : start + len(targets)].unsqueeze(0), state)
        _, loss = model.output(hidden[0], targets)
        total += loss.item() * len(targets)
        if isinstance(model.output, AdaptiveLogSoftmaxWithLoss):
            layer = model.output
            for k in (k for k in (1, 10, 100) if k <= layer.n_classes):
                _, tails = decoding.topk(layer.layout, layer.weights(), hidden[0], k)
                opened[k] = opened.get(k, 0.0) + tails.sum().item() / layer.n_clusters
    n_predicted = len(words) - 1
    return math.exp(total / n_predicted), {k: count / n_predicted for k, count in opened.items()}


def _windows(options: TrainOptions, words: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Inputs and targets [batch, window] of each step, and whether the streams start over with it."""
    length = (len(words) - 1) // options.batch
    ids = words[: options.batch * length].reshape(options.batch, length).to(options.device)
    targets = words[1 : options.batch * length + 1].reshape(options.batch, length).to(options.device)
    per_epoch = length // options.window
    for step in range(steps):
        at = step % per_epoch * options.window
        window = slice(at, at + options.window)
        yield ids[:, window], targets[:, window], at == 0


def _check(options: TrainOptions) -> None:
    numbers = {
        **{name: getattr(options, name) for name in ("batch", "window", "epochs", "steps")},
        **{name: getattr(options.model, name) for name in ("features", "depth")},
    }
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UsageError(f"--{name} should be a positive number, got {number}")
    if options.vocabulary is not None and options.text is None:
        raise UsageError("--vocabulary keeps words of a text: it goes with --text")
    if not 0 < options.learning_rate < math.inf:
        raise UsageError(f"--learning-rate should be a positive number, got {options.learning_rate}")
    if options.vocabulary is not None and options.vocabulary < 2:
        raise UsageError(f"--vocabulary should be at least 2 words, got {options.vocabulary}")
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed should be from 0 to 2**63 - 1, got {options.seed}")


def _check_backend(model: LanguageModel, options: TrainOptions) -> None:
    """Raise UsageError where the named backend cannot serve the model's output layer here."""
    layer, name = model.output, options.model.backend
    if name == "auto":
        return
    if not isinstance(layer, AdaptiveLogSoftmaxWithLoss):
        raise UsageError(f"--backend is zipfmax's: it does not go with --layer {options.model.layer}")
    rows = torch.empty(1, options.model.features, device=options.device, dtype=options.dtype)
    refusal = backends.load(name).refusal(rows, layer.weights())
    if refusal is not None:
        raise UsageError(f"--backend {name} cannot serve this layer: {refusal}")


def _steps(options: TrainOptions, text: Text) -> int:
    per_epoch = (len(text.train) - 1) // options.batch // options.window
    if per_epoch == 0:
        raise UsageError(
            f"{len(text.train)} words are too few for a step of {options.batch} x {options.window}: "
            "choose a smaller --batch or --window"
        )
    return per_epoch * options.epochs if options.steps is None else options.steps
