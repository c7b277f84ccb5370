"""Text files as token ids, in one pass over each file: what a worker process of `corpus` does.

Tokens are bytes, found by one regular expression: code is identifiers, numbers and single punctuation marks,
anything else is words between blanks, with a token for the end of a line. This module imports neither torch
nor the rest of the package, so that a worker starts in a tenth of a second.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint32]

CODE = re.compile(rb"[A-Za-z_]\w*|\d[\w.]*|[\x80-\xff]+|[^\s\w]")
WORDS = re.compile(rb"\S+|\n")
END_OF_FILE = b"\n\n"
"""Closes every file; no expression finds it in a text."""


class Numbering(dict[bytes, int]):
    """Numbers tokens in the order in which they are first looked up."""

    def __missing__(self, token: bytes) -> int:
        number = self[token] = len(self)
        return number


@dataclass(frozen=True)
class Encoded:
    """The tokens of some files, numbered by first occurrence among them."""

    tokens: list[bytes]
    """Token of each number."""
    lengths: list[int]
    """Tokens of each file."""
    ids: Ids | Path
    """[sum of lengths] numbers, or the file of raw uint32 that holds them."""

    def numbers(self) -> Ids:
        """The numbers in memory."""
        return np.fromfile(self.ids, np.uint32) if isinstance(self.ids, Path) else self.ids


EXPRESSIONS = {"code": CODE, "words": WORDS}


def kind_of(file: Path) -> str:
    """What the tokens of a file are: "code" for Python sources, otherwise "words"."""
    return "code" if file.suffix == ".py" else "words"


def encode(files: Sequence[Path], into: Path | None = None) -> Encoded:
    """Read files and number their tokens.

    Args:
        files: one part of a corpus.
        into: where to write the numbers, so that they need not travel between processes.
    """
    numbering = Numbering()
    parts: list[Ids] = []
    for file in files:
        found = EXPRESSIONS[kind_of(file)].findall(file.read_bytes())
        found.append(END_OF_FILE)
        parts.append(np.fromiter(map(numbering.__getitem__, found), np.uint32, len(found)))
    ids = np.concatenate(parts) if parts else np.empty(0, np.uint32)
    lengths = [len(part) for part in parts]
    if into is None:
        return Encoded(list(numbering), lengths, ids)
    ids.tofile(into)
    return Encoded(list(numbering), lengths, into)
