"""What `bench.gpu` times: the headline shapes, float32, full softmax, small batches, huge vocabularies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax_bench.gpu_steps import DEVICE, Record, Run, measured, training_step, zipf_labels
from zipfmax_bench.timing import replayed

Shape = dict[str, int]
HEADLINE: Shape = {"n_classes": 267_735, "in_features": 1024, "batch_size": 16_384}
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


def full_runs(
    n_classes: int, in_features: int, batch_size: int, dtype: torch.dtype, skew: float
) -> dict[str, Run]:
    """Full softmax: eager, compiled, in torch's chunks, and the fused kernels that are installed."""
    target = zipf_labels(n_classes, batch_size, skew)
    hidden = torch.randn(batch_size, in_features, device=DEVICE, dtype=dtype, requires_grad=True)
    weight = (torch.randn(n_classes, in_features, device=DEVICE, dtype=dtype) / 32).requires_grad_()

    def loss(h: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, weight), target)

    fast = torch.compile(loss)
    runs = {
        "full": training_step(loss, [weight], hidden),
        "full compiled": training_step(lambda h: fast(h), [weight], hidden),
    }
    for name, fused in _fused().items():
        if not isinstance(fused, str):
            runs[name] = training_step(lambda h, f=fused: f(h, weight, target), [weight], hidden)  # type: ignore[misc]
    return runs


def _fused() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor] | str]:
    """Losses that never hold all logits, from (hidden, weight, target); or why one is not here."""
    found: dict[str, Any] = {}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions()
        found["full chunked"] = lambda h, w, y: F.linear_cross_entropy(h, w, y, options=options)
    else:
        found["full chunked"] = f"torch {torch.__version__} has no chunked F.linear_cross_entropy"
    if find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger: Any = LigerFusedLinearCrossEntropyLoss()
        found["full liger"] = lambda h, w, y: liger(w, h, y)
    else:
        found["full liger"] = "liger-kernel is not installed"
    if find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        found["full cce"] = linear_cross_entropy
    else:
        found["full cce"] = "cut-cross-entropy is not installed"
    return found


def times() -> Iterator[Record]:
    """Every shape in turn; what cannot be timed has a record with the reason."""
    for cutoffs in ([20_000, 60_000], [5_000, 20_000, 100_000]):
        case = {**HEADLINE, "cutoffs": cutoffs, "dtype": "bfloat16", "skew": 1.0}
        runs = adaptive_runs(HEADLINE, cutoffs=cutoffs, dtype=torch.bfloat16, skew=1.0)
        yield from measured(runs, case, rounds=25)
        del runs
    for shape, rounds in ((HEADLINE, 7), (SMALL, 15)):
        case = {**shape, "cutoffs": [], "dtype": "bfloat16", "skew": 1.0}
        runs = full_runs(**shape, dtype=torch.bfloat16, skew=1.0)
        yield from measured(runs, case, rounds=rounds)
        del runs
        for name, reason in _fused().items():
            if isinstance(reason, str):
                yield {**case, "impl": name, "status": "skipped", "reason": reason}
        torch.cuda.empty_cache()
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
