"""Class weights, label smoothing and z-loss: the definition in float64, on every backend, with gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from zipfmax import AdaptiveLogSoftmaxWithLoss, LabelRanks
from zipfmax.backends import tiled

SHAPE = (13, 101, (7, 30, 99), 1.7)
WEIGHT = torch.linspace(0.1, 3, 101)
TERMS = {
    "smoothing": {"label_smoothing": 0.1},
    "weight": {"weight": WEIGHT},
    "z-loss": {"z_loss": 0.01},
    "smoothing and weight": {"label_smoothing": 0.3, "weight": WEIGHT},
    "all": {"label_smoothing": 0.2, "weight": WEIGHT, "z_loss": 0.05},
    "all smoothing": {"label_smoothing": 1.0},
}


def make(**options):
    torch.manual_seed(0)
    options = {
        "dtype": torch.float64,
        "head_bias": True,
        "tail_bias": True,
        "projection_bias": True,
    } | options
    return AdaptiveLogSoftmaxWithLoss(*SHAPE, **options)


def batch(n=40):
    torch.manual_seed(1)
    hidden, target = torch.randn(n, 13, dtype=torch.float64), torch.randint(0, 101, (n,))
    target[:6] = torch.tensor([0, 6, 7, 29, 98, 99])
    return hidden.requires_grad_(), target


def defined(
    layer, hidden, target, reduction, ignore_index=-100, label_smoothing=0.0, weight=None, z_loss=0.0
):
    """F.cross_entropy of the full distribution (log-probabilities are their own logits), plus the z-loss."""
    weight = None if weight is None else weight.double()
    log_prob = layer.log_prob(hidden)
    rows = F.cross_entropy(
        log_prob, target, weight, label_smoothing=label_smoothing, reduction="none", ignore_index=ignore_index
    )
    counted = target != ignore_index
    squares = layer.head(hidden).logsumexp(1).square()
    for i, (low, high) in enumerate([(7, 30), (30, 99), (99, 101)]):
        member = (target >= low) & (target < high)
        squares = squares + member * layer.tail[i](hidden).logsumexp(1).square()
    shares = counted.double() if weight is None else counted * weight[target.clamp(min=0)]
    rows = rows + z_loss * squares * shares
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / shares.sum()}[reduction]


def gradients(loss, hidden, layer):
    seed = torch.linspace(0.5, 1.5, loss.numel(), dtype=torch.float64).reshape(loss.shape)
    found = torch.autograd.grad(loss, [hidden, *layer.parameters()], seed, allow_unused=True)
    return [torch.zeros(()) if gradient is None else gradient for gradient in found]


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS.keys())
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("backend", ["eager", "tiled"])
def test_loss_and_gradients_are_the_definitions(terms, reduction, backend):
    layer = make(backend=backend, reduction=reduction, **terms)
    plain = make(backend="eager")
    hidden, target = batch()
    output, loss = layer(hidden, target)
    expected = defined(plain, hidden, target, reduction, **terms)
    assert_close(loss, expected, rtol=1e-11, atol=1e-12)
    assert_close(output, plain(hidden, target).output)
    for mine, other in zip(gradients(loss, hidden, layer), gradients(expected, hidden, plain), strict=True):
        assert_close(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS.keys())
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("backend", ["eager", "tiled"])
def test_ignored_rows_count_as_in_cross_entropy_and_may_hold_nan(terms, reduction, backend):
    layer = make(backend=backend, reduction=reduction, ignore_index=-100, **terms)
    plain = make(backend="eager")
    hidden, target = batch()
    target[::3] = -100
    expected = defined(plain, hidden, target, reduction, **terms)
    expected_gradients = gradients(expected, hidden, plain)
    with torch.no_grad():
        hidden[::3] = torch.nan
    output, loss = layer(hidden, target)
    assert_close(loss, expected)
    assert (output[::3] == 0).all()
    for mine, other in zip(gradients(loss, hidden, layer), expected_gradients, strict=True):
        assert_close(mine, other)


def test_weights_of_targets_in_the_shortlist_are_cross_entropys_of_the_head():
    """Not by our own log_prob: a batch of shortlist words is a full softmax over the head's slots."""
    layer = make(weight=WEIGHT, backend="tiled")
    hidden, _ = batch()
    target = torch.arange(40) % 7
    logits = layer.head(hidden)
    weight = torch.cat([WEIGHT[:7], torch.ones(3)]).double()
    assert_close(layer(hidden, target).loss, F.cross_entropy(logits, target, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["eager", "tiled"])
def test_narrow_dtypes_give_the_definitions_within_their_rounding(dtype, backend):
    terms = TERMS["all"]
    layer, exact = make(backend=backend, **terms).to(dtype), make(backend="eager", **terms).to(dtype).double()
    hidden, target = batch()
    hidden = hidden.detach().to(dtype)
    wide = hidden.double().requires_grad_()
    hidden.requires_grad_()
    found, expected = layer(hidden, target), exact(wide, target)
    rtol = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}[dtype]
    assert found.loss.dtype == dtype
    assert_close(found.loss.double(), expected.loss, rtol=rtol, atol=rtol)
    found.loss.backward()
    expected.loss.backward()
    for mine, other in zip((hidden, *layer.parameters()), (wide, *exact.parameters()), strict=True):
        scale = other.grad.abs().max().item()
        assert_close(mine.grad.double(), other.grad, rtol=4 * rtol, atol=4 * rtol * scale)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS.keys())
def test_ranks_take_weights_by_the_users_labels(terms):
    ranks = LabelRanks(torch.randperm(101, generator=torch.Generator().manual_seed(3)))
    layer = make(label_ranks=ranks, backend="tiled", **terms)
    hidden, target = batch()
    by_rank = {k: v[ranks.label_of_rank] if k == "weight" else v for k, v in terms.items()}
    expected = make(backend="tiled", **by_rank)(hidden, ranks.to_ranks(target)).loss
    assert_close(layer(hidden, target).loss, expected)


def test_smoothing_on_tiled_holds_no_full_distribution(monkeypatch):
    """The largest tensor that any operation makes stays below rows x classes."""
    monkeypatch.setattr(tiled, "workspace_bytes", 2**14)
    layer = AdaptiveLogSoftmaxWithLoss(8, 4000, [100, 1000], label_smoothing=0.1, backend="tiled")
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple | list) else [made]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return made

    hidden = torch.randn(200, 8, requires_grad=True)
    with Watch():
        layer(hidden, torch.randint(0, 4000, (200,))).loss.backward()
    assert hidden.grad.abs().sum() > 0
    assert largest < 200 * 3000 / 8


@pytest.mark.parametrize(
    "terms", [TERMS["z-loss"], TERMS["weight"], TERMS["all"]], ids=["z-loss", "weight", "all"]
)
def test_second_derivatives_transforms_and_compiled_graphs_have_the_terms(terms):
    torch.compiler.reset()
    hidden, target = batch(12)
    results = []
    for backend in ("eager", "tiled"):
        layer = make(backend=backend, ignore_index=7, **terms)
        (first,) = torch.autograd.grad(layer(hidden, target).loss, hidden, create_graph=True)
        results.append(
            torch.autograd.grad(first.square().sum(), [hidden, layer.head.weight, layer.tail[1][1].weight])
        )
    assert_close(*results)
    layer = make(ignore_index=7, **terms)
    x = hidden.detach()
    assert_close(torch.func.grad(lambda x: layer(x, target).loss)(x), first.detach())
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    inputs = [hidden, layer.head.weight, layer.tail[1][1].weight]
    found, expected = (torch.autograd.grad(call(hidden, target).loss, inputs) for call in (compiled, layer))
    assert_close(found, expected)
    with torch.no_grad():
        recorded = make_fx(lambda x, y: tuple(layer(x, y)))(x * 0, target * 0)
        assert_close(recorded(x, target), tuple(layer(x, target)))


def test_called_submodules_have_the_terms_and_are_called_once():
    layer, plain = make(backend="eager", **TERMS["all"]), make(backend="eager")
    calls = []
    for module in (layer.head, *layer.tail):
        module.register_forward_hook(lambda *_: calls.append(1))
    hidden, target = batch()
    assert_close(layer(hidden, target).loss, defined(plain, hidden, target, "mean", **TERMS["all"]))
    assert len(calls) == 4


def test_a_target_out_of_range_raises_torchs_text():
    hidden, target = batch()
    target[3] = 101
    for terms in TERMS.values():
        with pytest.raises(RuntimeError, match=r"Target values should be in \[0, 100\], but values in range"):
            make(**terms)(hidden, target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.1}, r"label_smoothing must be between 0.0 and 1.0. Got: 1.1"),
        ({"z_loss": -1.0}, "z_loss should be a finite number that is not negative, got -1.0"),
        (
            {"weight": torch.ones(100)},
            r"weight tensor should be defined either for all 101 classes .* \[100\]",
        ),
    ],
)
def test_terms_that_no_loss_can_have_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_weight_travels_with_the_layer_and_torchs_checkpoints_still_load():
    layer = AdaptiveLogSoftmaxWithLoss(13, 101, [7, 30], weight=WEIGHT)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(13, 101, [7, 30])
    layer.load_state_dict(theirs.state_dict())
    assert torch.equal(layer.class_weight, WEIGHT)
    other = AdaptiveLogSoftmaxWithLoss(13, 101, [7, 30], weight=torch.ones(101))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.class_weight, WEIGHT)
    assert layer.double().class_weight.dtype == torch.float64
    assert torch.equal(other.to_torch().head.weight, theirs.head.weight)
