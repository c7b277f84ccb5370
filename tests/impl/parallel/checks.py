"""What holds of a sharded layer, checked on every rank of a group against the layer that one process has."""

import copy
import itertools
import os
import re
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from zipfmax import AdaptiveLogSoftmaxWithLoss, LabelRanks
from zipfmax.parallel import Traffic, shard_vocabulary
from zipfmax.rank_costs import STATISTICS_BYTES, traffic

CHECKS = {}

LAYOUT = (16, 61, (9, 30), 2.0)  # odd head of 11, odd tails of 21 and 31


def check(function):
    CHECKS[function.__name__] = function
    return function


def cases(**axes):
    """A check for each combination of the axes' values."""

    def decorate(function):
        for values in itertools.product(*axes.values()):
            label = "-".join(str(value).replace(" ", "_") for value in values)

            def run(group, values=values):
                function(group, **dict(zip(axes, values, strict=True)))

            CHECKS[f"{function.__name__}[{label}]"] = run
        return function

    return decorate


def device():
    """Of every layer and batch."""
    return os.environ.get("ZIPFMAX_RANKS_DEVICE", "cpu")


def make(layout=LAYOUT, seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)
    return AdaptiveLogSoftmaxWithLoss(*layout, device=device(), dtype=dtype, **options)


def batch(layout=LAYOUT, n=37, seed=1, dtype=torch.float64):
    torch.manual_seed(seed)
    hidden = torch.randn(n, layout[0], dtype=dtype) * 2
    target = torch.randint(0, layout[1], (n,))
    edges = [0, layout[1] - 1, *layout[2], *(c - 1 for c in layout[2])]
    target[: len(edges)] = torch.tensor(edges)[:n]
    return hidden.to(device()), target.to(device())


def both(group, layout=LAYOUT, **options):
    """The layer of one process, and its copy over the ranks."""
    alone = make(layout, **options)
    return alone, shard_vocabulary(copy.deepcopy(alone), group)


def step(layer, hidden, target, seed=None):
    """Results and gradients of a call: [output, loss, of hidden, *of parameters]."""
    hidden = hidden.clone().requires_grad_()
    layer.zero_grad()
    output, loss = layer(hidden, target)
    if seed is None:
        loss.sum().backward()
    else:
        torch.autograd.backward((output, loss), seed(output, loss))
    gradients = [p.grad for p in layer.parameters()]
    gradients = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in gradients]
    return [output.detach(), loss.detach(), hidden.grad, *gradients]


def same(found, expected, **tolerance):
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        assert (mine is None) == (other is None)
        if other is not None:
            assert_close(mine, other, equal_nan=True, **tolerance)


@cases(
    backend=["eager", "tiled"],
    reduction=["mean", "sum", "none"],
    ignore_index=[None, 3],
    biases=[False, True],
)
def a_step_is_that_of_one_process(group, backend, reduction, ignore_index, biases):
    options = {"backend": backend, "reduction": reduction, "ignore_index": ignore_index}
    alone, layer = both(group, **options, head_bias=biases, tail_bias=biases, projection_bias=biases)
    same(step(layer, *batch()), step(alone, *batch()))


@cases(backend=["eager", "tiled"], terms=["smoothing", "z_loss", "weight", "all"], ignore_index=[None, 3])
def every_term_of_the_loss_is_that_of_one_process(group, backend, terms, ignore_index):
    options = {
        "label_smoothing": 0.1 if terms in ("smoothing", "all") else 0.0,
        "z_loss": 0.01 if terms in ("z_loss", "all") else 0.0,
        "weight": torch.linspace(0.1, 2, LAYOUT[1], dtype=torch.float64)
        if terms in ("weight", "all")
        else None,
    }
    alone, layer = both(group, backend=backend, ignore_index=ignore_index, tail_bias=True, **options)
    same(step(layer, *batch()), step(alone, *batch()))


@cases(backend=["eager", "tiled"])
def gradients_may_start_from_output(group, backend):
    def seed(output, loss):
        return torch.linspace(-1, 2, output.numel(), dtype=output.dtype), torch.full_like(loss, 0.7)

    alone, layer = both(group, backend=backend)
    same(step(layer, *batch(), seed), step(alone, *batch(), seed))


@cases(labels=["of one rank", "of the head", "of one tail", "ignored", "none"], backend=["eager", "tiled"])
def whatever_the_labels_are(group, labels, backend):
    """Ranks without a label of theirs, absent clusters, ignored rows only, no rows."""
    hidden, target = batch()
    target = {
        "of one rank": target % 3,
        "of the head": target % 9,
        "of one tail": 9 + target % 21,
        "ignored": torch.full_like(target, -100),
        "none": target[:0],
    }[labels]
    hidden = hidden[: len(target)]
    for absent in ("none", "zeros"):
        alone, layer = both(group, backend=backend, ignore_index=-100, absent_grads=absent)
        same(step(layer, hidden, target), step(alone, hidden, target))


@check
def narrow_dtypes_and_autocast(group):
    for dtype in (torch.float32, torch.bfloat16):
        alone, layer = both(group, dtype=dtype)
        found, expected = (step(one, *batch(dtype=dtype)) for one in (layer, alone))
        unit = torch.finfo(dtype).eps
        assert found[0].dtype == expected[0].dtype == dtype
        same(found, expected, rtol=16 * unit, atol=4 * unit)
    alone, layer = both(group, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (step(one, *batch(dtype=torch.float32)) for one in (layer, alone))
    assert found[0].dtype == torch.float32
    same(found, expected, rtol=0.05, atol=0.03)


@check
def all_ranks_have_the_same_bits(group):
    _, layer = both(group, dtype=torch.float32)
    output, loss, of_hidden, *_ = step(layer, *batch(dtype=torch.float32))
    for tensor in (output, loss, of_hidden):
        everyone = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everyone, tensor.contiguous(), group=group)
        assert all(torch.equal(tensor, other) for other in everyone)


@check
def rank_0_gives_the_weights(group):
    alone = make(seed=0)
    layer = shard_vocabulary(make(seed=dist.get_rank(group)), group)
    for mine, other in zip(layer.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine.full_tensor(), other)


@cases(n_tails=[1, 2, 5], smoothing=[0.0, 0.1])
def the_number_of_collectives_is_fixed(group, n_tails, smoothing):
    """One gather in the forward; two sums in the backward."""
    cutoffs = tuple(9 + 9 * i for i in range(n_tails))
    layer = shard_vocabulary(make((16, 61, cutoffs, 1.5), label_smoothing=smoothing), group)
    hidden, target = batch((16, 61, cutoffs))
    with Traffic() as forward:
        _, loss = layer(hidden.requires_grad_(), target)
    with Traffic() as backward:
        loss.backward()
    assert (forward.collectives, backward.collectives) == (1, 2)
    world, size = dist.get_world_size(group), 8
    rows = torch.bucketize(target, torch.tensor(cutoffs), right=True).bincount(minlength=n_tails + 1).tolist()
    gathered, *summed = traffic(layer.layout, rows, world, size)  # what plans are made from
    if not smoothing:
        assert forward.sent_bytes == gathered * size / STATISTICS_BYTES
    assert abs(backward.sent_bytes - sum(summed)) < 2


@cases(ranks=[False, True], head_bias=[False, True])
def log_prob_and_its_gradients(group, ranks, head_bias):
    order = (
        LabelRanks(torch.randperm(LAYOUT[1], generator=torch.Generator().manual_seed(3))) if ranks else None
    )
    alone, layer = both(group, label_ranks=order, head_bias=head_bias, tail_bias=head_bias)
    found = []
    for one in (layer, alone):
        hidden = batch()[0].requires_grad_()
        result = one.log_prob(hidden)
        torch.manual_seed(5)
        result.backward(torch.randn_like(result))
        gradients = [p.grad for p in one.parameters()]
        gradients = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in gradients]
        found.append([result.detach(), hidden.grad, *gradients])
    same(*found)
    with torch.no_grad():
        out = torch.empty_like(found[0][0])
        assert layer.log_prob(batch()[0], out=out) is out
    assert_close(out, found[1][0])


@cases(ranks=[False, True], k=[0, 1, 4, 9, 12, 61])
def topk_and_predict(group, ranks, k):
    order = (
        LabelRanks(torch.randperm(LAYOUT[1], generator=torch.Generator().manual_seed(3))) if ranks else None
    )
    alone, layer = both(group, label_ranks=order, head_bias=True)
    hidden = batch()[0].view(1, 37, 16)
    with torch.no_grad():
        for one in (alone, layer):  # so that tails win now and then
            bias = one.head.bias
            bias = bias.to_local() if hasattr(bias, "to_local") else bias
            bias[-1:] += 3 * (one is alone or layer._shard.head.stop == layer.head_size)
        same(layer.topk(hidden, k), alone.topk(hidden, k))
        assert torch.equal(layer.predict(hidden), alone.predict(hidden))
        assert (alone.predict(hidden) >= 9).any()
        with Traffic() as traffic:
            layer.topk(hidden, k)
    assert traffic.collectives <= 2


@check
def samples_are_the_same_on_every_rank_and_follow_the_distribution(group):
    alone, layer = both(group)
    rank = dist.get_rank(group)
    hidden = batch(n=3)[0]
    for seeds in ("equal", "different"):
        generator = torch.Generator().manual_seed(7 + (rank if seeds == "different" else 0))
        with Traffic() as traffic:
            drawn = layer.sample(hidden, 20_000, generator)
        assert traffic.collectives <= 2
        everyone = [torch.empty_like(drawn) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everyone, drawn, group=group)
        assert all(torch.equal(drawn, other) for other in everyone)
        p = alone.log_prob(hidden).exp()
        counts = torch.stack([row.bincount(minlength=LAYOUT[1]) for row in drawn])
        deviation = (counts - 20_000 * p) / (20_000 * p * (1 - p)).sqrt()
        assert deviation.abs().max() < 5
        assert 0.6 < deviation.square().mean() < 1.4  # four standard deviations
    first, second = (layer.sample(hidden, 5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert layer.sample(hidden[:0], 2).shape == (0, 2)


@check
def ranks_of_labels_and_leading_dimensions(group):
    order = LabelRanks(torch.randperm(LAYOUT[1], generator=torch.Generator().manual_seed(3)))
    alone, layer = both(group, label_ranks=order, ignore_index=4, reduction="none")
    hidden, target = batch(n=36)
    hidden, target = hidden.view(4, 9, 16), target.view(4, 9)
    same(step(layer, hidden, target), step(alone, hidden, target))


@check
def frozen_parts_get_no_gradient_and_no_collective(group):
    alone = make()
    alone.tail[0][0].weight.requires_grad_(False)
    alone.head.weight.requires_grad_(False)
    layer = shard_vocabulary(copy.deepcopy(alone), group)
    same(step(layer, *batch()), step(alone, *batch()))
    hidden, target = batch()
    layer.zero_grad()
    with Traffic() as traffic:
        layer(hidden, target).loss.backward()
    assert traffic.collectives == 2  # nothing wants the gradient of the hidden states


@check
def a_backward_of_the_backward_is_refused(group):
    layer = shard_vocabulary(make(), group)
    hidden, target = batch()
    hidden.requires_grad_()
    for of in (hidden, layer.head.weight, layer.tail[0][0].weight):
        for result in (layer(hidden, target).loss, layer.log_prob(hidden).sum()):
            (gradient,) = torch.autograd.grad(result, of, create_graph=True)
            if isinstance(gradient, DTensor):
                gradient = gradient.to_local()
            for by in (hidden, layer.head.weight, layer.tail[0][0].weight):
                further = partial(torch.autograd.grad, gradient.sum(), by, retain_graph=True)
                raises(RuntimeError, "once only", further)
    raises(
        RuntimeError,
        "cannot be called under",
        lambda: torch.func.grad(lambda h: layer(h, target).loss)(hidden),
    )


def raises(kind, text, function):
    with pytest.raises(kind, match=re.escape(text)):
        function()


@check
def ranks_that_disagree_all_raise(group):
    rank = dist.get_rank(group)
    different = {
        "layout": lambda: make((16, 61, (9, 30 + rank), 2.0)),
        "ignore_index": lambda: make(ignore_index=rank),
        "reduction": lambda: make(reduction=("mean", "sum", "none")[rank]),
        "parameters": lambda: make(dtype=(torch.float64, torch.float32, torch.float16)[rank]),
        "label_smoothing": lambda: make(label_smoothing=0.1 * rank),
        "weight": lambda: make(weight=torch.full((61,), 1.0 + rank)),
        "label_ranks": lambda: make(label_ranks=LabelRanks(torch.arange(61).roll(rank))),
        "backend": lambda: make(backend=("auto", "eager", "tiled")[rank]),
    }
    for name, layer in different.items():
        raises(ValueError, f"disagree on {name}", lambda layer=layer: shard_vocabulary(layer(), group))
    raises(
        ValueError,
        "disagree on input_layouts",
        lambda: shard_vocabulary(make(), group, input_layouts=layout_of(rank)),
    )
    hooked = make()
    if rank == 1:
        hooked.head.register_forward_hook(lambda *_: None)
    raises(ValueError, "submodule 'head' has a hook", lambda: shard_vocabulary(hooked, group))


def layout_of(rank):
    from torch.distributed.tensor import Replicate, Shard

    return Shard(0) if rank else Replicate()


@check
def what_cannot_be_split_is_refused(group):
    world = dist.get_world_size(group)
    alone = dist.new_group([dist.get_rank(group)], use_local_synchronization=True)
    raises(ValueError, "at least 2 ranks", lambda: shard_vocabulary(make(), alone))
    raises(
        ValueError,
        f"tail 1 has 1 rows, fewer than the {world}",
        lambda: shard_vocabulary(make((16, 61, (9, 60), 2.0)), group),
    )
    raises(TypeError, "AdaptiveLogSoftmaxWithLoss", lambda: shard_vocabulary(nn.Linear(3, 4), group))
    raises(TypeError, "process group", lambda: shard_vocabulary(make(), "world"))
    layer = shard_vocabulary(make(), group)
    raises(ValueError, "split already", lambda: shard_vocabulary(layer, group))
    layer.head.register_forward_hook(lambda *_: None)
    raises(RuntimeError, "'head' has a hook", lambda: layer(*batch()))


@check
def labels_out_of_range_raise_on_every_rank(group):
    layer = shard_vocabulary(make(), group)
    hidden, target = batch()
    target[5] = 61
    raises(RuntimeError, "Target values should be in [0, 60]", lambda: layer(hidden, target))
