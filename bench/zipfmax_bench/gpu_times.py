"""What `bench.gpu` times: the headline shapes, float32, full softmax, small batches, huge vocabularies."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.errors import one_line
from zipfmax.timers import replayed
from zipfmax_bench.gpu_steps import DEVICE, Record, Run, measured, training_step, zipf_labels
from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.implementation import build_for_timing, settings_of
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs

Shape = dict[str, int]
HEADLINE: Shape = {"n_classes": 267_735, "in_features": 1024, "batch_size": 16_384}
FULL = (
    *("full", "full:compiled", "full:chunked", "full:liger"),
    *("full:cce", "full:cce-exact", "full:quack", "sampled"),
)
SMALL: Shape = {"n_classes": 267_735, "in_features": 256, "batch_size": 1024}


def adaptive_runs(
    shape: Shape,
    cutoffs: list[int],
    dtype: torch.dtype,
    skew: float,
    *,
    compiled: bool = True,
    graph: bool = True,
) -> dict[str, Run]:
    """zipfmax and torch.nn on the same weights and the same batch."""
    n_classes, in_features, batch_size = shape["n_classes"], shape["in_features"], shape["batch_size"]
    target = zipf_labels(n_classes, batch_size, skew)
    hidden = torch.randn(batch_size, in_features, device=DEVICE, dtype=dtype, requires_grad=True)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(in_features, n_classes, cutoffs, device=DEVICE, dtype=dtype)
    ours = AdaptiveLogSoftmaxWithLoss(
        in_features, n_classes, cutoffs, device=DEVICE, dtype=dtype, backend="triton"
    )
    ours.load_state_dict(theirs.state_dict())
    ours_run = training_step(lambda h: ours(h, target).loss, list(ours.parameters()), hidden)
    runs = {"zipfmax:triton": ours_run}
    if graph:
        runs["zipfmax:triton graph"] = replayed(ours_run)
    leaves = list(theirs.parameters())
    runs["torch"] = training_step(lambda h: theirs(h, target).loss, leaves, hidden)
    if compiled:
        fast = torch.compile(theirs)
        runs["torch compiled"] = training_step(lambda h: fast(h, target).loss, leaves, hidden)
    return runs


def full_runs(case: Case) -> tuple[dict[str, Run], dict[str, Record]]:
    """Every full softmax, each with its fastest exact setting, and what is recorded of each beside its time.

    One that cannot run has no run, and a status and a reason in its record.
    """
    runs: dict[str, Run] = {}
    notes: dict[str, Record] = {}
    inputs = draw_inputs(case, full=True)
    for name in FULL:
        implementation = registry.implementation(name)
        notes[name] = {"impl": name, "exact": registry.gradients(name).exact}
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
    return runs, notes


def full_times(shape: Shape, rounds: int) -> Iterator[Record]:
    """Full softmax on a shape, with logits nearly as flat as untrained and as spread as trained."""
    for logit_std in (1.0, 4.0):
        case = Case(
            n_classes=shape["n_classes"],
            in_features=shape["in_features"],
            batch_size=shape["batch_size"],
            cutoffs=(20_000, 60_000),
            dtype="bfloat16",
            device="cuda",
            logit_std=logit_std,
        )
        record = {**shape, "cutoffs": [], "dtype": "bfloat16", "skew": 1.0, "logit_std": logit_std}
        runs, notes = full_runs(case)
        for found in measured(runs, record, rounds=rounds):
            yield {**found, **notes[found["impl"]]}
        yield from ({**record, **note} for name, note in notes.items() if name not in runs)
        del runs
        torch.cuda.empty_cache()


def times() -> Iterator[Record]:
    """Every shape in turn; what cannot be timed has a record with the reason."""
    for cutoffs in ([20_000, 60_000], [5_000, 20_000, 100_000]):
        case = {**HEADLINE, "cutoffs": cutoffs, "dtype": "bfloat16", "skew": 1.0}
        runs = adaptive_runs(HEADLINE, cutoffs=cutoffs, dtype=torch.bfloat16, skew=1.0)
        yield from measured(runs, case, rounds=25)
        del runs
    for shape, rounds in ((HEADLINE, 7), (SMALL, 15)):
        yield from full_times(shape, rounds)
    for precision in ("high", "highest"):
        torch.set_float32_matmul_precision(precision)
        for cutoffs in ([20_000, 60_000], [5_000, 20_000, 100_000]):
            case = {**HEADLINE, "cutoffs": cutoffs, "dtype": f"float32 {precision}", "skew": 1.0}
            runs = adaptive_runs(HEADLINE, cutoffs=cutoffs, dtype=torch.float32, skew=1.0, compiled=False)
            yield from measured(runs, case, rounds=9)
            del runs
            torch.cuda.empty_cache()
    torch.set_float32_matmul_precision("highest")
    for cutoffs in ([20_000, 60_000], [5_000, 20_000, 100_000]):
        case = {**SMALL, "cutoffs": cutoffs, "dtype": "bfloat16", "skew": 1.0}
        yield from measured(adaptive_runs(SMALL, cutoffs=cutoffs, dtype=torch.bfloat16, skew=1.0), case)
    for n_classes in (1_000_000, 10_000_000):
        for shape in (
            {"n_classes": n_classes, "in_features": 1024, "batch_size": 16_384},
            {"n_classes": n_classes, "in_features": 256, "batch_size": 1024},
        ):
            cutoffs = [20_000, 200_000, n_classes // 2]
            case = {**shape, "cutoffs": cutoffs, "dtype": "bfloat16", "skew": 1.0}
            runs = adaptive_runs(shape, cutoffs=cutoffs, dtype=torch.bfloat16, skew=1.0, compiled=False)
            yield from measured(runs, case, rounds=9, seconds=4.0)
            del runs
            torch.cuda.empty_cache()
