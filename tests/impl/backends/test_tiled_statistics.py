"""A softmax's statistics in tiles: torch's values and gradients at every size of workspace."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from zipfmax.backends.tiled_statistics import linear_statistics, plain_statistics


def operands(n, k, v, dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    x, weight = torch.randn(n, k, dtype=dtype), torch.randn(v, k, dtype=dtype) * 3
    b = torch.randn(v, dtype=dtype) if bias else None
    return [None if tensor is None else tensor.requires_grad_() for tensor in (x, weight, b)]


def targets(n, v):
    """Classes, and some that are none: of another part of the vocabulary."""
    return torch.arange(n) * 7 % (v + 6) - 3


def gradients(values, tensors):
    n = len(values[0])
    seeds = [torch.linspace(start, 2, n, dtype=values[0].dtype) for start in (-1, 3)]
    return torch.autograd.grad(values, [t for t in tensors if t is not None and t.requires_grad], seeds)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("n", "k", "v", "workspace_bytes"),
    [
        *((37, 13, 101, size) for size in (64, 700, 2**12, 2**22)),
        *((64, 16, 128, size) for size in (700, 2**12, 2**22)),
        *((*shape, size) for shape in ((1, 1, 1), (7, 3, 9), (5, 0, 9), (0, 3, 4)) for size in (8, 2**22)),
    ],
)
def test_value_and_gradients_are_torchs_at_every_size_of_workspace(n, k, v, workspace_bytes, bias):
    tensors = operands(n, k, v, bias=bias)
    target = targets(n, v)
    found, expected = linear_statistics(*tensors, target, workspace_bytes), plain_statistics(*tensors, target)
    assert_close(expected[0], F.linear(*tensors).logsumexp(1))
    assert_close(found, expected)
    assert_close(gradients(found, tensors), gradients(expected, tensors))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_only_the_gradients_that_are_wanted_are_taken(frozen):
    tensors = operands(9, 4, 7)
    tensors[frozen].requires_grad_(False)
    target = targets(9, 7)
    found, expected = linear_statistics(*tensors, target, 256), plain_statistics(*tensors, target)
    assert_close(gradients(found, tensors), gradients(expected, tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes_sum_in_float32(dtype):
    tensors = operands(40, 8, 3000, dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    target = targets(40, 3000)
    found, expected = linear_statistics(*tensors, target, 2**14), plain_statistics(*exact, target)
    unit = torch.finfo(dtype).eps
    for mine, other in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert_close(mine.double(), other, rtol=4 * unit, atol=30 * unit)
    for mine, other in zip(gradients(found, tensors), gradients(expected, exact), strict=True):
        assert mine.dtype == dtype
        assert_close(mine.double(), other, rtol=60 * unit, atol=20 * unit * other.abs().max().item())


def test_large_logits_neither_overflow_nor_vanish():
    x, weight = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1e4], [-1e4], [0.0]])
    found, _ = linear_statistics(x, weight, None, torch.tensor([0, 0]), 64)
    assert_close(found, torch.full((2,), 1e4))


@pytest.mark.parametrize("tiled", [False, True])
def test_logits_of_minus_infinity_throughout_have_no_gradient(tiled):
    """As another process's share of the vocabulary may have."""
    x, weight = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3)
    job = (x, weight, torch.full((4,), -torch.inf), torch.tensor([9, 9]))
    found, _ = linear_statistics(*job, 16) if tiled else plain_statistics(*job)
    assert found.tolist() == [-torch.inf, -torch.inf]
    (gradient,) = torch.autograd.grad(found, x, torch.zeros(2))
    assert gradient.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_second_and_batched_derivatives_are_torchs():
    tensors, target = operands(6, 3, 11), targets(6, 11)
    assert torch.autograd.gradgradcheck(lambda *t: linear_statistics(*t, target, 128), tensors)
    values = linear_statistics(*tensors, target, 128)
    seeds = torch.randn(4, 6, dtype=torch.float64)
    found = torch.autograd.grad(values, tensors, (seeds, seeds), is_grads_batched=True, retain_graph=True)
    for row, seed in enumerate(seeds):
        expected = torch.autograd.grad(values, tensors, (seed, seed), retain_graph=True)
        assert_close([part[row] for part in found], list(expected))
