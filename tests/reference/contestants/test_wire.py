"""Plain values and arrays arrive as they were sent, and nothing else can be sent or run."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zipfmax_reference.contestants import wire

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
ARRAYS = hnp.arrays(
    st.sampled_from(["f2", "f4", "f8", "i8", "bool"]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)
)


def passed_on(value):
    return wire.receive(io.BytesIO(wire.encoded(value)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(PLAIN, st.dictionaries(st.text(), ARRAYS, max_size=3))
def test_values_and_arrays_arrive_bit_for_bit(plain, arrays):
    found, received = passed_on([plain, arrays])
    assert found == plain
    assert received.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (received[name].dtype, received[name].shape) == (array.dtype, array.shape)
        assert received[name].tobytes() == array.tobytes()


def test_an_object_cannot_be_sent():
    for value in (object(), np.array([object()])):
        with pytest.raises(TypeError, match="object"):
            passed_on(value)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("{}", [1 << 60]),
        ("{}", [2, 1 << 60]),
        ("{}", [2, -1]),
        ("{}", {"a": 1}),
        ('{"__array__": [0, "|O", [1]]}', [None, 8]),
        ('{"__array__": [0, "<f8", [1152921504606846976]]}', [None, 8]),
        ('{"__array__": [0, "<f8", [2]]}', [None, 8]),
        ('{"__array__": [1, "<f8", [1]]}', [None, 8]),
        ('{"__array__": 0}', [None, 8]),
        ("[" * 100_000, [None]),
        ("NOT JSON", [None]),
    ],
)
def test_what_encoded_does_not_make_is_refused_without_its_size_in_memory(text, sizes):
    if isinstance(sizes, list):
        sizes = [len(text) if size is None else size for size in sizes]
    with pytest.raises(ValueError):  # noqa: PT011 - each in its own words
        wire.receive(io.BytesIO(json.dumps(sizes).encode() + b"\n" + text.encode() + bytes(8)), 1 << 20)
    with pytest.raises(ValueError, match="not a list of sizes"):
        wire.receive(io.BytesIO(bytes(1 << 16)), 1 << 20)


@pytest.mark.parametrize("cut", [0, 3, 9, 14])
def test_a_message_that_is_cut_off_is_the_end(cut):
    with pytest.raises(EOFError):
        wire.receive(io.BytesIO(wire.encoded({"a": 1.5})[:cut]))


def test_a_scalar_of_numpy_stays_one():
    found = passed_on({"loss": np.float64(1.5), "n": np.float32(2)})
    assert (found["loss"].dtype, found["loss"].shape, found["n"].dtype) == (np.float64, (), np.float32)
    assert float(found["loss"]) == 1.5
