"""Where backward starts, told by `gradients=` or learned: the same gradients, and work that is not done."""

import pytest
import torch
from torch.testing import assert_close

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.backends import tiled, tiled_batch

SHAPE = (16, 60, (10, 30), 2.0)


def make(**options):
    torch.manual_seed(0)
    return AdaptiveLogSoftmaxWithLoss(*SHAPE, **options)


def batch():
    torch.manual_seed(1)
    return torch.randn(24, 16, requires_grad=True), torch.randint(0, 60, (24,))


@pytest.fixture
def forward_gradients(monkeypatch):
    """For each forward of the tiled backend, whether it took gradients."""
    taken, real = [], tiled_batch.log_p_and_gradients

    def counted(weights, hidden, batch, workspace_bytes, scale=None, wanted=()):
        taken.append(scale is not None)
        return real(weights, hidden, batch, workspace_bytes, scale, wanted)

    monkeypatch.setattr(tiled, "log_p_and_gradients", counted)
    return taken


def test_a_loss_built_from_output_takes_no_gradients_in_forward_once_one_backward_has_shown_it(
    forward_gradients,
):
    layer = make(backend="tiled")
    for from_output, expected in [(True, True), (True, False), (False, False), (False, True)]:
        result = layer(*batch())
        assert forward_gradients[-1] == expected
        (result.output.square().mean() if from_output else result.loss).backward()


def test_output_told_beforehand_takes_none_from_the_first_forward_on(forward_gradients):
    layer = make(backend="tiled", gradients="output")
    for _ in range(2):
        result = layer(*batch())
        assert not forward_gradients[-1]
        result.loss.backward()


@pytest.mark.parametrize("backend", ["eager", "tiled"])
@pytest.mark.parametrize("gradients", ["auto", "loss", "output"])
@pytest.mark.parametrize("from_output", [False, True])
def test_the_option_changes_no_gradient(backend, gradients, from_output):
    found = []
    for layer in (make(backend="eager"), make(backend=backend, gradients=gradients)):
        for _ in range(2):
            hidden, target = batch()
            layer.zero_grad()
            output, loss = layer(hidden, target)
            if from_output and output.requires_grad:
                loss = -(output * torch.arange(24)).mean()
            loss.backward()
        found.append([hidden.grad, *(p.grad for p in layer.parameters())])
    if from_output and gradients == "loss":
        assert not output.requires_grad
        return
    for expected, mine in zip(*found, strict=True):
        assert_close(mine, expected)


@pytest.mark.parametrize("backend", ["eager", "tiled"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_loss_detaches_output_and_only_output(backend, reduction):
    output, loss = make(backend=backend, gradients="loss", reduction=reduction)(*batch())
    assert not output.requires_grad
    assert loss.requires_grad
