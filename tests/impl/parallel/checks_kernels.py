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
    seeds = torch.linspace(-1, 2, len(target), device=target.device)
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
    if checks.device() == "cpu":  # a GPU's assertion would end the process
        checks.raises(RuntimeError, "Target values", lambda: layer(hidden, target + 61))


def on_gpus(function):
    """One that needs a GPU a rank."""
    return check(function) if checks.device() == "cuda" else function


@on_gpus
def a_step_waits_for_no_gpu(group):
    """Neither forward nor backward reads the device."""
    _, layer = both(group, ODD, head_bias=True)
    hidden, target = batch(ODD, dtype=torch.float32)
    hidden.requires_grad_()
    layer(hidden, target).loss.backward()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(hidden, target).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpus
def a_step_is_captured_in_a_cuda_graph(group):
    alone, layer = both(group, ODD)
    hidden, target = batch(ODD, dtype=torch.float32)
    static = hidden.clone().requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            static.grad = None
            layer(static, target).loss.backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    static.grad = None
    with torch.cuda.graph(graph):
        _, loss = layer(static, target)
        loss.backward()
    other = batch(ODD, seed=8, dtype=torch.float32)[0]
    with torch.no_grad():
        static.copy_(other)
    graph.replay()
    same([loss.detach(), static.grad], step(alone, other, target)[1:3], rtol=1e-4, atol=1e-5)


@on_gpus
def every_backend_on_gpus(group):
    """At sizes where kernels take a while, so that a collective that does not wait for them shows."""
    layout = (128, 20_000, (2_000, 8_000), 4.0)
    for backend in ("eager", "tiled", "triton"):
        for dtype in (torch.float32, torch.bfloat16):
            alone, layer = both(group, layout, dtype)
            layer.backend = backend
            close(group, alone, layer, *batch(layout, 512, dtype=dtype), dtype)
