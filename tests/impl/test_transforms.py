"""Function transforms and forward-mode differentiation: torch.nn's numbers, or those of a loop."""

import pytest
import torch
from torch import func, nn
from torch.autograd import forward_ad
from torch.testing import assert_close

from zipfmax import AdaptiveLogSoftmaxWithLoss, LabelRanks

SHAPE = (6, 20, [5, 12], 2.0)


def make(**options):
    torch.manual_seed(0)
    return AdaptiveLogSoftmaxWithLoss(*SHAPE, dtype=torch.float64, **options)


def torchs():
    torch.manual_seed(0)
    return nn.AdaptiveLogSoftmaxWithLoss(*SHAPE, dtype=torch.float64)


def batch(n=9):
    torch.manual_seed(1)
    return torch.randn(n, 6, dtype=torch.float64), torch.randint(0, 20, (n,))


def loss_of(layer, target):
    return lambda hidden: layer(hidden, target).loss


def of_weights(layer, hidden, target):
    return lambda weights: func.functional_call(layer, weights, (hidden, target)).loss


TRANSFORMS = {
    "grad": lambda f, x, v: func.grad(f)(x),
    "grad of grad": lambda f, x, v: func.grad(lambda x: (func.grad(f)(x) * v).sum())(x),
    "vjp": lambda f, x, v: func.vjp(f, x)[1](torch.tensor(1.5, dtype=torch.float64))[0],
    "jvp": lambda f, x, v: func.jvp(f, (x,), (v,)),
    "jacrev": lambda f, x, v: func.jacrev(f)(x),
    "jacfwd": lambda f, x, v: func.jacfwd(f)(x),
    "hessian": lambda f, x, v: func.hessian(f)(x),
    "linearize": lambda f, x, v: func.linearize(f, x)[1](v),
    "autograd.functional.hvp": lambda f, x, v: torch.autograd.functional.hvp(f, x, v),
    "vectorised hessian": lambda f, x, v: torch.autograd.functional.hessian(f, x, vectorize=True),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_transform_of_the_loss_gives_torchs_numbers(transform, backend):
    hidden, target = batch()
    direction = torch.randn_like(hidden)
    found = transform(loss_of(make(backend=backend), target), hidden, direction)
    assert_close(found, transform(loss_of(torchs(), target), hidden, direction))


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_gradients_by_functional_weights_are_torchs(backend):
    hidden, target = batch()
    found, expected = (
        func.grad(of_weights(layer, hidden, target))(dict(layer.named_parameters()))
        for layer in (make(backend=backend), torchs())
    )
    assert_close(found, expected)


@pytest.mark.parametrize("method", ["log_prob", "predict", "topk"])
def test_vmap_of_a_method_is_the_loop(method):
    layer = make()
    hidden = torch.randn(3, 4, 6, dtype=torch.float64)
    call = {
        "log_prob": layer.log_prob,
        "predict": layer.predict,
        "topk": lambda x: tuple(layer.topk(x, 8)),
    }[method]
    found = func.vmap(call)(hidden)
    expected = [call(x) for x in hidden]
    if method == "topk":
        expected = [torch.stack(parts) for parts in zip(*expected, strict=True)]
        assert_close(list(found), expected)
    else:
        assert_close(found, torch.stack(expected))


def test_vmap_of_sample_draws_from_each_rows_distribution():
    layer = make()
    hidden = torch.randn(2, 1, 6, dtype=torch.float64)
    drawn = func.vmap(lambda x: layer.sample(x, 5000), randomness="different")(hidden)
    for row in range(2):
        share = torch.bincount(drawn[row, 0], minlength=20) / 5000
        assert (share - layer.log_prob(hidden[row, 0]).exp()).abs().max() < 0.04


@pytest.mark.parametrize(
    "options",
    [{}, {"ignore_index": 7, "reduction": "sum"}, {"label_ranks": LabelRanks(list(range(19, -1, -1)))}],
    ids=["plain", "ignore_index", "ranks"],
)
def test_gradients_a_sample_are_those_of_a_loop(options):
    """vmap(grad), with the targets batched: torch.nn's layer cannot."""
    layer = make(**options)
    hidden, target = batch()
    target[2] = 7
    weights = dict(layer.named_parameters())

    def loss(weights, x, y):
        return func.functional_call(layer, weights, (x, y)).loss

    found = func.vmap(func.grad(loss), in_dims=(None, 0, 0))(weights, hidden, target)
    for row in range(len(hidden)):
        if options.get("ignore_index") == int(target[row]):
            assert all((gradient[row] == 0).all() for gradient in found.values())
            continue
        layer.zero_grad()
        layer(hidden[row], target[row]).loss.backward()
        for name, parameter in layer.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert_close(found[name][row], expected)


def test_an_ensemble_of_weights_is_the_loop():
    layers = [make() for _ in range(3)]
    for i, layer in enumerate(layers):
        nn.init.normal_(layer.head.weight, std=0.1 * (i + 1))
    weights, _ = func.stack_module_state(layers)
    hidden, target = batch()
    for in_dims, x, y in [
        ((0, None, None), hidden, target),
        ((0, 0, 0), hidden.expand(3, 9, 6), target.expand(3, 9)),
    ]:
        found = func.vmap(lambda w, x, y: tuple(func.functional_call(layers[0], w, (x, y))), in_dims=in_dims)(
            weights, x, y
        )
        for part, i in ((0, "output"), (1, "loss")):
            assert_close(found[part], torch.stack([getattr(layer(hidden, target), i) for layer in layers]))


def test_a_batched_target_out_of_range_gives_nan_where_it_cannot_raise():
    hidden, target = batch(3)
    target[1] = 20
    layer = make()
    output = func.vmap(lambda x, y: layer(x, y).output)(hidden, target)
    assert output.isnan().tolist() == [False, True, False]


def test_forward_mode_gives_torchs_tangents():
    hidden, target = batch()
    direction = torch.randn_like(hidden)
    found = []
    for layer in (make(), torchs()):
        with forward_ad.dual_level():
            output, loss = layer(forward_ad.make_dual(hidden, direction), target)
            tangents = [forward_ad.unpack_dual(tensor).tangent for tensor in (output, loss)]
            tangents.append(
                forward_ad.unpack_dual(layer.log_prob(forward_ad.make_dual(hidden, direction))).tangent
            )
        found.append(tangents)
    assert_close(*found)


@pytest.mark.parametrize("backend", ["auto", "tiled", "eager"])
@pytest.mark.parametrize("result", ["output", "loss"])
def test_batched_gradients_after_a_plain_forward_are_those_of_a_loop(backend, result):
    layer = make(backend=backend)
    hidden, target = batch()
    hidden.requires_grad_()
    inputs = [hidden, *layer.parameters()]
    value = getattr(layer(hidden, target), result)
    seeds = torch.randn(4, *value.shape, dtype=torch.float64)
    found = torch.autograd.grad(value, inputs, seeds, is_grads_batched=True, retain_graph=True)
    for row, seed in enumerate(seeds):
        expected = torch.autograd.grad(value, inputs, seed, retain_graph=True)
        for mine, other in zip(found, expected, strict=True):
            assert_close(mine[row], other)


def test_a_vectorised_jacobian_is_torchs():
    hidden, target = batch()
    found, expected = (
        torch.autograd.functional.jacobian(
            lambda x, layer=layer: layer(x, target).output, hidden, vectorize=True
        )
        for layer in (make(backend="tiled"), torchs())
    )
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (lambda layer, x, y: func.grad(loss_of(layer, y))(x), "a torch.func transform"),
        (lambda layer, x, y: func.vmap(layer.log_prob)(x.unsqueeze(0)), "a torch.func transform"),
        (lambda layer, x, y: torch.jit.trace_module(layer, {"log_prob": x}), "torch.jit.trace"),
    ],
    ids=["grad", "vmap", "jit.trace"],
)
def test_a_named_backend_that_cannot_says_so_and_names_eager(transform, name):
    hidden, target = batch()
    with pytest.raises(
        RuntimeError, match=rf"'tiled' cannot serve this call: it is under {name}; backend='eager'"
    ):
        transform(make(backend="tiled"), hidden, target)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="under forward-mode automatic diff"):
        make(backend="tiled")(forward_ad.make_dual(hidden, hidden), target)


def test_a_transform_of_changed_submodules_is_torchs():
    found = []
    hidden, target = batch()
    for layer in (make(backend="eager"), torchs()):
        layer.head.register_forward_hook(lambda module, x, y: y * 0.5)
        found.append(func.jacfwd(loss_of(layer, target))(hidden))
    assert_close(*found)


@pytest.mark.parametrize("result", ["output", "loss"])
def test_gradients_and_their_gradients_are_those_of_differences(result):
    layer = make()
    hidden, target = batch(4)
    hidden.requires_grad_()

    def function(hidden, *weights):
        names = [name for name, _ in layer.named_parameters()]
        return getattr(
            func.functional_call(layer, dict(zip(names, weights, strict=True)), (hidden, target)), result
        )

    arguments = (hidden, *layer.parameters())
    assert torch.autograd.gradcheck(function, arguments, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_absent_grads_zeros_stands_in_no_transforms_way(transform):
    hidden, target = batch()
    layer = make(absent_grads="zeros")
    found = transform(loss_of(layer, target), hidden, torch.ones_like(hidden))
    assert_close(found, transform(loss_of(torchs(), target), hidden, torch.ones_like(hidden)))
    loss = layer(hidden, target * 0).output
    inputs = list(layer.parameters())
    found = torch.autograd.grad(loss, inputs, torch.eye(9, dtype=torch.float64)[:4], is_grads_batched=True)
    assert [part.shape[0] for part in found] == [4] * 5
    assert all((part == 0).all() for part in found[1:])
