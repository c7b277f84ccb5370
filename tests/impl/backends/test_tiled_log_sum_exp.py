"""log-sum-exp of a linear layer in tiles: torch's value and gradients at every size of workspace."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from zipfmax.backends.tiled_log_sum_exp import linear_log_sum_exp


def operands(n, k, v, dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    x, weight = torch.randn(n, k, dtype=dtype), torch.randn(v, k, dtype=dtype) * 3
    b = torch.randn(v, dtype=dtype) if bias else None
    return [None if tensor is None else tensor.requires_grad_() for tensor in (x, weight, b)]


def gradients(value, tensors):
    seed = torch.linspace(-1, 2, len(value), dtype=value.dtype)
    return torch.autograd.grad(value, [t for t in tensors if t is not None and t.requires_grad], seed)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("workspace_bytes", [8, 700, 2**12, 2**22])
@pytest.mark.parametrize(("n", "k", "v"), [(1, 1, 1), (37, 13, 101), (64, 16, 128), (5, 0, 9), (0, 3, 4)])
def test_value_and_gradients_are_torchs_at_every_size_of_workspace(n, k, v, workspace_bytes, bias):
    tensors = operands(n, k, v, bias=bias)
    found, expected = linear_log_sum_exp(*tensors, workspace_bytes), F.linear(*tensors).logsumexp(1)
    assert_close(found, expected)
    assert_close(gradients(found, tensors), gradients(expected, tensors))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_only_the_gradients_that_are_wanted_are_taken(frozen):
    tensors = operands(9, 4, 7)
    tensors[frozen].requires_grad_(False)
    found, expected = linear_log_sum_exp(*tensors, 256), F.linear(*tensors).logsumexp(1)
    assert_close(gradients(found, tensors), gradients(expected, tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes_sum_in_float32(dtype):
    tensors = operands(40, 8, 3000, dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    found, expected = linear_log_sum_exp(*tensors, 2**14), F.linear(*exact).logsumexp(1)
    assert found.dtype == torch.float32
    unit = torch.finfo(dtype).eps
    assert_close(found.double(), expected, rtol=4 * unit, atol=30 * unit)
    for mine, other in zip(gradients(found, tensors), gradients(expected, exact), strict=True):
        assert mine.dtype == dtype
        assert_close(mine.double(), other, rtol=60 * unit, atol=20 * unit * other.abs().max().item())


def test_large_logits_neither_overflow_nor_vanish():
    x, weight = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1e4], [-1e4], [0.0]])
    assert_close(linear_log_sum_exp(x, weight, None, 64), torch.full((2,), 1e4))


def test_second_and_batched_derivatives_are_torchs():
    tensors = operands(6, 3, 11)
    assert torch.autograd.gradgradcheck(lambda *t: linear_log_sum_exp(*t, 128), tensors)
    value = linear_log_sum_exp(*tensors, 128)
    seeds = torch.randn(4, 6, dtype=torch.float64)
    found = torch.autograd.grad(value, tensors, seeds, is_grads_batched=True, retain_graph=True)
    for row, seed in enumerate(seeds):
        expected = torch.autograd.grad(value, tensors, seed, retain_graph=True)
        assert_close([part[row] for part in found], list(expected))
