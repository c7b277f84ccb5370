"""Answers of a process that runs other people's code, in a form that cannot run code here: JSON and .npy arrays."""

from __future__ import annotations

import io
import json
from typing import IO, Any

import numpy as np

_ARRAY = "__array__"


def send(value: Any, stream: IO[bytes]) -> None:
    """Write plain values, of which arrays may be a part.

    Raises:
        TypeError: something else, such as an array of objects.
    """
    arrays: list[bytes] = []

    def plain(part: Any) -> Any:
        if isinstance(
            part, (np.ndarray, np.generic)
        ):  # NumPy's float64 is a float too, and would arrive as one
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(part), allow_pickle=False)
            arrays.append(buffer.getvalue())
            return {_ARRAY: len(arrays) - 1}
        if isinstance(part, dict):
            return {key: plain(value) for key, value in part.items()}
        if isinstance(part, (list, tuple)):
            return [plain(value) for value in part]
        return part

    text = json.dumps(plain(value)).encode()
    header = json.dumps([len(text), *map(len, arrays)]).encode()
    stream.write(header + b"\n" + text + b"".join(arrays))
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read what `send` wrote.

    Raises:
        EOFError: the other end is gone.
        ValueError: something else was written.
    """
    header = stream.readline()
    if not header.endswith(b"\n"):
        raise EOFError
    n_text, *sizes = json.loads(header)
    text, *parts = (_exactly(stream, size) for size in (n_text, *sizes))
    arrays = [np.load(io.BytesIO(part), allow_pickle=False) for part in parts]

    def decode(part: dict[str, Any]) -> Any:
        return arrays[part[_ARRAY]] if part.keys() == {_ARRAY} else part

    return json.loads(text, object_hook=decode)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    found = stream.read(size)
    if len(found) < size:
        raise EOFError
    return found
