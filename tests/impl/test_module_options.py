"""What the layer takes that torch.nn's does not: shapes, ignored rows, reductions, biases."""

import re

import pytest
import torch
import torch.nn.functional as F

from zipfmax import AdaptiveLogSoftmaxWithLoss

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


def by_nll_loss(layer, hidden, target, **options):
    """The same loss and gradients from all log-probabilities and torch's own reduction."""
    hidden = hidden.clone().requires_grad_()
    log_prob = layer.log_prob(hidden.reshape(-1, layer.in_features))
    loss = F.nll_loss(log_prob, target.reshape(-1), **options)
    return hidden, loss


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [None, -100, 0, 19])
@pytest.mark.parametrize("leading", [(37,), (), (3, 4), (2, 3, 5), (1, 1, 1, 4)])
def test_reductions_and_ignored_rows_are_nll_losss(backend, reduction, ignore_index, leading):
    torch.manual_seed(3)
    layer = AdaptiveLogSoftmaxWithLoss(
        16,
        20,
        [5, 10],
        2.0,
        dtype=torch.float64,
        reduction=reduction,
        ignore_index=ignore_index,
        backend=backend,
    )
    hidden = torch.randn(*leading, 16, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 20, leading)
    if ignore_index is not None:
        target = torch.where(torch.rand(leading) < 0.4, ignore_index, target)
        target.reshape(-1)[0] = 7  # at least one row counts
    output, loss = layer(hidden, target)
    upstream = torch.randn_like(loss)
    loss.backward(upstream)
    found = [hidden.grad, *(p.grad for p in layer.parameters())]

    layer.zero_grad()
    options = {"reduction": reduction} | ({} if ignore_index is None else {"ignore_index": ignore_index})
    again, expected_loss = by_nll_loss(layer, hidden.detach(), target, **options)
    torch.testing.assert_close(loss, expected_loss.reshape(loss.shape))
    expected_loss.backward(upstream.reshape(expected_loss.shape))
    for mine, expected in zip(found, [again.grad, *(p.grad for p in layer.parameters())], strict=True):
        torch.testing.assert_close(torch.zeros_like(expected) if mine is None else mine, expected)

    counted = target != (-1 if ignore_index is None else ignore_index)
    assert output.shape == target.shape
    assert loss.shape == (target.shape if reduction == "none" else ())
    assert (output[~counted] == 0).all()
    assert (output[counted] < 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_ignored_row_reaches_no_gradient(backend, reduction, poison):
    layer = AdaptiveLogSoftmaxWithLoss(
        16, 20, [5, 10], 2.0, reduction=reduction, ignore_index=-1, backend=backend
    )
    hidden = torch.randn(6, 16)
    target = torch.tensor([1, -1, 6, -1, 12, 3])
    hidden[1], hidden[3, 4] = poison, poison
    hidden.requires_grad_()
    output, loss = layer(hidden, target)
    loss.sum().backward()
    assert torch.isfinite(output).all()
    assert torch.isfinite(loss).all()
    assert (hidden.grad[[1, 3]] == 0).all()
    for gradient in (hidden.grad, *(p.grad for p in layer.parameters())):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("rows", ["none at all", "all ignored"])
@pytest.mark.parametrize("leading", [(0,), (2, 0)])
def test_no_counted_row_gives_cross_entropys_results(backend, rows, leading):
    hidden = torch.randn(*leading, 16) if rows == "none at all" else torch.randn(3, 16)
    target = torch.full(hidden.shape[:-1], -1)
    flat = hidden.reshape(-1, 16)
    for reduction in ("mean", "sum", "none"):
        layer = AdaptiveLogSoftmaxWithLoss(
            16, 20, [5, 10], 2.0, ignore_index=-1, reduction=reduction, backend=backend
        )
        leaf = hidden.clone().requires_grad_()
        output, loss = layer(leaf, target)
        theirs = F.cross_entropy(flat, target.reshape(-1), ignore_index=-1, reduction=reduction)
        torch.testing.assert_close(loss, theirs.reshape(loss.shape), equal_nan=True)
        assert output.shape == target.shape
        assert (output == 0).all()
        loss.sum().backward()
        for gradient in (leaf.grad, *(p.grad for p in layer.parameters())):
            assert gradient is None or (gradient == 0).all()


def test_no_row_without_ignore_index_gives_torchs_nan(backend):
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10], backend=backend)
    output, loss = layer(torch.randn(0, 16), torch.zeros(0, dtype=torch.long))
    assert output.shape == (0,)
    assert loss.isnan()
    assert layer.log_prob(torch.randn(0, 16)).shape == (0, 20)
    assert layer.predict(torch.randn(0, 16)).shape == (0,)


@pytest.mark.parametrize("leading", [(), (3, 4), (2, 1, 5)])
def test_any_leading_shape_is_the_flat_call(backend, leading):
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10], 2.0, backend=backend)
    hidden, target = torch.randn(*leading, 16), torch.randint(0, 20, leading)
    flat = hidden.reshape(-1, 16)
    expected = layer(flat, target.reshape(-1))
    found = layer(hidden, target)
    torch.testing.assert_close(found.output, expected.output.reshape(leading))
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(layer.log_prob(hidden), layer.log_prob(flat).reshape(*leading, 20))
    assert torch.equal(layer.predict(hidden), layer.predict(flat).reshape(leading))


def test_a_transposed_input_is_its_contiguous_copy(backend):
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10], 2.0, backend=backend)
    hidden, target = torch.randn(4, 3, 16).transpose(0, 1), torch.randint(0, 20, (4, 3)).T
    found, expected = layer(hidden, target), layer(hidden.contiguous(), target.contiguous())
    torch.testing.assert_close(found.output, expected.output)
    torch.testing.assert_close(found.loss, expected.loss)


def test_int32_targets_give_the_same_loss(backend):
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10], 2.0, backend=backend)
    hidden, target = torch.randn(9, 16), torch.randint(0, 20, (9,))
    assert torch.equal(layer(hidden, target.int()).output, layer(hidden, target).output)


@pytest.mark.parametrize(
    ("hidden", "target", "message"),
    [
        (
            torch.randn(4, 3, 16),
            torch.zeros(4, 2, dtype=torch.long),
            "same size in the batch dimension. Found",
        ),
        (torch.randn(4, 3, 16), torch.zeros(3, 3, dtype=torch.long), "same size in the batch dimension.$"),
        (torch.randn(4, 15), torch.zeros(4, dtype=torch.long), "last dimension is in_features=16, but found"),
        (torch.randn(4, 16), torch.zeros(4), "targets should be int64 or int32, but found torch.float32"),
        (
            torch.randn(4, 16),
            torch.zeros(4, dtype=torch.int8),
            "should be int64 or int32, but found torch.int8",
        ),
        (
            torch.randn(4, 16).double(),
            torch.zeros(4, dtype=torch.long),
            "inputs are torch.float64, but the layer",
        ),
        (
            torch.randn(4, 16),
            torch.zeros(4, dtype=torch.long, device="meta"),
            "targets are on meta, but inputs",
        ),
        (
            torch.randn(4, 16, device="meta"),
            torch.zeros(4, dtype=torch.long, device="meta"),
            "inputs are on meta",
        ),
        (torch.tensor(1.0), torch.tensor(1), "0D target tensor expects 1D input tensors"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(hidden, target, message):
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10])
    with pytest.raises(RuntimeError, match=message):
        layer(hidden, target)


@pytest.mark.parametrize("head_bias", [False, True])
@pytest.mark.parametrize("tail_bias", [False, True])
@pytest.mark.parametrize("projection_bias", [False, True])
def test_biases_get_the_gradients_of_the_papers_formula(
    layout, backend, head_bias, tail_bias, projection_bias
):
    torch.manual_seed(5)
    layer = AdaptiveLogSoftmaxWithLoss(
        *layout,
        head_bias,
        dtype=torch.float64,
        tail_bias=tail_bias,
        projection_bias=projection_bias,
        backend=backend,
    )
    assert (layer.head.bias is not None) == head_bias
    assert all(pair[0].bias is None for pair in layer.tail) != projection_bias
    assert all(pair[1].bias is None for pair in layer.tail) != tail_bias
    hidden = torch.randn(3 * layout[1], layout[0], dtype=torch.float64)
    target = torch.arange(layout[1]).repeat(3)
    layer(hidden, target).loss.backward()
    found = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    by_nll_loss(layer, hidden, target)[1].backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


@pytest.mark.parametrize("n", [0, 4])
def test_absent_clusters_get_zeros_when_asked(backend, n):
    hidden, target = torch.randn(n, 16), torch.tensor([0, 3, 12, 14])[:n]
    layers = [
        AdaptiveLogSoftmaxWithLoss(
            16,
            20,
            [5, 10, 15],
            2.0,
            True,
            tail_bias=True,
            reduction="sum",
            absent_grads=absent,
            backend=backend,
        )
        for absent in ("none", "zeros")
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer in layers:
        layer(hidden, target).loss.backward()
    for (name, plain), filled in zip(layers[0].named_parameters(), layers[1].parameters(), strict=True):
        assert filled.grad is not None, name
        expected = torch.zeros_like(plain) if plain.grad is None else plain.grad
        torch.testing.assert_close(filled.grad, expected, msg=name)


def test_projection_sizes_shape_the_projections():
    layer = AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10], projection_sizes=(3, 9))
    assert [tuple(pair[0].weight.shape) for pair in layer.tail] == [(3, 16), (9, 16)]
    assert [tuple(pair[1].weight.shape) for pair in layer.tail] == [(5, 3), (10, 9)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_features": "16"}, "in_features should be an integer, got '16'"),
        ({"n_classes": 100.0}, "n_classes should be an integer, got 100.0"),
        ({"cutoffs": 10}, "cutoffs should be a sequence of integers, got 10"),
        ({"div_value": "4"}, "div_value should be a number, got '4'"),
        ({"projection_sizes": 4}, "projection_sizes should be a sequence of integers, got 4"),
        ({"label_smoothing": "a"}, "label_smoothing should be a number, got 'a'"),
        ({"z_loss": "a"}, "z_loss should be a number, got 'a'"),
        ({"weight": [1.0] * 100}, "weight should be a Tensor, but found list"),
        ({"label_ranks": [1, 2, 3]}, "label_ranks should be LabelRanks, got list"),
    ],
)
def test_an_argument_of_another_type_is_named(change, message):
    arguments = {"in_features": 16, "n_classes": 100, "cutoffs": [10, 30]}
    with pytest.raises(TypeError, match=re.escape(message)):
        AdaptiveLogSoftmaxWithLoss(**{**arguments, **change})


@pytest.mark.parametrize("method", ["log_prob", "predict", "sample"])
def test_an_input_that_is_no_tensor_is_named(method):
    layer = AdaptiveLogSoftmaxWithLoss(4, 10, [3])
    with pytest.raises(TypeError, match="input should be a Tensor, but found ndarray"):
        getattr(layer, method)(torch.ones(2, 4).numpy())


def test_a_number_of_classes_or_samples_that_is_none_is_named():
    layer, hidden = AdaptiveLogSoftmaxWithLoss(4, 10, [3]), torch.ones(2, 4)
    with pytest.raises(TypeError, match=r"k should be an integer, got 1\.5"):
        layer.topk(hidden, 1.5)
    with pytest.raises(TypeError, match="n should be an integer, got 'a'"):
        layer.sample(hidden, "a")
