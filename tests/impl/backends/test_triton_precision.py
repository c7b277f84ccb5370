"""What "highest" means in float32: three tf32 products, and how far they are from IEEE products."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

Floats = npt.NDArray[np.float32]

BOUND = 2.0**-21
"""Of each product, relative: what `dot_settings` states."""


def rounded(x: Floats) -> Floats:
    """To tf32's 11 significant bits, halves away from zero, as `cvt.rna.tf32.f32` does."""
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def cut(x: Floats) -> Floats:
    """To tf32 by leaving out what it lacks, as the tensor cores do to operands that nobody rounded."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def three_products(a: Floats, b: Floats) -> npt.NDArray[np.float64]:
    """a b as `input_precision="tf32x3"` has it; float32 holds products of tf32 exactly, float64 their sum."""
    large_a, large_b = rounded(a), rounded(b)
    small_a, small_b = cut(a - large_a), cut(b - large_b)
    return (
        small_a.astype(np.float64) * large_b
        + large_a.astype(np.float64) * small_b
        + large_a.astype(np.float64) * large_b
    )


def relative_error(found: npt.NDArray[np.float64], a: Floats, b: Floats) -> npt.NDArray[np.float64]:
    exact = a.astype(np.float64) * b
    return np.abs(found - exact) / np.abs(exact)


def operands(n: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, n)).astype(np.float32)
    return a, b


def test_a_product_is_within_its_bound_and_near_it() -> None:
    a, b = operands(2_000_000)
    error = relative_error(three_products(a, b), a, b)
    assert error.max() <= BOUND
    assert error.max() > BOUND / 4  # so the bound is no idle one
    assert np.sqrt(np.mean(error**2)) < 1.5 * 2**-24  # typically one rounding of float32


def test_one_tf32_product_is_nowhere_near_the_bound() -> None:
    a, b = operands(100_000)
    error = relative_error(cut(a).astype(np.float64) * cut(b), a, b)
    assert np.median(error) > 500 * BOUND


@given(st.floats(2.0**-40, 2.0**40, width=32), st.floats(2.0**-40, 2.0**40, width=32))
def test_no_operands_leave_the_bound(x: float, y: float) -> None:
    a, b = np.float32([x]), np.float32([y])
    assert relative_error(three_products(a, b), a, b).max() <= BOUND


@pytest.mark.parametrize("k", [16, 64, 256])
def test_a_dot_product_loses_less_to_tf32_than_to_its_sum(k: int) -> None:
    a, b = (x.reshape(-1, k) for x in operands(2_000 * k))
    exact = (a.astype(np.float64) * b).sum(1)
    ours = np.abs(three_products(a, b).sum(1) - exact)
    total = np.zeros(len(a), np.float32)
    for column in range(k):
        total += a[:, column] * b[:, column]
    ieee = np.abs(total.astype(np.float64) - exact)
    assert np.sqrt(np.mean(ours**2)) < np.sqrt(np.mean(ieee**2))
