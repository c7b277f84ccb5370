"""The layer as torch.nn's: the same results, gradients, errors, names and initial weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zipfmax
from zipfmax import AdaptiveLogSoftmaxWithLoss

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")

TOLERANCE = {torch.float64: {"rtol": 1e-12, "atol": 1e-12}, torch.float32: {"rtol": 2e-5, "atol": 2e-5}}


def gradients(layer, hidden, target):
    hidden = hidden.clone().requires_grad_()
    layer.zero_grad(set_to_none=True)
    layer(hidden, target).loss.backward()
    return {"input": hidden.grad} | {name: p.grad for name, p in layer.named_parameters()}


@pytest.mark.parametrize("head_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_output_and_loss_and_every_gradient_are_torchs(pair, backend, head_bias, dtype):
    theirs, ours, hidden, target = pair(head_bias, dtype, backend=backend)
    expected, found = theirs(hidden, target), ours(hidden, target)
    torch.testing.assert_close(found.output, expected.output, **TOLERANCE[dtype])
    torch.testing.assert_close(found.loss, expected.loss, **TOLERANCE[dtype])
    expected_gradients, found_gradients = gradients(theirs, hidden, target), gradients(ours, hidden, target)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, expected_gradient in expected_gradients.items():
        torch.testing.assert_close(found_gradients[name], expected_gradient, **TOLERANCE[dtype], msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log_prob_and_predict_are_torchs(pair, backend, dtype):
    theirs, ours, hidden, _ = pair(True, dtype, backend=backend)
    torch.testing.assert_close(ours.log_prob(hidden), theirs.log_prob(hidden), **TOLERANCE[dtype])
    assert torch.equal(ours.predict(hidden), theirs.predict(hidden))


def test_log_prob_is_the_papers_formula_with_every_bias(layout, backend, definition):
    torch.manual_seed(1)
    layer = AdaptiveLogSoftmaxWithLoss(
        *layout, True, dtype=torch.float64, tail_bias=True, projection_bias=True, backend=backend
    )
    hidden = torch.randn(11, layout[0], dtype=torch.float64)
    torch.testing.assert_close(layer.log_prob(hidden), torch.from_numpy(definition(layer, hidden)))


def test_output_is_the_gathered_log_prob_and_loss_its_nll(pair, backend):
    _, ours, hidden, target = pair(backend=backend)
    log_prob = ours.log_prob(hidden)
    output, loss = ours(hidden, target)
    torch.testing.assert_close(output, log_prob.gather(1, target.unsqueeze(1)).squeeze(1))
    torch.testing.assert_close(loss, F.nll_loss(log_prob, target))
    torch.testing.assert_close(log_prob.exp().sum(1), torch.ones(len(hidden), dtype=torch.float64))


def test_the_unbatched_call_is_a_batch_of_one(pair, backend):
    _, ours, hidden, target = pair(backend=backend)
    alone, batched = ours(hidden[3], target[3]), ours(hidden[3:4], target[3:4])
    assert alone.output.shape == ()
    torch.testing.assert_close(alone.output, batched.output.squeeze(0))
    torch.testing.assert_close(alone.loss, batched.loss)


@pytest.mark.parametrize("where", ["shortlist", "tails", "mixed"])
def test_predict_is_the_argmax_wherever_the_maximum_lies(backend, where):
    torch.manual_seed(0)
    layer = AdaptiveLogSoftmaxWithLoss(8, 10, [4, 8], 2.0, head_bias=True, backend=backend)
    hidden = torch.randn(64, 8).abs()
    with torch.no_grad():
        layer.head.weight.abs_()
        if where == "shortlist":
            layer.head.weight[4:] = -100.0
        elif where == "tails":
            layer.head.weight[4:] += 100.0
        else:
            layer.head.weight[4:, 4:] += 100.0
            layer.head.weight[:4, :4] += 100.0
            hidden[:32, :4] = 0
            hidden[32:, 4:] = 0
    best = layer.predict(hidden)
    assert torch.equal(best, layer.log_prob(hidden).argmax(1))
    inside = (best < 4).float().mean().item()
    assert inside == {"shortlist": 1.0, "tails": 0.0, "mixed": 0.5}[where]


def test_clusters_without_targets_get_no_gradient_as_in_torch(backend):
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10, 15], 2.0, backend=backend)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10, 15], 2.0)
    target = torch.tensor([0, 3, 12, 14])
    for module in (layer, theirs):
        module(torch.randn(4, 16), target).loss.backward()
    assert {n for n, p in layer.named_parameters() if p.grad is None} == {
        n for n, p in theirs.named_parameters() if p.grad is None
    }


def test_names_and_shapes_of_the_state_dict_are_torchs(layout):
    theirs = nn.AdaptiveLogSoftmaxWithLoss(*layout, head_bias=True)
    ours = AdaptiveLogSoftmaxWithLoss(*layout, head_bias=True)
    assert {n: t.shape for n, t in ours.state_dict().items()} == {
        n: t.shape for n, t in theirs.state_dict().items()
    }
    theirs.load_state_dict(ours.state_dict())
    for attribute in ("in_features", "n_classes", "cutoffs", "div_value", "head_bias", "shortlist_size"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert (ours.n_clusters, ours.head_size) == (theirs.n_clusters, theirs.head_size)


@pytest.mark.parametrize("again", [False, True])
def test_a_seed_gives_torchs_initial_weights(layout, again):
    drawn = []
    for cls in (nn.AdaptiveLogSoftmaxWithLoss, AdaptiveLogSoftmaxWithLoss):
        torch.manual_seed(7)
        module = cls(*layout, head_bias=True)
        if again:
            module.reset_parameters()
        drawn.append(module.state_dict())
    for name, tensor in drawn[0].items():
        assert torch.equal(drawn[1][name], tensor), name


@pytest.mark.parametrize("cls", [nn.AdaptiveLogSoftmaxWithLoss, AdaptiveLogSoftmaxWithLoss])
def test_an_empty_projection_is_allowed_and_warned_of_as_in_torch(cls):
    with pytest.warns(UserWarning, match="Initializing zero-element tensors is a no-op"):
        layer = cls(8, 40, (4, 12, 25), 6.0)
    assert [pair[1].weight.shape[1] for pair in layer.tail] == [1, 0, 0]


MISMATCHES = {
    "another batch size": ((4, 16), torch.tensor([0, 5, 10])),
    "3D input for a 1D target": ((2, 3, 16), torch.tensor([0, 5])),
    "1D input for a 1D target": ((16,), torch.zeros(16, dtype=torch.long)),
    "2D input for a scalar target": ((2, 16), torch.tensor(5)),
    "a label past the last": ((4, 16), torch.tensor([0, 5, 10, 20])),
    "a negative label": ((3, 16), torch.tensor([-1, 5, 10])),
    "labels out at both ends": ((3, 16), torch.tensor([-7, 5, 33])),
}


@pytest.mark.parametrize(("size", "target"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_a_wrong_call_raises_torchs_error_in_torchs_words(backend, size, target):
    raised = []
    for module in (
        nn.AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10, 15], 2.0),
        AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10, 15], 2.0, backend=backend),
    ):
        with pytest.raises(RuntimeError) as caught:
            module(torch.randn(size), target)
        raised.append((type(caught.value), str(caught.value)))
    assert raised[0] == raised[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "fast"}, "unknown backend 'fast'; choose one of: auto, "),
        ({"reduction": "avg"}, "unknown reduction 'avg'; choose one of: mean, sum, none"),
        (
            {"absent_grads": "None"},
            "unknown absent_grads 'None'; did you mean none\\? choose one of: none, zeros",
        ),
        ({"ignore_index": "x"}, "ignore_index should be an integer or None, got 'x'"),
        ({"ignore_index": 0.5}, "ignore_index should be an integer or None, got 0.5"),
    ],
)
def test_an_unknown_option_is_refused_with_what_there_is(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        AdaptiveLogSoftmaxWithLoss(16, 20, [5], **options)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([3, -100]), r"values in range \[-100, 3\] were found\. .*pass ignore_index=-100"),
        (np.array([3, 1]), "target_ should be a Tensor, but found ndarray; torch.from_numpy makes one"),
    ],
)
def test_a_target_of_another_library_or_convention_is_told_what_to_do(target, message):
    with pytest.raises((RuntimeError, TypeError), match=message):
        zipfmax.AdaptiveLogSoftmaxWithLoss(4, 20, [5])(torch.randn(2, 4), target)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_partition_gives_torchs_loss_and_gradients(data):
    n_classes = data.draw(st.integers(2, 40))
    cutoffs = sorted(data.draw(st.sets(st.integers(1, n_classes - 1), min_size=1, max_size=5)))
    arguments = (
        data.draw(st.integers(1, 20)),
        n_classes,
        cutoffs,
        data.draw(st.sampled_from([1, 1.5, 2, 4, 7])),
    )
    torch.manual_seed(data.draw(st.integers(0, 99)))
    theirs = nn.AdaptiveLogSoftmaxWithLoss(*arguments, dtype=torch.float64)
    ours = zipfmax.AdaptiveLogSoftmaxWithLoss(*arguments, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    n = data.draw(st.integers(1, 9))
    hidden = torch.randn(n, arguments[0], dtype=torch.float64)
    target = torch.tensor(data.draw(st.lists(st.integers(0, n_classes - 1), min_size=n, max_size=n)))
    torch.testing.assert_close(ours(hidden, target).loss, theirs(hidden, target).loss, rtol=1e-12, atol=1e-12)
    found = gradients(ours, hidden, target)
    for name, expected in gradients(theirs, hidden, target).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-11, atol=1e-12, msg=name)
