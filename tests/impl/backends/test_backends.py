"""Which backend `auto` takes on a CPU."""

import pytest
import torch

from zipfmax import AdaptiveLogSoftmaxWithLoss, backends
from zipfmax.backends import tiled_products

SHORTLIST, CLASSES = 10, 1000


@pytest.fixture
def taken(monkeypatch):
    """Backends in the order in which they served."""
    names, load = [], backends.load

    def counted(name):
        names.append(name)
        return load(name)

    monkeypatch.setattr(backends, "load", counted)
    return names


def few(monkeypatch, loss=-1, classes=-1):
    monkeypatch.setattr(backends, "SMALL_LOSS", loss)
    monkeypatch.setattr(backends, "SMALL_CLASSES", classes)


@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        ([0, 3, 9], 3 * 12),
        ([0, 10, 299, 300], 4 * 12 + 2 * 290 + 700),
        ([999] * 5, 5 * 12 + 5 * 700),
        ([], 0),
    ],
    ids=["shortlist", "every part", "last tail", "no row"],
)
def test_auto_serves_a_loss_by_plain_operations_up_to_a_number_of_logits(monkeypatch, taken, labels, logits):
    layer = AdaptiveLogSoftmaxWithLoss(8, CLASSES, [SHORTLIST, 300])
    hidden, target = torch.randn(len(labels), 8), torch.tensor(labels, dtype=torch.int64)
    for limit, expected in ((logits, "eager"), (logits - 1, "tiled")):
        few(monkeypatch, loss=limit)
        taken.clear()
        layer(hidden, target)
        assert taken[-1] == expected


@pytest.mark.parametrize(("method", "bound"), [("log_prob", "loss"), ("predict", "classes")])
def test_auto_serves_all_classes_by_plain_operations_up_to_a_number_of_logits(
    monkeypatch, taken, method, bound
):
    layer = AdaptiveLogSoftmaxWithLoss(8, CLASSES, [SHORTLIST, 300])
    logits = 7 * (CLASSES + 2)
    for limit, expected in ((logits, "eager"), (logits - 1, "tiled")):
        few(monkeypatch, **{bound: limit})
        taken.clear()
        getattr(layer, method)(torch.randn(7, 8))
        assert taken[-1] == expected


@pytest.mark.parametrize("slow", [False, True])
def test_fewer_logits_are_few_where_products_of_16_bits_are_slow(monkeypatch, taken, slow):
    monkeypatch.setattr(tiled_products, "_float32_is_faster", lambda dtype: slow)
    layer = AdaptiveLogSoftmaxWithLoss(8, CLASSES, [SHORTLIST, 300], dtype=torch.bfloat16)
    hidden, target = torch.randn(3, 8, dtype=torch.bfloat16), torch.tensor([0, 3, 9])
    for limit, expected in ((36, "tiled" if slow else "eager"), (36 * 64, "eager")):
        few(monkeypatch, loss=limit)
        taken.clear()
        layer(hidden, target)
        assert taken[-1] == expected


def test_logits_are_counted_where_the_input_is_whatever_the_default_device(monkeypatch, taken):
    layer = AdaptiveLogSoftmaxWithLoss(8, CLASSES, [SHORTLIST, 300])
    hidden, target = torch.randn(4, 8), torch.tensor([0, 10, 299, 300])
    expected = layer(hidden, target).loss
    few(monkeypatch, loss=4 * 12 + 2 * 290 + 700)
    with torch.device("meta"):
        assert torch.equal(layer(hidden, target).loss, expected)
    assert taken[-1] == "eager"


def test_one_tail_is_counted_as_several_are(monkeypatch, taken):
    layer = AdaptiveLogSoftmaxWithLoss(8, CLASSES, [SHORTLIST])
    for limit, expected in ((3 * 11 + 2 * 990, "eager"), (3 * 11 + 2 * 990 - 1, "tiled")):
        few(monkeypatch, loss=limit)
        taken.clear()
        layer(torch.randn(3, 8), torch.tensor([9, 10, 999]))
        assert taken[-1] == expected


def test_a_named_backend_serves_few_logits_too(monkeypatch, taken):
    few(monkeypatch, loss=10**9, classes=10**9)
    layer = AdaptiveLogSoftmaxWithLoss(8, CLASSES, [SHORTLIST, 300], backend="tiled")
    taken.clear()
    layer(torch.randn(2, 8), torch.tensor([0, 999]))
    layer.predict(torch.randn(2, 8))
    assert set(taken) == {"tiled"}
