"""Either library's products against float64, and which of them is asked."""

import pytest
import torch

from zipfmax.backends import eager, tiled
from zipfmax.backends import tiled_products as products
from zipfmax.clusters import ClusterLayout
from zipfmax_bench import flops

from .test_tiled import assert_agrees, batch_of, run, weights_of

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this build of torch has no oneDNN"
)


@pytest.fixture(params=["oneDNN", "torch.mm"])
def library(request, monkeypatch):
    """Every float32 product by one library, whatever the processor and the size."""
    monkeypatch.setattr(products, "_mkl_lags_behind", lambda: request.param == "oneDNN")
    for name in ("MIN_MULTIPLICATIONS", "MIN_SIDE", "MIN_COLUMNS"):
        monkeypatch.setattr(products, name, 1)
    monkeypatch.setattr(products, "_MIN_SUMMED_ROWS", ((products._NARROW - 1, 1),))
    return request.param


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, exact):
    torch.testing.assert_close(actual.double(), exact, rtol=0, atol=2e-6 * float(exact.detach().abs().max()))


@pytest.mark.parametrize("bias", [None, normal(37, seed=2)], ids=["no bias", "bias"])
@pytest.mark.parametrize("n", [1, 15, 130])
def test_linear_is_the_product_plus_bias(library, n, bias):
    x, weight = normal(n, 24), normal(37, 24, seed=1)
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert_close(products.linear(x, weight, bias), exact)


@pytest.mark.parametrize("part_bytes", [1, 800, 2**23])
@pytest.mark.parametrize("beta", [0, 1])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("columns", [1, 2, 5, 20, 191, 192, 200])
def test_a_product_is_added_or_written(library, columns, transposed, beta, part_bytes, monkeypatch):
    monkeypatch.setattr(products, "_PART_BYTES", part_bytes)
    left = normal(50, 33).t() if transposed else normal(33, 50)
    right = normal(50, columns, seed=1)
    before = normal(33, columns, seed=2)
    out = before.clone() if beta else torch.full_like(before, torch.nan)
    products.add_product(out, left, right, alpha=-0.3, beta=beta)
    exact = -0.3 * (left.double() @ right.double())
    assert_close(out, exact + before.double() if beta else exact)


@pytest.mark.parametrize("columns", [3, 20, 200])
def test_no_weight_that_onednn_would_take_its_reference_loops_for_is_handed_to_it(columns, monkeypatch):
    """Its weights have no gaps: for a slice of a transposed tile its loops are a thousand times slower."""
    handed = []

    def spy(x, weight, bias):
        handed.append(weight)
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(products, "_onednn", spy)
    monkeypatch.setattr(products, "has_faster_linear", lambda x, n_outputs: True)
    monkeypatch.setattr(products, "_PART_BYTES", 64 * columns * 4)
    for n_classes in (64, 150):
        tile, right = normal(130, n_classes).t(), normal(130, columns, seed=1)
        products.add_product(torch.empty(n_classes, columns), tile, right, alpha=1.0, beta=0)
    assert len(handed) == (1 if columns < products._NARROW else 1 + 3)
    for weight in handed:
        assert (weight.stride(0) == 1 and weight.stride(1) == weight.shape[0]) or weight.is_contiguous()


def test_a_weight_with_gaps_is_multiplied_without_them(library, monkeypatch):
    handed = []
    linear = torch.ops.mkldnn._linear_pointwise

    def spy(x, weight, *rest):
        handed.append(weight.is_contiguous())
        return linear(x, weight, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spy)
    x, weight = normal(20, 24), normal(37, 50, seed=1)[:, :24]
    assert_close(products.linear(x, weight), x.double() @ weight.double().t())
    assert handed == ([True] if library == "oneDNN" else [])


@pytest.mark.parametrize("n_bytes", [40_000, 900, 64])
@pytest.mark.parametrize("use", ["loss", "output and loss"])
def test_a_step_is_right_with_either_library(library, use, n_bytes, monkeypatch):
    monkeypatch.setattr(tiled, "workspace_bytes", n_bytes)
    layout = ClusterLayout(32, 200, (11, 40, 90), 4.0)
    hidden, target = batch_of(layout, 67, torch.float32)
    assert_agrees(layout, weights_of(layout, torch.float32), hidden, target, use)


def test_a_step_at_the_sizes_that_choose_onednn_by_themselves(monkeypatch):
    monkeypatch.setattr(products, "_mkl_lags_behind", lambda: True)
    layout = ClusterLayout(256, 3000, (200, 1000), 4.0)
    weights = weights_of(layout, torch.float32).map(lambda tensor: tensor * 0.2)
    hidden, target = batch_of(layout, 300, torch.float32)
    assert products.has_faster_linear(hidden, layout.head_size)
    expected = run(eager, layout, weights, hidden, target, "output and loss", torch.float64)
    actual = run(tiled, layout, weights, hidden, target, "output and loss", torch.float32)
    for right, ours in zip(expected, actual, strict=True):
        assert_close(ours, right)


def test_small_products_other_dtypes_and_a_disabled_onednn_have_torch_mm(monkeypatch):
    monkeypatch.setattr(products, "_mkl_lags_behind", lambda: True)
    x = normal(256, 256)
    assert products.has_faster_linear(x, 256)
    assert not products.has_faster_linear(x, 8)
    assert products.has_faster_linear(normal(256, 1024), 2)
    assert not products.has_faster_linear(normal(256, 1024), 1)
    assert not products.has_faster_linear(x[:8], 4096)
    assert not products.has_faster_linear(x.bfloat16(), 256)
    assert not products.has_faster_linear(x.double(), 256)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not products.has_faster_linear(x, 256)


@pytest.mark.parametrize(
    ("n_rows", "columns", "is_turned"),
    [
        (20, 2, True),
        (19, 2, False),
        (20, 9, False),
        (48, 15, True),
        (48, 16, False),
        (128, 16, True),
        (512, 1, False),
    ],
)
def test_a_narrow_weights_gradient_is_onednns_from_few_rows_on(n_rows, columns, is_turned, monkeypatch):
    monkeypatch.setattr(products, "_mkl_lags_behind", lambda: True)
    asked, onednn = [], products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *given: asked.append(given) or onednn(*given))
    tile, x, out = normal(n_rows, 8192), normal(n_rows, columns, seed=1), torch.empty(8192, columns)
    products.add_product(out, tile.t(), x, alpha=1.0, beta=0)
    assert_close(out, tile.t().double() @ x.double())
    assert bool(asked) == is_turned


@pytest.mark.parametrize(
    ("processor", "lags"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, torch.backends.mkl.is_available()),
        ({"cpu_name": "AMD EPYC", "avx512_f": False}, False),
        ({"cpu_name": "Intel Xeon Processor", "avx512_f": True}, False),
        ({}, False),
    ],
)
def test_mkl_lags_behind_where_it_keeps_avx512_to_intel(processor, lags, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    assert products._mkl_lags_behind.__wrapped__() == lags


def test_the_flop_counter_sees_either_librarys_products(library):
    x, weight = normal(40, 24), normal(37, 24)
    assert flops.counted(lambda: products.linear(x, weight)) == 2 * 40 * 24 * 37
