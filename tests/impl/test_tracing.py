"""Recording and shaping: fake tensors, jit.trace, fx, make_fx, compiled second derivatives, export."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from zipfmax import AdaptiveLogSoftmaxWithLoss, LabelRanks
from zipfmax.backends import tiled
from zipfmax.backends.tiled_workspace import workspace

SHAPE = (16, 60, [10, 30], 2.0)


@pytest.fixture(autouse=True)
def _no_compiled_code_of_other_tests():
    torch.compiler.reset()


def make(cls=AdaptiveLogSoftmaxWithLoss, **options):
    torch.manual_seed(0)
    return cls(*SHAPE, **options)


def batch(n=24, seed=1):
    torch.manual_seed(seed)
    return torch.randn(n, 16), torch.randint(0, 60, (n,))


class Model(nn.Module):
    """A model that contains the layer."""

    def __init__(self, cls=AdaptiveLogSoftmaxWithLoss):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(16, 16)
        self.criterion = cls(*SHAPE)

    def forward(self, x, y):
        output, loss = self.criterion(torch.tanh(self.body(x)), y)
        return output, loss


@pytest.mark.parametrize("backend", ["auto", "tiled", "eager"])
def test_fake_calls_give_the_shapes_and_leave_nothing_for_real_ones(backend):
    tiled.release_workspace()
    real = make(backend=backend)
    hidden, target = batch()
    expected = [
        *make(nn.AdaptiveLogSoftmaxWithLoss)(hidden, target),
        real.log_prob(hidden),
        real.predict(hidden),
    ]
    tiled.release_workspace()
    with FakeTensorMode() as mode:
        fake = make(backend=backend)
        x, y = mode.from_tensor(hidden), mode.from_tensor(target)
        fake(x, y).loss.backward()
        assert fake.head.weight.grad.shape == fake.head.weight.shape
        with torch.no_grad():
            found = [*fake(x, y), fake.log_prob(x), fake.predict(x)]
            best = fake.topk(x, 3)
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected]
    assert best.values.shape == (24, 3)
    with torch.no_grad():
        for mine, other in zip([*real(hidden, target), real.log_prob(hidden)], expected, strict=False):
            assert type(mine) is torch.Tensor
            assert_close(mine, other)


def test_a_workspace_of_a_fake_call_is_not_kept_and_a_real_one_not_handed_out():
    device = torch.device("cpu")
    tiled.release_workspace()
    with FakeTensorMode():
        assert isinstance(workspace(64, device), FakeTensor)
    real = workspace(64, device)
    assert type(real) is torch.Tensor
    with FakeTensorMode():
        assert isinstance(workspace(64, device), FakeTensor)
    assert workspace(64, device) is real


@pytest.mark.parametrize("ranks", [None, LabelRanks(list(range(59, -1, -1)))], ids=["plain", "ranks"])
def test_a_jit_trace_of_every_method_serves_other_batches_too(ranks):
    layer = make(label_ranks=ranks).requires_grad_(False)
    hidden, target = batch()
    shortlist = target * 0 if ranks is None else target * 0 + 59  # one example that opens no tail
    traced = torch.jit.trace(lambda x, y: tuple(layer(x, y)), (hidden, shortlist))
    others = torch.jit.trace(
        lambda x: (layer.log_prob(x), layer.predict(x), *layer.topk(x, 7)), hidden * 0.01
    )
    hidden, target = batch(31, seed=5)
    assert_close(traced(hidden, target), tuple(layer(hidden, target)))
    for found, expected in zip(
        others(hidden), (layer.log_prob(hidden), layer.predict(hidden), *layer.topk(hidden, 7)), strict=True
    ):
        assert_close(found, expected)


def test_trace_module_of_log_prob_keeps_gradients():
    layer = make()
    hidden, _ = batch()
    traced = torch.jit.trace_module(layer, {"log_prob": hidden})
    traced.log_prob(hidden * 2).square().sum().backward()
    found = layer.head.weight.grad.clone()
    layer.zero_grad()
    layer.log_prob(hidden * 2).square().sum().backward()
    assert_close(found, layer.head.weight.grad)


def test_fx_records_the_layer_as_a_leaf_as_it_does_torchs():
    graphs = [
        torch.fx.symbolic_trace(Model(cls))
        for cls in (nn.AdaptiveLogSoftmaxWithLoss, AdaptiveLogSoftmaxWithLoss)
    ]
    theirs, ours = ([(n.op, str(n.target)) for n in graph.graph.nodes] for graph in graphs)
    assert ours == theirs
    assert ("call_module", "criterion") in ours
    hidden, target = batch()
    for found, expected in zip(graphs[1](hidden, target), Model()(hidden, target), strict=True):
        assert_close(found, expected)


def test_fx_of_a_method_says_that_it_cannot():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make()

        def forward(self, x):
            return self.layer.log_prob(x)

    with pytest.raises(TypeError, match="symbolic_trace cannot follow this method; call the layer itself"):
        torch.fx.symbolic_trace(Decoder())


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx_serves_other_batches_of_the_same_size(tracing_mode):
    layer = make()

    def step(x, y):
        output, loss = layer(x, y)
        return output, loss, *torch.autograd.grad(loss, [layer.head.weight, layer.tail[0][1].weight])

    hidden, target = batch()
    if tracing_mode != "real":
        layer.requires_grad_(False)
        step = lambda x, y: (*layer(x, y), layer.log_prob(x), layer.predict(x))  # noqa: E731
    kwargs = {"_allow_non_fake_inputs": True} if tracing_mode != "real" else {}
    graph = make_fx(step, tracing_mode=tracing_mode, **kwargs)(hidden, target * 0)
    hidden, target = batch(seed=5)
    for found, expected in zip(graph(hidden, target), step(hidden, target), strict=True):
        assert_close(found, expected)


def test_compiled_calls_have_second_derivatives_as_in_eager_mode():
    layer = make()
    compiled = torch.compile(layer, backend="eager")
    found = []
    for call in (layer, compiled):
        hidden, target = batch()
        hidden.requires_grad_()
        (first,) = torch.autograd.grad(call(hidden, target).loss, hidden, create_graph=True)
        found.append((first, torch.autograd.grad(first.square().sum(), [hidden, *layer.parameters()])))
    assert_close(*found)


def test_the_forward_exports_and_the_program_takes_any_target():
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make(ignore_index=-1)

        def forward(self, x, y):
            return tuple(self.layer(x, y))

    step = Step()
    hidden, target = batch()
    program = torch.export.export(step, (hidden, target * 0))
    assert not any("zipfmax" in str(node.target) for node in program.graph.nodes)
    target[:3] = -1
    for found, expected in zip(program.module()(hidden, target), step(hidden, target), strict=True):
        assert_close(found, expected)


def test_compiled_transforms_are_one_graph():
    layer = make(ignore_index=3)
    hidden, target = batch()
    x, y = hidden.view(3, 8, 16), target.view(3, 8)

    def losses(x, y):
        return torch.func.vmap(lambda x, y: layer(x, y).loss)(x, y)

    def gradient(x):
        return torch.func.grad(lambda x: layer(x, target).loss)(x)

    for function, arguments in ((losses, (x, y)), (gradient, (hidden,))):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        assert_close(compiled(*arguments), function(*arguments))
    served = []
    compiled = torch.compile(
        layer, backend=lambda graph, _: served.append(str(graph.graph)) or graph, fullgraph=True
    )
    assert_close(compiled(hidden, target), layer(hidden, target))
    assert "zipfmax.tiled_log_p" in served[0]  # outside a transform it is the fast operator still
    assert_close(losses(x, y), torch.stack([layer(x[i], y[i]).loss for i in range(3)]))


def test_compiled_calls_with_changed_submodules_are_torchs():
    found = []
    hidden, target = batch()
    for cls in (nn.AdaptiveLogSoftmaxWithLoss, AdaptiveLogSoftmaxWithLoss):
        layer = make(cls)
        layer.head.register_forward_hook(lambda module, x, y: y * 0.5)
        result = torch.compile(layer, backend="aot_eager")(hidden, target)
        result.loss.backward()
        found.append([result.output, result.loss, layer.head.weight.grad])
    assert_close(found[1], found[0])


def test_jit_script_refuses_both_layers():
    for cls in (nn.AdaptiveLogSoftmaxWithLoss, AdaptiveLogSoftmaxWithLoss):
        with pytest.raises(
            (ValueError, AssertionError)
        ):  # which of them depends on what torch scripted before
            torch.jit.script(make(cls))
