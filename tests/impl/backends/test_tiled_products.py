"""Either library's products against float64, and which of them is asked."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

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
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: request.param == "oneDNN")
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
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: True)
    layout = ClusterLayout(256, 3000, (200, 1000), 4.0)
    weights = weights_of(layout, torch.float32).map(lambda tensor: tensor * 0.2)
    hidden, target = batch_of(layout, 300, torch.float32)
    assert products.has_faster_linear(hidden, layout.head_size)
    expected = run(eager, layout, weights, hidden, target, "output and loss", torch.float64)
    actual = run(tiled, layout, weights, hidden, target, "output and loss", torch.float32)
    for right, ours in zip(expected, actual, strict=True):
        assert_close(ours, right)


def test_small_products_other_dtypes_and_a_disabled_onednn_have_torch_mm(monkeypatch):
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: True)
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
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: True)
    asked, onednn = [], products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *given: asked.append(given) or onednn(*given))
    tile, x, out = normal(n_rows, 8192), normal(n_rows, columns, seed=1), torch.empty(8192, columns)
    products.add_product(out, tile.t(), x, alpha=1.0, beta=0)
    assert_close(out, tile.t().double() @ x.double())
    assert bool(asked) == is_turned


@pytest.mark.parametrize(
    ("other_s", "usual_s", "is_faster"),
    [
        ([9.0, 1.0], [9.0, 1.3], True),
        ([9.0, 1.0], [9.0, 1.2], False),
        ([0.1, 1.3], [9.0, 1.3], False),  # the first is no more than a start
        ([9.0, 1.0, 7.0], [9.0, 8.0, 1.3], True),  # a busy machine makes one slower, none faster
        ([9.0, 8.0, 1.2], [9.0, 1.3, 9.0], False),
    ],
)
def test_another_way_is_taken_where_it_is_faster_by_the_margin(other_s, usual_s, is_faster, monkeypatch):
    clock = 0.0

    def product(seconds):
        remaining = iter(seconds)

        def run():
            nonlocal clock
            clock += next(remaining)

        return run

    monkeypatch.setattr(products, "_TRIALS", len(other_s) - 1)
    monkeypatch.setattr(products.time, "perf_counter", lambda: clock)
    assert products._is_faster(product(other_s), product(usual_s)) == is_faster


@pytest.mark.parametrize(
    "mode",
    [FakeTensorMode, torch.inference_mode, lambda: torch.device("meta"), torch.no_grad],
    ids=["fake", "inference", "meta", "no_grad"],
)
def test_the_first_use_may_lie_in_any_mode(mode):
    with mode():
        assert products._float32_is_faster.__wrapped__(torch.bfloat16) in (True, False)
        assert products._onednn_is_faster.__wrapped__() in (True, False)


def test_products_of_16_bits_are_taken_in_float32_on_a_cpu_where_that_is_faster(monkeypatch):
    monkeypatch.setattr(products, "_float32_is_faster", lambda dtype: dtype == torch.bfloat16)
    asked = {dtype: torch.empty(1, dtype=dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64)}
    assert {dtype: products.product_dtype(tensor) for dtype, tensor in asked.items()} == {
        torch.bfloat16: torch.float32,
        torch.float16: torch.float16,
        torch.float64: torch.float64,
    }
    assert products.product_dtype(torch.empty(1, dtype=torch.bfloat16, device="meta")) == torch.bfloat16


@pytest.mark.parametrize("part_bytes", [1, 3000, 2**23])
@pytest.mark.parametrize("beta", [0, 1])
@pytest.mark.parametrize("shape", [(33, 150, 20), (150, 33, 20), (1, 1, 1)])
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
def test_a_product_with_a_narrow_operand_is_rounded_once(shape, beta, part_bytes, out_dtype, monkeypatch):
    monkeypatch.setattr(products, "_WIDE_BYTES", part_bytes)
    m, n, k = shape
    left, right = normal(m, n), normal(n, k, seed=1).bfloat16()
    out = normal(m, k, seed=2).to(out_dtype)
    exact = -0.3 * (left.double() @ right.double()) + beta * out.double()
    products.add_product(out, left, right, alpha=-0.3, beta=beta)
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(out_dtype).eps, atol=2e-5)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_a_narrow_linear_takes_no_notice_of_the_default_dtype(default, monkeypatch):
    monkeypatch.setattr(products, "_float32_is_faster", lambda dtype: True)
    x, weight = normal(33, 24).bfloat16(), normal(37, 24, seed=1).bfloat16()
    exact = x.double() @ weight.double().t()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = products.linear(x, weight)
    finally:
        torch.set_default_dtype(before)
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-5)
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize("part_bytes", [1, 3000, 2**23])
@pytest.mark.parametrize("bias", [False, True])
def test_logits_of_narrow_weights_are_float32s(bias, part_bytes, monkeypatch):
    monkeypatch.setattr(products, "_WIDE_BYTES", part_bytes)
    x, weight = normal(33, 24), normal(150, 24, seed=1).bfloat16()
    added = normal(150, seed=2).bfloat16() if bias else None
    out = torch.full((33, 160), torch.nan)[:, :150]
    products.write_logits(out, x, weight, added, 1.5)
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if added is None else added.double())
    assert_close(out, 1.5 * exact)


@given(n_columns=st.integers(1, 300_000))
def test_rows_of_a_result_begin_at_a_cache_line_and_not_all_at_a_page(n_columns):
    pitch = products.row_pitch(n_columns, torch.empty(1))
    assert n_columns <= pitch < n_columns + 32
    assert products.row_pitch(n_columns, torch.empty(1, dtype=torch.float64)) == n_columns
    if n_columns >= products.PADDED_COLUMNS:
        assert pitch * 4 % 64 == 0
        assert pitch * 4 % 4096 != 0


def test_the_flop_counter_sees_either_librarys_products(library):
    x, weight = normal(40, 24), normal(37, 24)
    assert flops.counted(lambda: products.linear(x, weight)) == 2 * 40 * 24 * 37


def test_a_thread_that_outlives_the_main_one_may_be_the_first_to_take_a_product():
    program = """
import threading, torch
from zipfmax.backends import tiled_products
def late():
    threading.main_thread().join()
    print(tiled_products._onednn_is_faster())
threading.Thread(target=late).start()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() in ("True", "False"), done.stderr
