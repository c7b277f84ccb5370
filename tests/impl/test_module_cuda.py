"""The layer on a GPU: what `test_module_ecosystem.py` asks for on a CPU, through the GPU's operators."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from zipfmax import AdaptiveEmbedding, AdaptiveLogSoftmaxWithLoss, LabelRanks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

SHAPE = (64, 600, (100, 300), 2.0)


@pytest.fixture(autouse=True)
def _no_compiled_code_of_other_tests():
    """torch.compile gives up on a function after eight versions of it; each test compiles its own layer."""
    torch.compiler.reset()


def make(**options):
    torch.manual_seed(0)
    return AdaptiveLogSoftmaxWithLoss(*SHAPE, device="cuda", **options)


def batch(n=96):
    torch.manual_seed(1)
    return torch.randn(n, 64, device="cuda"), torch.randint(0, 600, (n,), device="cuda")


def step(layer, hidden, target, call=None):
    hidden = hidden.clone().requires_grad_()
    layer.zero_grad()
    output, loss = (layer if call is None else call)(hidden, target)
    loss.sum().backward()
    gradients = [
        torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in (hidden, *layer.parameters())
    ]
    return [output.detach(), loss.detach(), *gradients]


OPTIONS = {
    "plain": {},
    "biases": {"head_bias": True, "tail_bias": True, "projection_bias": True},
    "ignored, sum": {"ignore_index": -100, "reduction": "sum"},
    "ignored, mean": {"ignore_index": -100},
    "none, zeros": {"reduction": "none", "absent_grads": "zeros"},
    "ranks": {"ignore_index": 3, "label_ranks": LabelRanks(list(range(599, -1, -1)))},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("compiler", [None, "aot_eager", "inductor"])
def test_the_gpu_gives_eagers_results_and_gradients_compiled_or_not(options, compiler):
    layer, reference = make(**options), make(backend="eager", **options).double()
    hidden, target = batch()
    if "ignore_index" in options:
        target[::3] = options["ignore_index"]
    call = None if compiler is None else torch.compile(layer, fullgraph=True, backend=compiler)
    expected = step(reference, hidden.double(), target)
    for found, right in zip(step(layer, hidden, target, call), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("leading", [(), (4, 6), (0,)])
def test_any_leading_shape_is_the_flat_call(leading):
    layer = make(reduction="sum")
    hidden = torch.randn(*leading, 64, device="cuda")
    target = torch.randint(0, 600, leading, device="cuda")
    found, expected = layer(hidden, target), layer(hidden.reshape(-1, 64), target.reshape(-1))
    torch.testing.assert_close(found.output, expected.output.reshape(leading))
    torch.testing.assert_close(found.loss, expected.loss)


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_autocast_takes_16_bit_products_and_gives_float32_results(input_dtype):
    layer, reference = make(tail_bias=True), make(tail_bias=True, backend="eager").double()
    hidden, target = batch()
    with torch.autocast("cuda", torch.bfloat16):
        found = step(layer, hidden.to(input_dtype), target)
    assert {tensor.dtype for tensor in (found[0], found[1], *found[3:])} == {torch.float32}
    for mine, right in zip(found, step(reference, hidden.double(), target), strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=3e-2, atol=3e-2)


def test_decoding_and_the_tied_embedding_run_on_the_gpu():
    layer = make(label_ranks=LabelRanks(torch.randperm(600)))
    hidden, target = batch()
    log_prob = layer.log_prob(hidden)
    torch.testing.assert_close(layer.topk(hidden, 5).values, log_prob.topk(5).values, rtol=1e-4, atol=1e-4)
    assert (layer.predict(hidden) == log_prob.argmax(1)).float().mean() > 0.98  # ties of rounding
    drawn = layer.sample(hidden, 4, torch.Generator("cuda").manual_seed(0))
    assert drawn.shape == (96, 4)
    assert 0 <= drawn.min() <= drawn.max() < 600
    model = nn.ModuleList([AdaptiveEmbedding.tied_to(layer), layer])
    layer(model[0](target), target).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_target_on_the_host_is_refused():
    hidden, target = batch()
    with pytest.raises(RuntimeError, match="targets are on cpu, but inputs are on cuda"):
        make()(hidden, target.cpu())


@pytest.mark.parametrize("wrong", [-1, 600, 2**40])
def test_a_target_out_of_range_is_a_device_side_assertion_and_no_stray_access(wrong):
    code = f"""
import torch
from zipfmax import AdaptiveLogSoftmaxWithLoss
layer = AdaptiveLogSoftmaxWithLoss(*{SHAPE}, device="cuda")
target = torch.tensor([5, {wrong}, 20], device="cuda")
layer(torch.randn(3, 64, device="cuda"), target).loss.backward()
torch.cuda.synchronize()
"""
    # In a process of its own: an assertion on the device ends the process's CUDA context.
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    # Which call reports it is a matter of timing; the assertion's own line is always there.
    assert "Assertion `Target values should be in [0, 599]" in ended.stderr, ended.stderr
    assert "illegal" not in ended.stderr, ended.stderr
