"""Which tokens a model knows: those of the training part by falling frequency, the rest as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zipfmax.errors import UsageError
from zipfmax_bench.study.tokens import END_OF_FILE

UNKNOWN = b"<unk>"
_SHOWN = {b"\n": b"<eol>", END_OF_FILE: b"<eof>"}


@dataclass(frozen=True)
class Vocabulary:
    """The words of a model: word 0 is the most frequent."""

    words: list[bytes]
    """[V] by rank."""
    counts: npt.NDArray[np.int64]
    """[V] in the training part, falling."""
    rank_of: npt.NDArray[np.uint32]
    """[number of tokens] rank of each token by its number; that of <unk> for tokens that are left out."""
    unknown: int
    """Rank of <unk>."""
    least_count: int
    """Count of the rarest word that is kept."""

    def shown(self) -> list[bytes]:
        """The words, each without a line break."""
        return [_SHOWN.get(word, word) for word in self.words]


def falling(
    tokens: Sequence[bytes], counts: npt.NDArray[np.int64], min_count: int, classes: int | None = None
) -> Vocabulary:
    """The tokens that occur often enough, by falling count and, where equal, by their bytes; and <unk>.

    Args:
        tokens: by number.
        counts: of each number in the training part.
        min_count: tokens with fewer occurrences are left out.
        classes: how many words there are at most, with <unk>.

    Raises:
        UsageError: fewer words than `classes`, or fewer than 8.
    """
    kept = np.flatnonzero(counts >= max(min_count, 1)).tolist()
    if classes is not None and len(kept) + 1 < classes:
        raise UsageError(
            f"the text has {len(kept) + 1:,} words that occur {min_count} times or more, fewer than the "
            f"{classes:,} classes asked for: lower --min-count or --classes"
        )
    order = sorted(kept, key=lambda number: (-counts[number], tokens[number]))
    order = order[: None if classes is None else classes - 1]
    if len(order) < 7:
        raise UsageError(f"the text should have at least 8 words, got {len(order) + 1}")
    in_order = counts[order]
    left_out = int(counts.sum() - in_order.sum())
    unknown = int(np.searchsorted(-in_order, -left_out, side="right"))
    rank_of = np.full(len(tokens), unknown, np.uint32)
    ranks = np.arange(len(order), dtype=np.uint32)
    rank_of[order] = ranks + (ranks >= unknown)
    words = [tokens[number] for number in order]
    words.insert(unknown, UNKNOWN)
    return Vocabulary(words, np.insert(in_order, unknown, left_out), rank_of, unknown, int(in_order[-1]))
