"""The layer on a GPU in the loops people have: captured, compiled with graphs, accumulated, scaled, sharded.

Each compares values with the eager layer's, and none a time: `python -m zipfmax_bench.whole_step` measures.
"""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from zipfmax import AdaptiveLogSoftmaxWithLoss, set_graph_memory
from zipfmax.backends.triton.captured import AFTER, graphs

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
        # A capture that failed in this process would fail the next; see `operators._is_zero`.
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
    layer = make()
    compiled = torch.compile(layer, mode="reduce-overhead")

    def steps():
        for _ in range(3):
            layer.zero_grad()  # gradients lie in the graph's memory, which the next step overwrites
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
def one_rank(tmp_path):
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
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


# --------------------------------------------------------------------------- the layer's own graphs


@pytest.fixture
def launched():
    """Runs a function with no captured steps."""

    def run(function):
        set_graph_memory(0)
        try:
            return function()
        finally:
            set_graph_memory(2**28)

    set_graph_memory(2**28)
    yield run
    set_graph_memory(2**28)


def updated(layer, n, call=None, factor=1.0):
    """Losses and gradients of n steps, each followed by one of AdamW."""
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    found = []
    for seed in range(n):
        hidden, target = batch(seed)
        hidden.requires_grad_()
        optimizer.zero_grad()
        loss = layer(hidden, target).loss if call is None else call(hidden, target)
        (factor * loss).backward()
        found.append([loss.detach(), hidden.grad, *(p.grad.clone() for p in layer.parameters())])
        optimizer.step()
    return found


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize(
    "options",
    [{}, {"reduction": "sum", "head_bias": True, "tail_bias": True}, {"ignore_index": 3}],
    ids=["mean", "sum, biases", "ignored"],
)
def test_captured_steps_train_as_launched_ones(how, options, launched):
    def run():
        layer = make(**options)
        call = torch.compile(lambda h, t: layer(h, t).loss) if how == "compiled" else None
        return updated(layer, AFTER + 5, call, -0.5)

    expected = launched(run)
    before = graphs.n_bytes
    found = run()
    assert before == 0 < graphs.n_bytes
    same(found, expected, rtol=0, atol=0)


def test_a_captured_step_writes_to_no_memory_but_its_own_after_the_vendors_workspaces_were_dropped(launched):
    # A head's gradient over few rows is a long sum of few elements, which the library splits and keeps partly there.
    layer = AdaptiveLogSoftmaxWithLoss(64, 9000, [8000], device="cuda", dtype=torch.bfloat16)
    hidden = torch.randn(32, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(0, 9000, (32,), device="cuda")

    def gradients():
        found = torch.autograd.grad(layer(hidden, target).loss, [hidden, *layer.parameters()])
        return [gradient.clone() for gradient in found]

    expected = launched(gradients)
    for _ in range(AFTER + 2):
        gradients()
    assert graphs.n_bytes > 0
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    others = [torch.full((2**20,), 7, dtype=torch.int32, device="cuda") for _ in range(64)]
    for _ in range(3):
        same([gradients()], [expected], rtol=0, atol=0)
    assert all((other == 7).all() for other in others)


def test_a_graph_that_is_dropped_leaves_the_others_right(launched):
    layers = [make(), make(head_bias=True), make(tail_bias=True)]
    expected = [
        launched(lambda layer=layer: trained(layer, list(layer.parameters()), [batch(9)])) for layer in layers
    ]
    for layer in layers:
        trained(layer, list(layer.parameters()), [batch(seed) for seed in range(AFTER + 2)])
    kept = graphs.n_bytes
    set_graph_memory(kept - 1)  # drops the first
    assert 0 < graphs.n_bytes < kept
    torch.cuda.empty_cache()
    for _ in range(3):
        for layer, right in zip(layers, expected, strict=True):
            same(trained(layer, list(layer.parameters()), [batch(9)]), right, rtol=0, atol=0)


def test_models_that_take_turns_eager_compiled_and_with_graphs_train_as_launched_ones(launched):
    def run():
        found = []
        for i in range(3):
            models = [copy.deepcopy(Model(gradients="loss")) for _ in range(3)]
            calls = [models[0], torch.compile(models[1]), torch.compile(models[2], mode="reduce-overhead")]
            for seed in range(2 * AFTER):
                for model, call in zip(models, calls, strict=True):
                    torch.compiler.cudagraph_mark_step_begin()
                    model.zero_grad()
                    loss = call(*batch(seed + i))[1]
                    loss.backward()
                    found.append([loss.detach().clone(), *(p.grad.clone() for p in model.parameters())])
        return found

    expected = launched(run)
    torch.compiler.reset()
    same(run(), expected, rtol=1e-5, atol=1e-6)


def test_autocast_which_casts_the_weights_at_every_step_trains_as_with_launched_steps(launched):
    def run():
        layer = make()
        found = []
        for seed in range(4 * AFTER):
            layer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = layer(*batch(seed)).loss
            loss.backward()
            found.append([loss.detach(), *(p.grad.clone() for p in layer.parameters())])
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter -= 0.1 * parameter.grad
        return found

    expected = launched(run)
    same(run(), expected, rtol=0, atol=0)


def test_two_losses_before_a_backward_and_gradients_kept_over_steps_are_right(launched):
    def run():
        layer = make()
        updated(layer, AFTER + 2)
        found = []
        for _ in range(3):
            layer.zero_grad()
            (layer(*batch(50)).loss + 2 * layer(*batch(51)).loss).backward()
            layer(*batch(52)).loss.backward()
            found.append([p.grad.clone() for p in layer.parameters()])
        return found

    expected = launched(run)
    same(run(), expected, rtol=1e-5, atol=1e-7)


def test_steps_on_another_stream_have_graphs_of_their_own(launched):
    def run():
        layer = make()
        streams = [torch.cuda.Stream(), torch.cuda.Stream()]
        found = []
        for seed in range(2 * AFTER + 6):
            with torch.cuda.stream(streams[seed % 2]):
                layer.zero_grad()
                loss = layer(*batch(seed)).loss
                loss.backward()
                found.append([loss.detach(), *(p.grad.clone() for p in layer.parameters())])
            torch.cuda.synchronize()
        return found

    expected = launched(run)
    same(run(), expected, rtol=0, atol=0)
    assert len(graphs._kept) == 2


def test_activation_checkpoints_and_a_capture_by_the_user_leave_the_layers_graphs_alone(launched):
    layer = make()
    hidden, target = batch()
    for _ in range(AFTER + 3):
        checkpoint(lambda h: layer(h, target).loss, hidden.requires_grad_(), use_reentrant=False).backward()
    expected = layer.head.weight.grad.clone() / (AFTER + 3)
    layer.zero_grad()
    layer(hidden, target).loss.backward()
    torch.testing.assert_close(layer.head.weight.grad, expected, rtol=1e-5, atol=1e-8)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(AFTER + 3):
            layer.zero_grad()
            layer(hidden, target).loss.backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    layer.zero_grad()
    with torch.cuda.graph(graph):
        layer(hidden, target).loss.backward()
    graph.replay()
    torch.testing.assert_close(layer.head.weight.grad, expected, rtol=1e-5, atol=1e-8)


def test_a_bound_of_zero_gives_the_memory_back(launched):
    layer = make()
    updated(layer, AFTER + 3)
    held = torch.cuda.memory_reserved()
    assert graphs.n_bytes > 0
    set_graph_memory(0)
    torch.cuda.empty_cache()
    assert graphs.n_bytes == 0
    assert torch.cuda.memory_reserved() < held
