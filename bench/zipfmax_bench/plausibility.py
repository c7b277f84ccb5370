"""Times and work that cannot be: faster than the matrix products, fewer FLOPs than the definition needs.

A finding ends a cell as "implausible", so no speedup is computed from it. Each rule leaves a margin for
noise: it must convict no honest implementation, since results that are wrong are found by verification.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from zipfmax_bench import messages, ratios
from zipfmax_bench.limit import products
from zipfmax_reference.contestants import registry
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_target

if TYPE_CHECKING:
    from zipfmax_bench.engine import Measurement

FASTER_THAN_PRODUCTS = 1.5
"""Ratio to the bare products' time from which on, with all of its interval, a time cannot be."""
LEAST_DIFFERENCE_S = 5e-5
"""Differences below it are the cost of launching products one by one."""
FASTEST_GPU_FLOPS = {"float64": 1e14, "float32": 1.5e15, "bfloat16": 3e15, "float16": 3e15}
"""FLOPs a second that no GPU reaches, dense, float32 as tf32. A fused kernel beats the bare products there, because
it stores no logits; it cannot beat this rate."""

UNCLAIMED_SHARE = 0.1
"""Of a claimed time: where the engine's clock saw more beyond it in every run, it is not a measurement."""
CLOCK_RESOLUTION_S = 2e-3
"""The same in seconds: answers of honest processes are delayed by less, at least once in a measurement."""

FEWER_FLOPS = 0.9
"""Share of the definition's FLOPs below which a run has not done the products."""

TASKS = ("forward", "train")
"""Tasks whose least work does not depend on the values; the others have no bound."""


def fault(case: Case, name: str, own: Measurement, limit: Measurement | None) -> str | None:
    """What about a measured implementation cannot be, in words, or None.

    Args:
        case: what was measured.
        name: the implementation. One whose gradients are inexact, and so may do less, has no bound.
        own: what came of it.
        limit: the bare products measured in the same rounds, if they were.
    """
    if name == messages.LIMIT or case.task not in TASKS or not own.ok or not registry.gradients(name).exact:
        return None
    if registry.family(name) != "adaptive":
        return None  # the limit is that of adaptive softmax, and fused losses use operators without a count
    if limit is not None and limit.ok and (found := limit_fault(case, own, limit)):
        return found
    return flops_fault(case, own)


def limit_fault(case: Case, own: Measurement, limit: Measurement) -> str | None:
    """Whether an implementation is faster than its matrix products can be, beyond noise."""
    theirs, ours = ({(s.process, s.round): s.seconds for s in one.samples} for one in (limit, own))
    if not all(seconds > 0 for seconds in ours.values()):
        return "a run took no time at all"
    ratio = ratios.speedup(theirs, ours)
    if ratio is None or ratio.low is None or ratio.low <= FASTER_THAN_PRODUCTS:
        return None
    difference_s = median(theirs.values()) - median(ours.values())
    if difference_s < LEAST_DIFFERENCE_S:
        return None
    if case.device != "cpu" and median(ours.values()) > least_flops(case) / FASTEST_GPU_FLOPS[case.dtype]:
        return None
    return f"faster than its matrix products, {ratio.estimate:.3g} times (at least {ratio.low:.3g})"


def flops_fault(case: Case, own: Measurement) -> str | None:
    """Whether a run's operations, all of them torch's own, do less than the definition needs."""
    if own.work.flops is None or not own.work.all_counted:
        return None
    needed = least_flops(case)
    if own.work.flops >= FEWER_FLOPS * needed:
        return None
    return f"{own.work.flops:,} FLOPs counted, fewer than the {needed:,} of its matrix products"


def clock_fault(own: Measurement) -> str | None:
    """Whether claimed times disagree with what the engine's own clock saw of the same runs.

    What a request took bounds its run from above. From below it does so too, up to what it takes to ask,
    which requests that time nothing measure. On a busy machine an answer is delayed now and then, so the run
    whose answer was delayed least is held against the request whose answer was delayed most.
    """
    if not own.samples or not own.empty_trips_s:
        return None
    claimed_s = median(sample.wall_s for sample in own.samples)
    untimed_s = min(sample.untimed_s for sample in own.samples)
    if untimed_s < 0:
        return f"claims {-untimed_s:.3g} s more than passed by the engine's clock"
    unclaimed_s = untimed_s - max(own.empty_trips_s)
    if unclaimed_s > max(CLOCK_RESOLUTION_S, UNCLAIMED_SHARE * claimed_s):
        took_s = claimed_s + unclaimed_s
        return f"claims {claimed_s:.3g} s for runs that took {took_s:.3g} s by the engine's clock"
    return None


def least_flops(case: Case) -> int:
    """FLOPs of the products of the case's first batch, 2 for a multiply and add, as the limit evaluates them.

    Three products in place of one in training: logits, gradient of the input, gradient of the weight.
    """
    layout = case.layout
    rows = np.bincount(layout.parts(draw_target(case, 0)), minlength=1 + layout.n_clusters)
    forward = sum(2 * one.rows * one.inputs * one.outputs for one in products(layout, rows))
    return 3 * forward if case.task == "train" else forward


def end_implausible(found: Mapping[str, Measurement], cases: Mapping[str, Case]) -> None:
    """End every measurement that cannot be."""
    limit = found.get(messages.LIMIT)
    for name, own in found.items():
        reason = fault(cases[name], name, own, limit)
        if reason is not None:
            own.end("implausible", reason)
