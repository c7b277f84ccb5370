"""A sharded layer by the GPU's kernels, on a GPU or interpreted: the results of plain operations in one process."""

import copy
import os

import checks
import torch
from checks import batch, make, same, step

from zipfmax.parallel import Traffic, shard_vocabulary

CHECKS: dict = {}
ODD, WIDE, UNIFORM = (16, 61, (9, 30), 2.0), (40, 203, (5, 150), 1.0), (8, 40, (4, 12, 25), 6.0)
ALL = os.environ.get("ZIPFMAX_KERNEL_TESTS") == "all"
N = 9
"""Rows: the interpreter takes its time."""


def check(function):
    CHECKS[function.__name__] = function
    return function


def long(function):
    """One of `make kernels` only."""
    return check(function) if ALL else function


def both(group, layout, dtype=torch.float32, **options):
    """Plain operations in one process, and the kernels over the ranks."""
    alone = make(layout, dtype=dtype, backend="eager", **options)
    layer = copy.deepcopy(alone)
    layer.backend = "triton"
    return alone, shard_vocabulary(layer, group)


def close(group, alone, layer, hidden, target, dtype=torch.float32):
    """Of a step; the kernels' gradients of clusters without targets are zeros."""
    unit = torch.finfo(dtype).eps
    found, expected = step(layer, hidden, target), step(alone, hidden, target)
    expected = [torch.zeros_like(f) if e is None else e for f, e in zip(found, expected, strict=True)]
    same(found, expected, rtol=40 * unit, atol=20 * unit)


@check
def a_step_by_the_kernels(group):
    alone, layer = both(group, ODD, head_bias=True, tail_bias=True, projection_bias=True, ignore_index=3)
    hidden, target = batch(ODD, N, dtype=torch.float32)
    hidden[2], target[2] = torch.nan, 3
    close(group, alone, layer, hidden, target)


@long
def a_step_of_other_layouts(group):
    for layout in (ODD, WIDE, UNIFORM):
        alone, layer = both(group, layout, reduction="sum")
        close(group, alone, layer, *batch(layout, dtype=torch.float32))


@long
def other_dtypes_and_several_chunks_of_rows(group):
    from zipfmax.backends.triton import sharded

    layout = ODD
    for dtype in (torch.bfloat16, torch.float16):
        alone, layer = both(group, layout, dtype, head_bias=True)
        close(group, alone, layer, *batch(layout, dtype=dtype), dtype)
    alone, layer = both(group, layout, head_bias=True)
    usual = sharded.ShardedStep.__init__.__kwdefaults__["workspace_bytes"]
    sharded.ShardedStep.__init__.__kwdefaults__["workspace_bytes"] = 20 * 64 * 4
    try:
        close(group, alone, layer, *batch(layout, dtype=torch.float32))
    finally:
        sharded.ShardedStep.__init__.__kwdefaults__["workspace_bytes"] = usual


@long
def any_labels_by_the_kernels(group):
    layout = ODD
    hidden, target = batch(layout, N, dtype=torch.float32)
    hidden[0] = torch.nan
    for labels in (target % 3, target % 9, 9 + target % 21, torch.full_like(target, -100)):
        alone, layer = both(group, layout, ignore_index=-100)
        labels = labels.clone()
        labels[0] = -100
        close(group, alone, layer, hidden, labels)


@check
def a_kept_graph_and_the_number_of_collectives(group):
    layout = ODD
    alone, layer = both(group, layout)
    hidden, target = batch(layout, N, dtype=torch.float32)
    hidden.requires_grad_()
    with Traffic() as traffic:
        output, _ = layer(hidden, target)
    assert traffic.collectives == 1
    seeds = torch.linspace(-1, 2, len(target))
    for _ in range(2):
        hidden.grad = None
        with Traffic() as traffic:
            output.backward(seeds, retain_graph=True)
        assert traffic.collectives == 2
        found = hidden.grad
        hidden.grad = None
        alone(hidden, target).output.backward(seeds)
        torch.testing.assert_close(found, hidden.grad)
    with torch.no_grad():
        torch.testing.assert_close(layer(hidden, target).loss, alone(hidden, target).loss)
    checks.raises(RuntimeError, "Target values", lambda: layer(hidden, target + 61))
