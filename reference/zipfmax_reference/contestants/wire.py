"""Answers of a process that runs other people's code, in a form that cannot run code here: JSON and raw arrays.

A message is a line with the lengths of its parts, then JSON, then the arrays' bytes. JSON names each array's dtype
and shape. The reader states how many bytes it takes, and allocates no more than that.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

import numpy as np

_ARRAY = "__array__"
_KINDS = "biuf"
"""NumPy's kinds of dtypes that are plain numbers."""
_LONGEST_HEADER = 10_000
ANY = 1 << 40
"""Bytes of an answer whose size is not known beforehand."""


class Source(Protocol):
    """Where messages are read."""

    def readline(self, size: int, /) -> bytes:
        """A line, its end included; at most `size` bytes."""

    def readinto(self, buffer: bytearray, /) -> int | None:
        """Fill the buffer, and how many bytes there were."""


def encoded(value: Any) -> bytes:
    """The message of plain values, of which arrays may be a part.

    Raises:
        TypeError: something else, such as an array of objects.
    """
    arrays: list[bytes] = []

    def plain(part: Any) -> Any:
        if isinstance(
            part, (np.ndarray, np.generic)
        ):  # NumPy's float64 is a float too, and would arrive as one
            array = np.asarray(part)
            if array.dtype.kind not in _KINDS:
                raise TypeError(f"an array of {array.dtype} cannot be sent")
            arrays.append(array.tobytes())
            return {_ARRAY: [len(arrays) - 1, array.dtype.str, list(array.shape)]}
        if isinstance(part, dict):
            return {key: plain(value) for key, value in part.items()}
        if isinstance(part, (list, tuple)):
            return [plain(value) for value in part]
        return part

    text = json.dumps(plain(value)).encode()
    header = json.dumps([len(text), *map(len, arrays)]).encode()
    return header + b"\n" + text + b"".join(arrays)


def receive(stream: Source, most_bytes: int = ANY) -> Any:
    """Read what `encoded` made.

    Args:
        stream: where it was written.
        most_bytes: that the message may have.

    Raises:
        EOFError: the other end is gone.
        ValueError: the message is larger, or is not one that `encoded` makes.
    """
    header = stream.readline(_LONGEST_HEADER)
    if not header.endswith(b"\n"):
        if len(header) == _LONGEST_HEADER:
            raise ValueError("its first line is not a list of sizes")
        raise EOFError
    try:
        sizes = json.loads(header)
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise TypeError
        if sum(sizes) > most_bytes:
            raise ValueError(f"it has {sum(sizes):,} bytes, at most {most_bytes:,} are expected")
        text, *arrays = (_exactly(stream, size) for size in sizes)
        return json.loads(text, object_hook=lambda part: _decoded(part, arrays))
    except (TypeError, KeyError, IndexError, RecursionError) as error:
        raise ValueError("it is not a message") from error


def _decoded(part: dict[str, Any], arrays: list[bytearray]) -> Any:
    if part.keys() != {_ARRAY}:
        return part
    number, name, shape = part[_ARRAY]
    dtype = np.dtype(name)
    if dtype.kind not in _KINDS or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array of {dtype} with shape {shape} is not expected")
    return np.frombuffer(arrays[number], dtype).reshape(shape)


def _exactly(stream: Source, size: int) -> bytearray:
    found = bytearray(size)
    if stream.readinto(found) != size:
        raise EOFError
    return found
