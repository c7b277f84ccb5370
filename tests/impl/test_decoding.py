import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.decoding import log_prob_into, topk

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


def make(layout=(16, 60, (6, 20, 40), 2.0), scale=4.0, n=50, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layer = AdaptiveLogSoftmaxWithLoss(*layout, True, dtype=dtype, tail_bias=True)
    return layer, torch.randn(n, layout[0], dtype=dtype) * scale


@pytest.mark.parametrize("k", [0, 1, 2, 6, 7, 12])
def test_topk_is_the_topk_of_log_prob(layout, k):
    layer, hidden = make(layout)
    values, indices = layer.topk(hidden, k)
    log_prob = layer.log_prob(hidden)
    torch.testing.assert_close(values, log_prob.topk(k).values)
    torch.testing.assert_close(values, log_prob.gather(1, indices))
    assert all(len(set(row)) == k for row in indices.tolist())


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_topk_is_exact_for_any_partition_and_sharpness(data):
    n_classes = data.draw(st.integers(2, 40))
    cutoffs = tuple(sorted(data.draw(st.sets(st.integers(1, n_classes - 1), min_size=1, max_size=5))))
    layer, hidden = make(
        (8, n_classes, cutoffs, data.draw(st.sampled_from([1, 2, 9]))),
        scale=data.draw(st.sampled_from([0.0, 0.1, 3.0, 100.0])),
        n=5,
        seed=data.draw(st.integers(0, 50)),
    )
    k = data.draw(st.integers(1, n_classes))
    values, indices = layer.topk(hidden, k)
    log_prob = layer.log_prob(hidden)
    torch.testing.assert_close(values, log_prob.topk(k).values)
    torch.testing.assert_close(values, log_prob.gather(1, indices))
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("k", [1, 5, 20])
def test_topk_opens_exactly_the_tails_that_no_bound_rules_out(k):
    layer, hidden = make()
    _, opened = topk(layer.layout, layer.weights(), hidden, k)
    log_prob = layer.log_prob(hidden)
    slots = torch.log_softmax(layer.head(hidden), 1)[:, layer.shortlist_size :]
    bounds = layer.layout.bounds
    for row in range(len(hidden)):
        known = log_prob[row, : bounds[1]]
        expected = torch.zeros(layer.n_clusters, dtype=torch.bool)
        for tail in slots[row].argsort(descending=True).tolist():
            if len(known) >= k and slots[row, tail] <= known.topk(k).values[-1]:
                break
            expected[tail] = True
            known = torch.cat([known, log_prob[row, bounds[tail + 1] : bounds[tail + 2]]])
        assert torch.equal(opened[row], expected)
    assert opened.any()
    assert not opened.all()


def test_a_class_that_is_ruled_out_is_still_a_class():
    layer, hidden = make(n=7)
    with torch.no_grad():
        layer.tail[0][1].bias[3] = -torch.inf
    values, indices = layer.topk(hidden, 60)
    assert (indices.sort(1).values == torch.arange(60)).all()
    assert (indices[:, -1] == 6 + 3).all()
    assert (values[:, -1] == -torch.inf).all()


def test_topk_is_differentiable_like_the_gathered_log_prob():
    layer, hidden = make(n=9)
    hidden.requires_grad_()
    values, indices = layer.topk(hidden, 5)
    (found,) = torch.autograd.grad((values * torch.arange(1, 6)).sum(), hidden)
    gathered = layer.log_prob(hidden).gather(1, indices)
    (expected,) = torch.autograd.grad((gathered * torch.arange(1, 6)).sum(), hidden)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("leading", [(), (0,), (2, 3), (2, 0)])
def test_decoding_keeps_any_leading_shape(leading):
    layer, _ = make()
    hidden = torch.randn(*leading, 16, dtype=torch.float64)
    values, indices = layer.topk(hidden, 3)
    assert values.shape == indices.shape == (*leading, 3)
    flat = layer.topk(hidden.reshape(-1, 16), 3)
    assert torch.equal(indices.reshape(-1, 3), flat.indices)
    assert layer.sample(hidden, 4).shape == (*leading, 4)


@pytest.mark.parametrize("k", [-1, 61])
def test_a_k_there_cannot_be_is_refused(k):
    layer, hidden = make()
    with pytest.raises(ValueError, match=f"k should be between 0 and n_classes=60, got {k}"):
        layer.topk(hidden, k)


def test_samples_follow_the_distribution():
    layer, hidden = make((8, 30, (4, 12, 20), 2.0), scale=0.5, n=3)
    n = 40_000
    drawn = layer.sample(hidden, n, torch.Generator().manual_seed(1))
    expected = layer.log_prob(hidden).exp() * n
    for row in range(3):
        observed = torch.bincount(drawn[row], minlength=30)
        assert (expected[row] >= 5).all()  # so that the statistic is chi-square's
        assert chisquare(observed, expected[row].detach()).pvalue > 1e-4


def test_draws_of_a_row_are_independent():
    layer, hidden = make((8, 30, (4, 12, 20), 2.0), scale=1.0, n=1)
    pairs = layer.sample(hidden.expand(30_000, 8), 2, torch.Generator().manual_seed(2))
    part = torch.bucketize(pairs, torch.tensor([4, 12, 20]), right=True)
    joint = torch.bincount(part[:, 0] * 4 + part[:, 1], minlength=16).reshape(4, 4).double()
    share = layer.log_prob(hidden).exp()[0]
    mass = torch.stack([share[a:b].sum() for a, b in [(0, 4), (4, 12), (12, 20), (20, 30)]])
    expected = torch.outer(mass, mass) * 30_000
    assert chisquare(joint.flatten(), expected.detach().flatten()).pvalue > 1e-4


def test_a_generator_decides_the_draws():
    layer, hidden = make()
    draws = [layer.sample(hidden, 9, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    with pytest.raises(ValueError, match="n should be a positive number of samples, got 0"):
        layer.sample(hidden, 0)


@pytest.mark.parametrize("leading", [(50,), (), (5, 10), (0,)])
def test_log_prob_fills_the_tensor_it_is_given(layout, leading):
    layer, _ = make(layout)
    hidden = torch.randn(*leading, layout[0], dtype=torch.float64)
    out = torch.full((*leading, layout[1]), torch.nan, dtype=torch.float64)
    with torch.no_grad():
        assert layer.log_prob(hidden, out=out) is out
    torch.testing.assert_close(out, layer.log_prob(hidden))


def test_log_prob_in_blocks_is_log_prob_at_once(monkeypatch):
    layer, hidden = make()
    out = torch.empty(50, 60, dtype=torch.float64)
    monkeypatch.setattr("zipfmax.decoding._BLOCK_ELEMENTS", 60 * 7)
    log_prob_into(layer.layout, layer.weights(), hidden, out)
    torch.testing.assert_close(out, layer.log_prob(hidden))


@pytest.mark.parametrize(
    "out",
    [
        torch.empty(50, 59, dtype=torch.float64),
        torch.empty(50, 60),
        torch.empty(60, 50, dtype=torch.float64).T,
        torch.empty(50, 60, dtype=torch.float64, device="meta"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(out):
    layer, hidden = make()
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match=r"out should be contiguous, torch.float64 of size"),
    ):
        layer.log_prob(hidden, out=out)


def test_out_goes_with_no_gradient():
    layer, hidden = make()
    with pytest.raises(RuntimeError, match="does not support automatic differentiation"):
        layer.log_prob(hidden, out=torch.empty(50, 60, dtype=torch.float64))
