"""Counted against tensors of known size."""

import pytest
import torch

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.backends import tiled
from zipfmax_bench.memory import peak_temporary_bytes

MIB = 2**20


def floats(mib):
    return torch.empty(mib * MIB // 4)


def test_two_tensors_alive_at_once_add_up():
    def both():
        first, second = floats(3), floats(5)
        del first, second

    assert peak_temporary_bytes(both) == 8 * MIB


def test_two_tensors_one_after_the_other_do_not_add_up():
    def in_turn():
        floats(3)
        floats(5)

    assert peak_temporary_bytes(in_turn) == 5 * MIB


def test_what_outlives_the_call_does_not_count_even_where_it_came_before_the_peak():
    kept = []

    def keep():
        kept.append(floats(7))
        floats(2)

    assert peak_temporary_bytes(keep) == 2 * MIB


def test_what_outlives_the_call_is_not_taken_off_a_peak_before_it():
    kept = []

    def keep():
        floats(6)
        kept.append(floats(4))

    assert peak_temporary_bytes(keep) == 6 * MIB


def test_what_autograd_holds_between_forward_and_backward_counts():
    weight = torch.ones(MIB // 4, requires_grad=True)

    def step():
        weight.grad = None
        weight.exp().exp().sum().backward()

    # Both exponentials are saved; the second's gradient is at most one more, and the weight's own stays.
    assert 2 * MIB <= peak_temporary_bytes(step) <= 3 * MIB + 4096


@pytest.mark.parametrize("warm", [False, True])
def test_the_workspace_counts_whether_or_not_it_was_there_before(warm, monkeypatch):
    monkeypatch.setattr(tiled, "workspace_bytes", MIB)
    layer = AdaptiveLogSoftmaxWithLoss(16, 3000, [1000, 2000], backend="tiled")
    hidden, target = torch.randn(512, 16), torch.randint(0, 3000, (512,))

    def forward():
        # oneDNN's tiles are not in the workspace.
        with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
            layer(hidden, target)

    tiled.release_workspace()
    if warm:
        forward()
    peak = peak_temporary_bytes(forward)
    assert 0.9 * MIB <= peak <= 1.3 * MIB
