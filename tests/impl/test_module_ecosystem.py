"""The layer among torch's own tools: compile, export, autocast, copies, functional calls, DDP and more."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from zipfmax import AdaptiveLogSoftmaxWithLoss, LabelRanks, backends

SHAPE = (16, 60, (10, 30), 2.0)


@pytest.fixture(autouse=True)
def _no_compiled_code_of_other_tests():
    """torch.compile gives up on a function after eight versions of it; each test compiles its own layer."""
    torch.compiler.reset()


def make(**options):
    torch.manual_seed(0)
    return AdaptiveLogSoftmaxWithLoss(*SHAPE, **options)


def batch(n=24, dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(n, 16, dtype=dtype), torch.randint(0, 60, (n,))


def step(layer, hidden, target, call=None):
    """output, loss and every gradient of a training step, zeros for those that are None."""
    hidden = hidden.clone().requires_grad_()
    layer.zero_grad()
    output, loss = (layer if call is None else call)(hidden, target)
    loss.sum().backward()
    gradients = [
        torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in (hidden, *layer.parameters())
    ]
    return [output.detach(), loss.detach(), *gradients]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head_bias": True, "tail_bias": True, "projection_bias": True},
        {"ignore_index": -100, "reduction": "sum"},
        {"reduction": "none", "absent_grads": "zeros"},
        {"ignore_index": 3, "label_ranks": LabelRanks(list(range(59, -1, -1)))},
    ],
    ids=["plain", "biases", "ignore_index", "none", "ranks"],
)
def test_a_full_graph_gives_eager_modes_results_and_gradients(options):
    layer = make(**options)
    hidden, target = batch()
    if "ignore_index" in options:
        target[::3] = options["ignore_index"]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for found, expected in zip(
        step(layer, hidden, target, compiled), step(layer, hidden, target), strict=True
    ):
        torch.testing.assert_close(found, expected)


def reported_program(layer_class, backend):
    """The program of pytorch#194765, whose targets all lie in the shortlist: compiled, then as it is."""
    torch.manual_seed(0)
    module = layer_class(in_features=8, n_classes=20, cutoffs=[5, 10])
    hidden, target = torch.randn(4, 8), torch.tensor([1, 2, 3, 4])
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    return [step(module, hidden, target, call) for call in (compiled, module)]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_reported_program_compiles_in_one_graph_forward_and_backward(backend):
    for found, expected in zip(*reported_program(AdaptiveLogSoftmaxWithLoss, backend), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_torchs_layer_fails_on_the_reported_program(backend):
    try:
        reported_program(nn.AdaptiveLogSoftmaxWithLoss, backend)
    except torch._dynamo.exc.TorchDynamoException as error:
        fault = str(error)
    else:
        pytest.skip(f"torch {torch.__version__} compiles its own layer in one graph")
    assert "data-dependent" in fault
    assert "row_indices.numel()" in fault


def test_inductor_compiles_a_model_around_the_layer_in_one_graph():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(16, 16)
            self.layer = make(ignore_index=-1)

        def forward(self, hidden, target):
            return self.layer(torch.tanh(self.body(hidden)), target)

    model = Model()
    hidden, target = batch()
    target[:5] = -1
    compiled = torch.compile(model, fullgraph=True)
    for found, expected in zip(
        step(model, hidden, target, compiled), step(model, hidden, target), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_a_full_graph_takes_any_batch_size_and_unbatched_input():
    layer = make()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (3, 8, 24):
        hidden, target = batch(n)
        torch.testing.assert_close(compiled(hidden, target).loss, layer(hidden, target).loss)
    torch.testing.assert_close(compiled(hidden[0], target[0]).output, layer(hidden[0], target[0]).output)


def test_log_prob_and_predict_compile_in_one_graph():
    layer = make(label_ranks=LabelRanks(torch.randperm(60)))
    hidden, _ = batch()
    for method in (layer.log_prob, layer.predict):
        compiled = torch.compile(method, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(hidden), method(hidden))


@pytest.mark.parametrize("ranks", [None, LabelRanks(list(range(59, -1, -1)))], ids=["plain", "ranks"])
def test_log_prob_and_predict_export(ranks, monkeypatch):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make(head_bias=True, label_ranks=ranks)

        def forward(self, hidden):
            return self.layer.log_prob(hidden), self.layer.predict(hidden)

    decoder = Decoder().eval()
    rows = torch.export.Dim("rows", min=2)
    served, select = set(), backends.select

    def selected(*arguments):
        served.add(select(*arguments).__name__)
        return select(*arguments)

    monkeypatch.setattr(backends, "select", selected)
    program = torch.export.export(decoder, (torch.randn(5, 16),), dynamic_shapes={"hidden": {0: rows}})
    assert served == {"zipfmax.backends.eager"}  # the others have operators that a program's reader may lack
    assert not any("zipfmax" in str(node.target) for node in program.graph.nodes)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    hidden, _ = batch(9)
    log_prob, best = loaded(hidden)
    torch.testing.assert_close(log_prob, decoder.layer.log_prob(hidden))
    assert torch.equal(best, decoder.layer.predict(hidden))


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
def test_autocast_takes_16_bit_products_and_gives_float32_results(backend, input_dtype):
    layer = make(head_bias=True, tail_bias=True, backend=backend)
    hidden, target = batch()
    with torch.autocast("cpu", torch.bfloat16):
        found = step(layer, hidden.to(input_dtype), target)
        log_prob = layer.log_prob(hidden.to(input_dtype))
        best = layer.predict(hidden.to(input_dtype))
        values = layer.topk(hidden.to(input_dtype), 3).values
    assert {tensor.dtype for tensor in (found[0], found[1], log_prob, values, *found[3:])} == {torch.float32}
    assert found[2].dtype == input_dtype

    # The same in float32 from the rounded weights and rows: what is left is the products' rounding.
    rounded = make(head_bias=True, tail_bias=True, backend="eager")
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.bfloat16())
    expected = step(rounded, hidden.bfloat16().float(), target)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.float(), other, rtol=3e-2, atol=3e-2)
    torch.testing.assert_close(log_prob, rounded.log_prob(hidden.bfloat16().float()), rtol=2e-2, atol=3e-2)
    assert (best == rounded.predict(hidden.bfloat16().float())).float().mean() > 0.9
    assert (found[0].bfloat16() != found[0]).any()  # not 16-bit numbers in a float32 tensor


def test_autocast_leaves_float64_alone():
    layer = make(dtype=torch.float64)
    hidden, target = batch(dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(hidden, target)
    torch.testing.assert_close(found.output, layer(hidden, target).output)


@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_layer_gives_16_bit_results(backend, dtype):
    layer, reference = make(backend=backend).to(dtype), make().to(dtype).double()
    hidden, target = batch(dtype=dtype)
    found, expected = step(layer, hidden, target), step(reference, hidden.double(), target)
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), other, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), "save"],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_copied_layer_is_the_layer(copied, tmp_path):
    layer = make(label_ranks=LabelRanks(torch.randperm(60)), ignore_index=2, tail_bias=True)
    if copied == "save":
        torch.save(layer, tmp_path / "layer.pt")
        other = torch.load(tmp_path / "layer.pt", weights_only=False)
    else:
        other = copied(layer)
    for found, expected in zip(step(other, *batch()), step(layer, *batch()), strict=True):
        torch.testing.assert_close(found, expected)
    assert all(a is not b for a, b in zip(layer.parameters(), other.parameters(), strict=True))


def test_a_layer_without_storage_tells_the_shapes():
    layer = make(device="meta", backend="eager")
    hidden = torch.empty(2, 5, 16, device="meta")
    assert layer.log_prob(hidden).shape == (2, 5, 60)
    filled = layer.to_empty(device="cpu")
    filled.reset_parameters()
    assert filled(*batch()).loss.isfinite()


def test_a_functional_call_uses_the_weights_it_is_given():
    layer, other = make(), make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    hidden, target = batch()
    found = functional_call(layer, dict(other.named_parameters()), (hidden, target))
    torch.testing.assert_close(found.output, other(hidden, target).output)
    assert not torch.allclose(found.output, layer(hidden, target).output)
    found.loss.backward()
    assert all(p.grad is None for p in layer.parameters())
    assert other.head.weight.grad is not None


def test_gradients_accumulate_over_batches():
    layer = make(reduction="sum")
    hidden, target = batch()
    expected = step(layer, hidden, target)[3:]
    layer.zero_grad()
    for part in range(0, 24, 8):
        layer(hidden[part : part + 8], target[part : part + 8]).loss.backward()
    for parameter, whole in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, whole)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    layer = make()
    hidden, target = batch()

    def recomputed(hidden, target):
        return checkpoint(layer, hidden, target, use_reentrant=use_reentrant)

    for found, expected in zip(
        step(layer, hidden, target, recomputed), step(layer, hidden, target), strict=True
    ):
        torch.testing.assert_close(found, expected)


def _train_one_rank(rank, store, results):
    """Two steps in which this rank's targets miss clusters that the other's hit."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    layer = DistributedDataParallel(make(absent_grads="zeros"), find_unused_parameters=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    hidden, _ = batch()
    for target in _targets_of(rank):
        optimizer.zero_grad()
        layer(hidden[rank * 12 : rank * 12 + 12], target).loss.backward()
        optimizer.step()
    torch.save(layer.module.state_dict(), f"{results}/{rank}.pt")
    dist.destroy_process_group()


def _targets_of(rank):
    """Rank 0 sees the shortlist alone, then both tails; rank 1 only the last tail, then the shortlist."""
    spans = [[(0, 10), (10, 60)], [(30, 60), (0, 10)]][rank]
    torch.manual_seed(2 + rank)
    return [torch.randint(low, high, (12,)) for low, high in spans]


def test_data_parallel_ranks_need_no_search_for_unused_parameters(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))  # the ranks import this file by its full name
    mp.spawn(_train_one_rank, args=(str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    alone = make()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.5)
    hidden, _ = batch()
    for targets in zip(_targets_of(0), _targets_of(1), strict=True):
        optimizer.zero_grad()
        alone(hidden, torch.cat(targets)).loss.backward()
        optimizer.step()
    for name, expected in alone.state_dict().items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], expected, msg=name)
