"""The tiled backend against the eager one in float64: values and gradients, tile edges, bounded memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.backends import eager, tiled, tiled_products
from zipfmax.backends.tiled_tiles import Tiles
from zipfmax.clusters import ClusterLayout
from zipfmax.weights import TailWeights, Weights
from zipfmax_bench.memory import peak_temporary_bytes

# Relative to the largest value: what a few roundings of the dtype cost.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}

LAYOUT = ClusterLayout(32, 200, (11, 40, 90), 4.0)
UNIFORM_TAILS = ClusterLayout(8, 40, (4, 12, 25), 6.0)  # projection sizes 1, 0, 0
TAIL_OF_ONE = ClusterLayout(9, 12, (1, 11), 1.0)


def weights_of(layout, dtype=torch.float64, biases=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).mul_(0.4).to(dtype)

    def bias(size):
        return normal(size) if biases else None

    tails = tuple(
        TailWeights(
            normal(t.projection_size, layout.in_features),
            normal(t.size, t.projection_size),
            bias(t.projection_size),
            bias(t.size),
        )
        for t in layout
    )
    return Weights(normal(layout.head_size, layout.in_features), bias(layout.head_size), tails)


def batch_of(layout, n, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, layout.in_features, generator=generator, dtype=torch.float64).to(dtype)
    return hidden, torch.randint(layout.n_classes, (n,), generator=generator)


def run(backend, layout, weights, hidden, target, use, dtype, **options):
    """(output, loss, gradients of hidden and of every weight) of a scalar made of what `use` names."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (hidden, *weights.tensors())]
    held = weights.with_tensors(leaves[1:])
    output, loss = backend.nll(layout, held, leaves[0], target, **options)
    seed = torch.linspace(-1, 2, len(target), dtype=dtype)
    scalar = 0
    if "output" in use:
        scalar = scalar + (output * seed).sum()
    if "loss" in use:
        scalar = scalar + (3 * loss if loss.dim() == 0 else (loss * seed.flip(0)).sum())
    return [output, loss, *torch.autograd.grad(scalar, leaves, allow_unused=True)]


def assert_agrees(layout, weights, hidden, target, use="loss", **options):
    dtype = hidden.dtype
    expected = run(eager, layout, weights, hidden, target, use, torch.float64, **options)
    actual = run(tiled, layout, weights, hidden, target, use, dtype, **options)
    for right, ours in zip(expected, actual, strict=True):
        if right is None or ours is None:
            assert right is None
            assert ours is None
            continue
        assert ours.dtype == dtype
        assert ours.shape == right.shape
        scale = float(right.detach().abs().max()) if right.numel() else 0.0
        torch.testing.assert_close(ours.double(), right, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1e-3))


@pytest.fixture(params=["whole rows", "tiled classes", "one class a tile"])
def n_rows(request, monkeypatch):
    """Rows of a batch, and a workspace that holds many of them, tiles of their classes, or next to nothing."""
    n_rows, n_bytes = {
        "whole rows": (67, 40_000),
        "tiled classes": (37, 900),
        "one class a tile": (11, 8),
    }[request.param]
    monkeypatch.setattr(tiled, "workspace_bytes", n_bytes)
    return n_rows


@pytest.fixture(params=[40_000, 900, 64], ids=["whole rows", "tiled classes", "a few logits a tile"])
def small_workspace(request, monkeypatch):
    """Such workspaces for a batch of the test's own."""
    monkeypatch.setattr(tiled, "workspace_bytes", request.param)


LAYOUTS = pytest.mark.parametrize(
    "layout", [LAYOUT, UNIFORM_TAILS, TAIL_OF_ONE], ids=["plain", "uniform", "of one"]
)


@LAYOUTS
@pytest.mark.parametrize("use", ["loss", "output", "output and loss"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_values_and_gradients_equal_eagers(layout, use, reduction, n_rows):
    hidden, target = batch_of(layout, n_rows)
    assert_agrees(layout, weights_of(layout), hidden, target, use, reduction=reduction)


@pytest.fixture(params=["in 16 bits", "in float32"])
def products_of_16_bits(request, monkeypatch):
    """Whichever is the faster on this processor."""
    monkeypatch.setattr(tiled_products, "_float32_is_faster", lambda dtype: request.param == "in float32")


NARROWER = [torch.float32, torch.bfloat16, torch.float16]


@LAYOUTS
@pytest.mark.parametrize("dtype", NARROWER, ids=str)
@pytest.mark.parametrize("use", ["loss", "output"])
def test_narrower_dtypes_are_within_their_roundings(layout, dtype, use, n_rows, products_of_16_bits):
    hidden, target = batch_of(layout, n_rows, dtype)
    assert_agrees(layout, weights_of(layout, dtype), hidden, target, use)


@pytest.mark.parametrize("dtype", NARROWER, ids=str)
@pytest.mark.parametrize("part_bytes", [4096, 2**23])
@pytest.mark.parametrize("shortlist", [256, 300])
def test_rows_that_are_padded_and_summed_in_parts(
    dtype, part_bytes, shortlist, products_of_16_bits, monkeypatch
):
    monkeypatch.setattr(tiled_products, "_WIDE_BYTES", part_bytes)
    monkeypatch.setattr(tiled, "workspace_bytes", 40 * 1200 * 4)
    layout = ClusterLayout(24, 1300, (shortlist, 301), 3.0)
    hidden, target = batch_of(layout, 90, dtype)
    target[:3] = torch.tensor([0, shortlist - 1, 1299])
    weights = weights_of(layout, dtype).map(lambda tensor: tensor * 0.3)
    assert_agrees(layout, weights, hidden, target, "output and loss")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_sure_rows_loss_is_as_exact_as_its_logits(dtype, products_of_16_bits):
    """1 - p is 300 e^-14, which a sum in 16 bits that holds the target itself would lose whole."""
    layout = ClusterLayout(1, 301, (300,), 1.0)
    weights = weights_of(layout, dtype, biases=False).map(torch.zeros_like)
    weights.head[7] = 14.0
    hidden, target = torch.ones(5, 1, dtype=dtype), torch.full((5,), 7)
    output, _ = tiled.nll(layout, weights, hidden, target, dtype=torch.float32)
    exact = -torch.log1p(300 * torch.exp(torch.tensor(-14.0, dtype=torch.float64)))
    rounding_of_logits = 14 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), exact.expand(5), rtol=rounding_of_logits, atol=0)


@pytest.mark.parametrize("use", ["loss", "output and loss"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_ignored_rows_take_no_part(use, reduction, ignore_index, n_rows):
    weights = weights_of(LAYOUT)
    hidden, target = batch_of(LAYOUT, n_rows)
    target[::3] = ignore_index
    assert_agrees(LAYOUT, weights, hidden, target, use, reduction=reduction, ignore_index=ignore_index)
    hidden[::3] = torch.nan
    for result in run(tiled, LAYOUT, weights, hidden, target, use, torch.float64, ignore_index=ignore_index):
        assert torch.isfinite(result).all()


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_no_row_and_one_row(n, reduction, small_workspace):
    hidden, target = batch_of(LAYOUT, n)
    assert_agrees(LAYOUT, weights_of(LAYOUT), hidden, target, "output and loss", reduction=reduction)


def test_the_mean_over_no_row_is_nan_and_its_gradients_are_zero():
    hidden, target = batch_of(LAYOUT, 4)
    _, loss, *gradients = run(
        tiled,
        LAYOUT,
        weights_of(LAYOUT),
        hidden,
        torch.full_like(target, -1),
        "loss",
        torch.float64,
        ignore_index=-1,
    )
    assert torch.isnan(loss)
    assert all(gradient is None or not gradient.any() for gradient in gradients)


@settings(max_examples=60, deadline=None)
@given(
    n_rows=st.integers(0, 40),
    cutoffs=st.lists(st.integers(1, 39), min_size=1, max_size=5, unique=True).map(sorted),
    workspace=st.integers(1, 6000),
    biases=st.booleans(),
    ignored=st.sampled_from([None, 0, 17]),
    seed=st.integers(0, 99),
)
def test_any_partition_in_any_workspace(n_rows, cutoffs, workspace, biases, ignored, seed):
    layout = ClusterLayout(7, 40, tuple(cutoffs), 1.5)
    hidden, target = batch_of(layout, n_rows, seed=seed)
    before = tiled.workspace_bytes
    tiled.workspace_bytes = workspace
    try:
        assert_agrees(
            layout,
            weights_of(layout, biases=biases),
            hidden,
            target,
            "output and loss",
            reduction="sum",
            ignore_index=ignored,
        )
    finally:
        tiled.workspace_bytes = before


@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("rows", [32, 33, 64])
def test_rows_at_the_edge_of_a_block(rows, offset, monkeypatch):
    monkeypatch.setattr(tiled, "workspace_bytes", 8 * 110 * rows)  # the largest cluster has 110 classes
    hidden, target = batch_of(LAYOUT, rows + offset)
    target[:] = 90 + target % 110
    assert Tiles.plan(rows, 110, tiled.workspace_bytes, torch.float64) == Tiles(rows, 110)
    assert_agrees(LAYOUT, weights_of(LAYOUT), hidden, target)


@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("width", [10, 11])
def test_classes_at_the_edge_of_a_tile(width, offset, monkeypatch):
    monkeypatch.setattr(tiled, "workspace_bytes", 8 * 10 * width)
    layout = ClusterLayout(6, 4 + 3 * width + offset, (4,), 1.0)
    tiles = Tiles.plan(50, 3 * width, tiled.workspace_bytes, torch.float64)
    assert tiles == Tiles(10, width)
    hidden, target = batch_of(layout, 50)
    target[:3] = torch.tensor([4, 3 + width, 4 + width])
    assert_agrees(layout, weights_of(layout), hidden, target, "output and loss")


@given(
    n_rows=st.integers(0, 5000),
    n_classes=st.integers(1, 300_000),
    workspace=st.integers(1, 2**26),
    padding=st.integers(0, 40),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    narrow=st.booleans(),
)
def test_tiles_fit_the_workspace_and_cover_at_least_one_logit(
    n_rows, n_classes, workspace, padding, dtype, narrow
):
    pitch = n_classes + padding
    tiles = Tiles.plan(n_rows, n_classes, workspace, dtype, narrow=narrow, pitch=pitch)
    bytes_per_logit = {torch.float64: 8, torch.float32: 4, torch.bfloat16: 6}[dtype]
    assert tiles.rows >= 1
    assert 1 <= tiles.classes <= n_classes
    if tiles.classes == n_classes and narrow:
        bytes_per_logit = dtype.itemsize
    columns = pitch if tiles.classes == n_classes and tiles.rows > 1 else tiles.classes
    assert tiles.rows * columns * bytes_per_logit <= max(workspace, bytes_per_logit)


@pytest.mark.parametrize("use", ["loss", "output", "output and loss"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_are_those_of_finite_differences(use, reduction, small_workspace):
    layout = ClusterLayout(5, 12, (3, 7), 2.0)
    weights = weights_of(layout).map(lambda tensor: tensor.requires_grad_())
    hidden, _ = batch_of(layout, 6)
    target = torch.tensor([0, 2, 3, 6, 8, 11])

    def function(hidden, *tensors):
        output, loss = tiled.nll(layout, weights.with_tensors(tensors), hidden, target, reduction=reduction)
        return tuple(t for t, name in ((output, "output"), (loss, "loss")) if name in use)

    whole = tiled.workspace_bytes > 64  # else along random directions, which takes a thousandth of the tiles
    assert gradcheck(function, (hidden.requires_grad_(), *weights.tensors()), fast_mode=not whole)


def test_second_derivatives_are_right():
    layout = ClusterLayout(5, 12, (3, 7), 2.0)
    weights = weights_of(layout).map(lambda tensor: tensor.requires_grad_())
    hidden, _ = batch_of(layout, 6)
    target = torch.tensor([0, 2, 3, 6, 8, 11])

    def loss(hidden, *tensors):
        return tiled.nll(layout, weights.with_tensors(tensors), hidden, target)[1]

    assert gradgradcheck(loss, (hidden.requires_grad_(), *weights.tensors()))


def test_a_retained_graph_gives_the_same_gradients_again():
    layer = AdaptiveLogSoftmaxWithLoss(32, 200, [11, 40, 90], backend="tiled", dtype=torch.float64)
    hidden, target = batch_of(LAYOUT, 30)
    loss = 5 * layer(hidden.requires_grad_(), target).loss
    leaves = [hidden, *layer.parameters()]
    first = [gradient.clone() for gradient in torch.autograd.grad(loss, leaves, retain_graph=True)]
    second = torch.autograd.grad(loss, leaves)
    for once, again in zip(first, second, strict=True):
        torch.testing.assert_close(once, again)


@pytest.mark.parametrize("frozen", ["hidden", "head", "tails", "outputs", "all but one projection"])
@pytest.mark.parametrize("use", ["loss", "output"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_gets_the_same(frozen, use):
    hidden, target = batch_of(LAYOUT, 40)
    results = {}
    for backend in (eager, tiled):
        weights = weights_of(LAYOUT).map(lambda tensor: tensor.requires_grad_())
        held = hidden.clone().requires_grad_()
        still = {
            "hidden": [held],
            "head": [weights.head, weights.head_bias],
            "tails": [tensor for tail in weights.tails for tensor in tail],
            "outputs": [tail.output for tail in weights.tails],
            "all but one projection": [
                held,
                *(t for t in weights.tensors() if t is not weights.tails[1].projection),
            ],
        }[frozen]
        for tensor in still:
            tensor.requires_grad_(False)
        output, loss = backend.nll(LAYOUT, weights, held, target)
        (loss if use == "loss" else output.sum()).backward()
        results[backend] = [held.grad, *(tensor.grad for tensor in weights.tensors())]
    for right, ours in zip(results[eager], results[tiled], strict=True):
        assert (right is None) == (ours is None)
        if right is not None:
            torch.testing.assert_close(ours, right)


def test_a_frozen_layer_and_input_need_no_graph_and_no_products_of_a_backward():
    from torch.utils.flop_counter import FlopCounterMode

    def flops(requires_grad):
        weights = weights_of(LAYOUT).map(lambda tensor: tensor.requires_grad_(requires_grad))
        hidden, target = batch_of(LAYOUT, 40)
        counter = FlopCounterMode(display=False)
        with counter:
            _, loss = tiled.nll(LAYOUT, weights, hidden.requires_grad_(requires_grad), target)
        assert loss.requires_grad == requires_grad
        return counter.get_total_flops()

    assert flops(True) == 3 * flops(False)


EVEN = {
    "mean of output": lambda output, loss: -output.mean(),
    "sum of output": lambda output, loss: 2 * output.sum(),
    "both": lambda output, loss: 3 * loss - 0.5 * output.sum(),
    "output times 0": lambda output, loss: loss + (0 * output).sum(),
}


@pytest.mark.parametrize("scalar", EVEN.values(), ids=EVEN)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignore_index", [None, 3])
def test_rows_that_weigh_the_same_have_eagers_gradients_at_the_products_of_the_loss(
    scalar, reduction, ignore_index
):
    from torch.utils.flop_counter import FlopCounterMode

    weights, (hidden, target) = weights_of(LAYOUT), batch_of(LAYOUT, 40)

    def taken(backend, scalar):
        leaves = [tensor.detach().requires_grad_() for tensor in (hidden, *weights.tensors())]
        counter = FlopCounterMode(display=False)
        with counter:
            held = weights.with_tensors(leaves[1:])
            found = backend.nll(
                LAYOUT, held, leaves[0], target, reduction=reduction, ignore_index=ignore_index
            )
            gradients = torch.autograd.grad(scalar(*found), leaves)
        return gradients, counter.get_total_flops()

    ours, flops = taken(tiled, scalar)
    torch.testing.assert_close(ours, taken(eager, scalar)[0], rtol=1e-11, atol=1e-12)
    assert flops == taken(tiled, lambda output, loss: loss)[1]
    assert flops < taken(tiled, lambda output, loss: output.square().sum())[1]


@pytest.mark.parametrize("frozen", ["hidden", "weights"])
def test_what_is_frozen_saves_its_products(frozen):
    from torch.utils.flop_counter import FlopCounterMode

    def flops(hidden_grad, weight_grad):
        weights = weights_of(LAYOUT).map(lambda tensor: tensor.requires_grad_(weight_grad))
        hidden, target = batch_of(LAYOUT, 40)
        counter = FlopCounterMode(display=False)
        with counter:
            tiled.nll(LAYOUT, weights, hidden.requires_grad_(hidden_grad), target)[1].backward()
        return counter.get_total_flops(), target

    (everything, target), (some, _) = flops(True, True), flops(frozen != "hidden", frozen != "weights")
    if frozen == "weights":
        assert 3 * some == 2 * everything  # of logits, gradient of the input and of the weight, the last
        return
    saved = 2 * 40 * LAYOUT.in_features * LAYOUT.head_size
    for tail in LAYOUT:
        n_rows = int(((target >= tail.start) & (target < tail.stop)).sum())
        saved += 2 * n_rows * LAYOUT.in_features * tail.projection_size
    assert everything - some == saved


@pytest.mark.parametrize("factor", [1e3, 1e6])
def test_logits_of_any_size_give_exact_log_probabilities(factor, small_workspace):
    weights = weights_of(LAYOUT, torch.float32).map(lambda tensor: tensor * factor**0.5)
    hidden, target = batch_of(LAYOUT, 40, torch.float32)
    expected, _ = eager.nll(LAYOUT, weights.map(torch.Tensor.double), hidden.double(), target)
    output, _ = tiled.nll(LAYOUT, weights, hidden, target)
    assert (expected < -100).any()
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("shift", "dtype"),
    [(s, d) for d in (torch.float32, torch.float64) for s in (-115.0, -60.0, 60.0, 115.0)]
    + [(s, torch.float64) for s in (-500.0, 500.0)],
)
def test_logits_far_from_zero_are_as_probable_as_near_it(shift, dtype, small_workspace):
    """Sums of their exponentials leave the range of the dtype, or come near its ends."""
    weights = weights_of(LAYOUT, dtype)
    for bias in (weights.head_bias, *(tail.output_bias for tail in weights.tails)):
        bias.add_(shift)
    hidden, target = batch_of(LAYOUT, 40, dtype)
    assert_agrees(LAYOUT, weights, hidden, target)


def test_float16_logits_near_the_end_of_their_range_stay_finite(small_workspace):
    weights = weights_of(LAYOUT, torch.float16).map(torch.zeros_like)
    weights.head_bias[0] = -50_000
    hidden, target = batch_of(LAYOUT, 40, torch.float16)
    output, _ = tiled.nll(LAYOUT, weights, hidden, torch.zeros_like(target), dtype=torch.float32)
    torch.testing.assert_close(output, torch.full((40,), -50_000.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("banned", [slice(0, 5), slice(20, 30), slice(0, 109)])
def test_classes_banned_by_a_bias_of_minus_infinity(banned, small_workspace):
    weights = weights_of(LAYOUT)
    weights.tails[2].output_bias[banned] = -torch.inf
    hidden, target = batch_of(LAYOUT, 40)
    target[:] = torch.where((target >= 90 + banned.start) & (target < 90 + banned.stop), 199, target)
    assert_agrees(LAYOUT, weights, hidden, target)


def test_a_spoilt_row_spoils_no_other_rows_output_or_gradient(small_workspace):
    weights = weights_of(LAYOUT).map(lambda tensor: tensor.requires_grad_())
    hidden, target = batch_of(LAYOUT, 40)
    sound = torch.arange(40) % 4 != 1
    expected, _ = eager.nll(LAYOUT, weights, hidden[sound].requires_grad_(), target[sound], reduction="none")
    spoilt = hidden.clone()
    spoilt[1::8], spoilt[5::8] = torch.nan, torch.inf
    spoilt.requires_grad_()
    output, _ = tiled.nll(LAYOUT, weights, spoilt, target, reduction="none")
    torch.testing.assert_close(output[sound], expected)
    output.sum().backward()
    assert torch.isfinite(spoilt.grad[sound]).all()


@pytest.mark.parametrize("how", ["strided", "expanded", "transposed weights"])
def test_any_memory_layout(how):
    weights = weights_of(LAYOUT)
    hidden, target = batch_of(LAYOUT, 40)
    if how == "strided":
        hidden = torch.stack([hidden, torch.full_like(hidden, torch.nan)], dim=2)[..., 0]
    elif how == "expanded":
        hidden = hidden[:1].expand(40, -1)
    else:
        weights = weights.map(lambda tensor: tensor.t().contiguous().t() if tensor.dim() == 2 else tensor)
    assert_agrees(LAYOUT, weights, hidden, target)


def test_the_workspace_outlives_inference_mode():
    tiled.release_workspace()
    hidden, target = batch_of(LAYOUT, 40)
    weights = weights_of(LAYOUT)
    with torch.inference_mode():
        tiled.nll(LAYOUT, weights, hidden, target)
    assert_agrees(LAYOUT, weights, hidden, target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_is_bounded_by_the_workspace_whatever_the_number_of_rows(dtype, monkeypatch):
    monkeypatch.setattr(tiled, "workspace_bytes", 2**20)
    layer = AdaptiveLogSoftmaxWithLoss(32, 5000, [500, 1500], backend="tiled", dtype=dtype)
    peaks = []
    for n in (1000, 4000):
        hidden, target = batch_of(layer.layout, n, dtype)
        hidden.requires_grad_()

        def step(hidden=hidden, target=target):
            hidden.grad = None
            layer.zero_grad()
            layer(hidden, target).loss.backward()

        step()
        peaks.append(peak_temporary_bytes(step))
    per_row_vectors = 4000 * 8 * 12  # targets, their order, log-probabilities: a few numbers a row
    assert peaks[1] <= 2**20 + per_row_vectors + sum(p.numel() * 4 for p in layer.parameters())
    assert peaks[1] - peaks[0] <= per_row_vectors


def test_a_long_bfloat16_batch_is_summed_as_exactly_as_a_short_one(monkeypatch):
    layout = ClusterLayout(16, 60, (50,), 4.0)
    weights = weights_of(layout, torch.bfloat16, biases=False)
    hidden, target = batch_of(layout, 4096, torch.bfloat16)
    target %= 50
    errors = []
    for n_bytes in (2**26, 6 * 51 * 32):  # one block, and 128 of them
        monkeypatch.setattr(tiled, "workspace_bytes", n_bytes)
        expected = run(eager, layout, weights, hidden, target, "loss", torch.float64)[3]
        actual = run(tiled, layout, weights, hidden, target, "loss", torch.bfloat16)[3]
        errors.append((actual.double() - expected).norm())
    assert errors[1] < 2 * errors[0]


def test_auto_takes_it_where_triton_cannot_serve():
    from zipfmax import backends

    hidden, _ = batch_of(LAYOUT, 3)
    assert backends.select("auto", hidden, weights_of(LAYOUT)) is tiled


def test_it_refuses_sparse_tensors_and_says_so():
    hidden, _ = batch_of(LAYOUT, 3)
    assert "sparse" in tiled.refusal(hidden.to_sparse(), weights_of(LAYOUT))
    assert tiled.refusal(hidden, weights_of(LAYOUT)) is None


def test_the_gradient_of_a_few_rows_keeps_the_small_terms_of_a_million_classes(monkeypatch):
    layout = ClusterLayout(16, 1_000_000, (1_000,), 4.0)
    weights = weights_of(layout, torch.float32, biases=False)
    hidden, _ = batch_of(layout, 6, torch.float32)
    target = torch.randint(1_000, 1_000_000, (6,), generator=torch.Generator().manual_seed(1))

    def error():
        exact = run(eager, layout, weights, hidden, target, "loss", torch.float64)[2]
        ours = run(tiled, layout, weights, hidden, target, "loss", torch.float32)[2]
        return float((ours - exact).abs().max() / exact.abs().max())

    summed_in_parts = error()
    monkeypatch.setattr("zipfmax.backends.tiled_cluster.MAX_SUMMED_CLASSES", 1_000_000)
    assert summed_in_parts < 0.5 * error()


def test_a_large_gradient_that_is_the_same_for_every_row_does_not_overflow():
    weights, (hidden, target) = weights_of(LAYOUT, torch.float32), batch_of(LAYOUT, 300, torch.float32)
    leaf = hidden.requires_grad_()
    output, _ = tiled.nll(LAYOUT, weights, leaf, target, reduction="mean")
    (large,) = torch.autograd.grad(output, leaf, torch.full_like(output, 2.0**120))
    output, _ = tiled.nll(LAYOUT, weights, leaf, target, reduction="mean")
    (one,) = torch.autograd.grad(output, leaf, torch.ones_like(output))
    torch.testing.assert_close(large * 2.0**-120, one)
