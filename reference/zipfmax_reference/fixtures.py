"""A pytest plugin with one fixture, so that a layer's own tests can ask for parity in a line.

def test_my_layer_is_adaptive_softmax(assert_parity):
    assert_parity(MyLayer)
"""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def assert_parity() -> Callable[..., None]:
    """`zipfmax_reference.truth.oracle.assert_parity`, imported when a test first asks for it."""
    from zipfmax_reference.truth import oracle

    return oracle.assert_parity
