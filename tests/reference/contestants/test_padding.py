"""Added classes change no result: neither the loss nor any gradient, whatever masks them."""

from __future__ import annotations

import pytest
import torch

from zipfmax_reference.contestants.padding import FEATURES, LOWEST, UNPADDED, Padding
from zipfmax_reference.contestants.settings import LossOverMatrix, Setting, linear_cross_entropy
from zipfmax_reference.truth import definition

SHAPES = [(53, 16, 12), (64, 16, 12), (385, 7, 33), (2, 5, 1)]
"""Classes, features, rows."""


def batch(shape, dtype=torch.float32, scale=1.0):
    n_classes, features, rows = shape
    rng = torch.Generator().manual_seed(n_classes)
    weight = scale * torch.randn(n_classes, features, generator=rng, dtype=torch.float64)
    hidden = torch.randn(rows, features, generator=rng, dtype=torch.float64)
    return weight.to(dtype), hidden.to(dtype), torch.randint(n_classes, (rows,), generator=rng)


def computed(padding, weight, hidden, target):
    model = LossOverMatrix(Setting("", lambda: linear_cross_entropy, padding), weight.clone(), train=True)
    hidden = hidden.clone().requires_grad_()
    loss = model.loss(hidden, target)
    loss.backward()
    return loss.item(), hidden.grad, model.gradient(), model


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", ["bias", "feature"])
@pytest.mark.parametrize("multiple", [8, 64, 384])
def test_a_padded_vocabulary_has_the_loss_and_gradients_of_float64_numpy(shape, mask, multiple):
    weight, hidden, target = batch(shape)
    loss, grad_hidden, grad_weight, _ = computed(Padding(multiple, mask), weight, hidden, target)
    truth = definition.full(weight.numpy(), hidden.numpy(), target.numpy())
    assert loss == pytest.approx(float(truth["loss"]), rel=1e-6)
    assert grad_hidden.numpy() == pytest.approx(truth["grad.input"], rel=1e-5, abs=1e-7)
    assert grad_weight.numpy() == pytest.approx(truth["grad.full.weight"], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("mask", ["bias", "feature"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_added_classes_have_no_probability_and_take_no_gradient(mask, dtype, scale):
    weight, hidden, target = batch((53, 16, 12), dtype, scale)
    _, _, _, model = computed(Padding(64, mask), weight, hidden, target)
    assert model.weight.shape == (64, 16 + (FEATURES if mask == "feature" else 0))
    assert torch.equal(model.weight.grad[53:], torch.zeros_like(model.weight.grad[53:]))


def test_without_a_mask_the_added_classes_would_be_seen():
    """What the tests above would miss, if they could miss anything."""
    weight, hidden, target = batch((53, 16, 12))
    plain = computed(UNPADDED, weight, hidden, target)[0]
    padded = torch.cat([weight, torch.zeros(11, 16)])
    assert linear_cross_entropy(hidden, padded, target).item() > plain + 1e-3


def test_a_vocabulary_that_is_a_multiple_is_held_as_it_is():
    weight, hidden, _ = batch((64, 16, 12))
    for mask in ("bias", "feature"):
        padding = Padding(64, mask)
        assert padding.weight(weight) is weight
        assert padding.hidden(hidden, 64) is hidden
        assert padding.bias(weight) is None
        assert padding.text(64) == ""


def test_the_text_says_what_is_added():
    assert (
        Padding(384, "feature").text(267_735) == "classes padded to 268,032 and masked by 8 constant features"
    )
    assert Padding(64).text(267_735) == "classes padded to 267,776 and masked by a bias of -inf"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_holds_the_lowest_logit(dtype):
    assert torch.tensor(LOWEST, dtype=dtype).item() == LOWEST
    assert torch.exp(torch.tensor(LOWEST + 300, dtype=torch.float32)).item() == 0
