"""What `bench.gpu` times: the headline shapes beside full softmax, float32, huge vocabularies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch
from torch import nn

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.errors import one_line
from zipfmax.timers import replayed
from zipfmax_bench.gpu_steps import DEVICE, Record, Run, measured, training_step
from zipfmax_bench.work import waits
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.implementation import build_for_timing, settings_of
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_batch, draw_inputs, draw_weights

FULL = (
    *("full", "full:compiled", "full:chunked", "full:liger"),
    *("full:cce", "full:cce-exact", "full:quack", "sampled"),
)
CUTOFFS = ((20_000, 60_000), (5_000, 20_000, 100_000))
HEADLINE = Case(267_735, 1024, 16_384, CUTOFFS[0], dtype="bfloat16", device="cuda")
MIDDLE = Case(267_735, 512, 4096, CUTOFFS[0], dtype="bfloat16", device="cuda")
SMALL = Case(267_735, 256, 1024, CUTOFFS[0], dtype="bfloat16", device="cuda")
SEEDS = (0, 1)
LOGIT_STD = (1.0, 4.0)
"""Logits nearly as flat as untrained, and as spread as trained."""
GRAPHED_ROWS = 4096
"""Full softmax is captured as a CUDA graph up to so many rows: beyond, its launches are hidden by its work, and a
graph would keep its logits."""

Contestants = tuple[dict[str, Run], dict[str, Record]]
"""Runs by name, and by the same names what each is: implementation, mode, cutoffs, settings. What cannot run has
no run, and a status and a reason."""


def adaptive_runs(case: Case, *, compiled: bool = True, graph: bool = True) -> Contestants:
    """zipfmax and torch.nn on the case's weights and batch, eager, compiled and in a CUDA graph."""
    dtype = getattr(torch, case.dtype)
    drawn, labels = draw_batch(case, round=0)
    hidden = torch.from_numpy(drawn).to(DEVICE, dtype).requires_grad_()
    target = torch.from_numpy(labels).to(DEVICE)
    weights = {name: torch.from_numpy(values) for name, values in draw_weights(case).items()}
    place = {"device": DEVICE, "dtype": dtype}
    layers = {
        "zipfmax": AdaptiveLogSoftmaxWithLoss(
            case.in_features, case.n_classes, case.cutoffs, backend="triton", **place
        ),
        "torch": nn.AdaptiveLogSoftmaxWithLoss(case.in_features, case.n_classes, case.cutoffs, **place),
    }
    runs: dict[str, Run] = {}
    notes: dict[str, Record] = {}

    def add(impl: str, mode: str, run: Run) -> None:
        name = f"{impl} {'/'.join(map(str, case.cutoffs))} {mode}"
        runs[name] = run
        notes[name] = {"impl": impl, "mode": mode, "cutoffs": case.cutoffs}

    for impl, layer in layers.items():
        layer.load_state_dict(weights)
        leaves = list(layer.parameters())

        def loss(h: torch.Tensor, layer: nn.Module = layer) -> torch.Tensor:
            mean: torch.Tensor = layer(h, target).loss
            return mean

        add(impl, "eager", training_step(loss, leaves, hidden))
        if compiled:
            add(impl, "compiled", training_step(torch.compile(loss), leaves, hidden))
        if graph and impl == "zipfmax":  # torch.nn's layer synchronises
            add(impl, "graph", replayed(training_step(loss, leaves, hidden)))
    return runs, notes


def full_runs(case: Case) -> Contestants:
    """Every full softmax with its fastest exact setting, and small ones in a CUDA graph too."""
    runs: dict[str, Run] = {}
    notes: dict[str, Record] = {}
    inputs = draw_inputs(case, full=True)
    for name in FULL:
        implementation = registry.implementation(name)
        notes[name] = {"impl": name, "mode": "eager", "exact": registry.gradients(name).exact}
        if reason := implementation.unsupported_reason(case):
            notes[name] |= {"status": "skipped", "reason": reason}
            continue
        try:
            runner = build_for_timing(implementation, case, inputs)
        except RuntimeError as error:  # out of memory among them
            notes[name] |= {"status": "failed", "reason": one_line(error)}
            continue
        runs[name] = runner.run
        notes[name]["settings"] = settings_of(runner)
        if case.device == "cpu" or case.batch_size > GRAPHED_ROWS:
            continue
        graphed = f"{name} graph"
        notes[graphed] = notes[name] | {"mode": "graph"}
        if waits(runner.run):  # a capture that it breaks leaves the process's random generator unusable
            notes[graphed] |= {
                "status": "skipped",
                "reason": "it makes the host wait, which no graph can hold",
            }
        else:
            runs[graphed] = replayed(runner.run)
    return runs, notes


def contest(contestants: Contestants, case: Case, rounds: int, seconds: float = 8.0) -> Iterator[Record]:
    """A record of each contestant, from interleaved rounds."""
    runs, notes = contestants
    record = {
        "n_classes": case.n_classes,
        "in_features": case.in_features,
        "batch_size": case.batch_size,
        "dtype": case.dtype,
        "labels": case.labels,
        "logit_std": case.logit_std,
        "seed": case.seed,
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    for found in measured(runs, record, rounds=rounds, seconds=seconds):
        yield {**found, **notes[found["impl"]]}
    yield from ({**record, **note} for name, note in notes.items() if name not in runs)


def against_full(shape: Case, rounds: int) -> Iterator[Record]:
    """Both adaptive layers with each of `CUTOFFS`, and full softmax, for each seed and spread of the logits."""
    for seed, logit_std in product(SEEDS, LOGIT_STD):
        case = replace(shape, seed=seed, logit_std=logit_std)
        runs, notes = full_runs(case)
        for cutoffs in CUTOFFS:
            more, their_notes = adaptive_runs(replace(case, cutoffs=cutoffs))
            runs, notes = runs | more, notes | their_notes
        yield from contest((runs, notes), case, rounds)
        del runs, more
        torch.compiler.reset()
        torch.cuda.empty_cache()


def times() -> Iterator[Record]:
    """Every shape in turn; what cannot be timed has a record with the reason."""
    for shape, rounds in ((HEADLINE, 9), (MIDDLE, 15), (SMALL, 15)):
        yield from against_full(shape, rounds)
    yield from without_full()


def without_full() -> Iterator[Record]:
    """float32 in two precisions, and vocabularies whose full softmax does not fit beside the rest."""
    for precision, cutoffs in product(("high", "highest"), CUTOFFS):
        torch.set_float32_matmul_precision(precision)
        case = replace(HEADLINE, dtype="float32", cutoffs=cutoffs)
        yield from contest(adaptive_runs(case, compiled=False), case, rounds=9)
        torch.cuda.empty_cache()
    torch.set_float32_matmul_precision("highest")
    for n_classes, shape in product((1_000_000, 10_000_000), (HEADLINE, SMALL)):
        case = replace(shape, n_classes=n_classes, cutoffs=(20_000, 200_000, n_classes // 2))
        yield from contest(adaptive_runs(case, compiled=False), case, rounds=9, seconds=4.0)
        torch.cuda.empty_cache()
