"""The layer on a GPU in the loops people have: captured, compiled with graphs, accumulated, scaled, sharded.

Each compares values with the eager layer's, and none a time: `python -m zipfmax_bench.whole_step` measures.
"""

import copy
import os
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

from zipfmax import AdaptiveLogSoftmaxWithLoss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

SHAPE = (64, 600, (100, 300), 2.0)


@pytest.fixture(autouse=True)
def _no_compiled_code_of_other_tests():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make(**options):
    torch.manual_seed(0)
    return AdaptiveLogSoftmaxWithLoss(*SHAPE, device="cuda", **options)


def batch(seed=1, n=96):
    torch.manual_seed(seed)
    return torch.randn(n, 64, device="cuda"), torch.randint(0, 600, (n,), device="cuda")


class Model(nn.Module):
    """A body and the layer; returns (output, loss)."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Linear(64, 64, device="cuda")
        self.layer = make(**options)

    def forward(self, hidden, target):
        output, loss = self.layer(self.body(hidden).relu(), target)
        return output, loss


def trained(call, parameters, batches, loss_of=lambda found: found[1]):
    """Losses, and the gradients of each batch."""
    found = []
    for hidden, target in batches:
        for parameter in parameters:
            parameter.grad = None
        loss = loss_of(call(hidden, target))
        loss.backward()
        found.append([loss.detach().clone(), *(p.grad.clone() for p in parameters)])
    return found


def same(found, expected, **tolerance):
    for mine, right in zip(found, expected, strict=True):
        for a, b in zip(mine, right, strict=True):
            torch.testing.assert_close(a, b, **tolerance)


BATCHES = range(1, 4)


@pytest.mark.parametrize("compiled_before", [False, True])
def test_make_graphed_callables_gives_eagers_gradients(compiled_before):
    model = Model()
    parameters = list(model.parameters())
    batches = [batch(seed) for seed in BATCHES]
    expected = trained(model, parameters, batches)
    if compiled_before:
        other = Model()
        trained(torch.compile(other, mode="reduce-overhead"), list(other.parameters()), batches)
        # Without it a capture after a compiled run has been seen to fail; the cause is not known.
        torch.compiler.reset()
        torch.cuda.synchronize()
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(model), batch())
    same(trained(graphed, list(graphed.parameters()), batches), expected)


def test_make_graphed_callables_on_the_layer_alone():
    layer = make(gradients="loss")
    batches = [batch(seed) for seed in BATCHES]
    expected = trained(layer, list(layer.parameters()), batches)
    sample = batch()
    graphed = torch.cuda.make_graphed_callables(layer, (sample[0].requires_grad_(), sample[1]))
    same(trained(graphed, list(graphed.parameters()), batches), expected)


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
@pytest.mark.parametrize("told", ["auto", "loss"])
def test_compiled_with_graphs_gives_eagers_gradients(mode, told):
    model = Model(gradients=told)
    parameters = list(model.parameters())
    batches = [batch(seed) for seed in BATCHES]
    expected = trained(model, parameters, batches)
    compiled = torch.compile(model, mode=mode)

    def call(hidden, target):
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(hidden, target)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(trained(call, parameters, batches), expected, rtol=1e-4, atol=1e-6)


def test_a_captured_graph_that_returns_output_says_what_that_costs_and_one_that_is_told_does_not():
    hidden, target = batch()
    compiled = torch.compile(make(), mode="reduce-overhead")

    def steps():
        for _ in range(3):
            torch.compiler.cudagraph_mark_step_begin()
            compiled(hidden, target).loss.backward()

    with pytest.warns(UserWarning, match="make the layer with gradients='loss'"):
        steps()
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*gradients='loss'.*")
        torch.compile(make(gradients="loss"), backend="aot_eager")(hidden, target).loss.backward()


def test_a_compiled_graph_takes_the_gradient_of_output():
    layer = make()
    hidden, target = batch()
    both = lambda found: found[1] - 0.3 * found[0].sum()  # noqa: E731
    expected = trained(layer, list(layer.parameters()), [(hidden, target)], both)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = trained(torch.compile(layer), list(layer.parameters()), [(hidden, target)], both)
    same(found, expected, rtol=1e-4, atol=1e-6)


def test_gradients_accumulate_over_micro_batches():
    layer, whole = make(reduction="sum"), make(reduction="sum")
    batches = [batch(seed) for seed in BATCHES]
    for hidden, target in batches:
        layer(hidden, target).loss.backward()
    whole(torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])).loss.backward()
    for mine, right in zip(layer.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, right.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_grad_scaler_sees_scaled_gradients_and_steps_as_without(compiled):
    layers = [make(), make()]
    hidden, target = batch()
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12)
    for layer, scales in zip(layers, (True, False), strict=True):
        call = torch.compile(lambda h, t, layer=layer: layer(h, t).loss) if compiled else None
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        with torch.autocast("cuda", torch.float16):
            loss = layer(hidden, target).loss if call is None else call(hidden, target)
        if scales:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
    for mine, right in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-3, atol=1e-4)


def test_a_gradient_clipped_and_changed_in_place_leaves_the_others_alone():
    layer = make()
    hidden, target = batch()
    layer(hidden, target).loss.backward()
    before = [p.grad.clone() for p in layer.parameters()]
    layer.head.weight.grad.zero_()  # all lie in one allocation
    for parameter, was in zip(list(layer.parameters())[1:], before[1:], strict=True):
        assert torch.equal(parameter.grad, was)


@pytest.fixture
def one_rank():
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29541")
    dist.init_process_group("nccl", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_wrapped_for_several_ranks_gives_eagers_gradients(wrapper, one_rank):
    model = Model()
    batches = [batch(seed) for seed in BATCHES]
    expected = trained(model, list(model.parameters()), batches)
    wrapped = copy.deepcopy(model)
    if wrapper == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(wrapped, device_ids=[0])
    else:
        from torch.distributed.fsdp import fully_shard

        wrapped = fully_shard(wrapped)
    found = []
    for hidden, target in batches:
        wrapped.zero_grad()
        loss = wrapped(hidden, target)[1]
        loss.backward()
        grads = [
            p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in wrapped.parameters()
        ]
        found.append([loss.detach().clone(), *(g.clone() for g in grads)])
    same(found, expected, rtol=1e-5, atol=1e-7)
