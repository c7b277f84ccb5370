"""Text as word ids, the most frequent word first: from a file, or made up from a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zipfmax.errors import UsageError

END_OF_LINE = "<eol>"
UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Text:
    """A text split in two: the last tenth is for validation."""

    vocabulary: list[str]
    """Words by falling frequency: a word's id is its rank, as adaptive softmax wants it."""
    counts: Tensor
    """[n_words] int64: how often each word occurs in the whole text."""
    train: Tensor
    """[n_train] int64 word ids, in the order of the text."""
    valid: Tensor
    """[n_valid] int64."""


def read_text(path: Path, max_words: int | None = None) -> Text:
    """The words of a file, split at blanks, each line closed by a word of its own.

    Args:
        path: a UTF-8 text file.
        max_words: keep that many words of the vocabulary; the rarer ones become "<unk>".

    Raises:
        UsageError: a file that cannot be read as text.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    return from_words(
        [word for line in content.splitlines() for word in (*line.split(), END_OF_LINE)], max_words
    )


def from_words(words: Sequence[str], max_words: int | None = None) -> Text:
    """A text from its words in order; see `read_text`.

    Raises:
        UsageError: fewer than 100 words, or fewer than 8 different ones.
    """
    counter = Counter(words)
    if max_words is not None and len(counter) > max_words:
        kept = {word for word, _ in counter.most_common(max_words - 1)}
        words = [word if word in kept else UNKNOWN for word in words]
        counter = Counter(words)
    if len(words) < 100 or len(counter) < 8:
        raise UsageError(
            f"the text should hold at least 100 words, 8 of them different, "
            f"but holds {len(words)} and {len(counter)}"
        )
    by_frequency = counter.most_common()
    rank = {word: i for i, (word, _) in enumerate(by_frequency)}
    ids = torch.tensor([rank[word] for word in words])
    n_valid = len(words) // 10
    counts = torch.tensor([count for _, count in by_frequency])
    return Text([word for word, _ in by_frequency], counts, ids[:-n_valid], ids[-n_valid:])


def made_text(n_words: int = 5_000, n_tokens: int = 60_000, seed: int = 0) -> Text:
    """A text that is Zipf-distributed and can be learnt: a Markov chain over made-up words.

    Half the time the next word is one of the four that the last word prefers; otherwise, and to choose those
    four, words are drawn with probability proportional to 1 / rank.
    """
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, n_words + 1)
    share /= share.sum()
    drawn = rng.choice(n_words, size=n_tokens, p=share).tolist()
    preferred = rng.choice(n_words, size=(n_words, 4), p=share).tolist()
    follows, which = (rng.random(n_tokens) < 0.5).tolist(), rng.integers(0, 4, n_tokens).tolist()
    names = rng.permutation(n_words).tolist()  # so that a word's name says nothing of its rank
    words, last = [], 0
    for t in range(n_tokens):
        last = preferred[last][which[t]] if follows[t] else drawn[t]
        words.append(f"word{names[last]}")
    return from_words(words)
