"""Label distributions: how often each class occurs, and labels drawn from them.

A distribution is named by text, so that it travels in a case: `zipf:1.0`, `uniform`, `wordfreq:en`,
`counts:FILE`, or for awkward cells `only:LABELS`. Classes are ranks: 0 is the most frequent.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from enum import IntEnum
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zipfmax.errors import UsageError
from zipfmax_reference.runs import machine

Probabilities = npt.NDArray[np.float64]

FORMS = "zipf:S, uniform, wordfreq:LANG, counts:FILE (.npy, .csv or a text to count words of), only:1,5,20-30"


class Stream(IntEnum):
    """Independent random streams of one seed."""

    WEIGHTS = 0
    HIDDEN = 1
    LABELS = 2


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """A generator that depends on nothing but its arguments: the same on every machine and NumPy."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(stream, *key))))


def distribution(labels: str, n_classes: int) -> Probabilities:
    """Probability of each class, [n_classes] float64, most frequent first (`only:` keeps its own order).

    `zipf:S` is p(k) proportional to 1 / (k + 1)**S; `uniform` is its S = 0. `wordfreq:LANG` are the
    frequencies of the n_classes most frequent words of wordfreq's large list, `counts:FILE` the n_classes
    largest counts of a file. `only:` spreads its mass evenly over the labels and ranges it names.

    Raises:
        UsageError: an unknown form, a list shorter than n_classes, or counts that are none.
    """
    _check_size(n_classes)
    form, _, argument = labels.partition(":")
    if form == "uniform" and not argument:
        return _frozen(np.full(n_classes, 1.0 / n_classes))
    if form == "zipf":
        return _zipf(_exponent(labels, argument), n_classes)
    if form == "wordfreq":
        return _cut(_word_frequencies(argument), n_classes, labels)
    if form == "counts":
        return _cut(_counts(argument, _stamp(argument)), n_classes, labels)
    if form == "only":
        return _only(argument, n_classes, labels)
    raise UsageError(f"unknown labels {labels!r}; choose one of: {FORMS}")


def _check_size(n_classes: int) -> None:
    memory_bytes = machine.memory_bytes()
    if memory_bytes is not None and 24 * n_classes > memory_bytes:  # three arrays of float64
        raise UsageError(
            f"the frequencies of {n_classes:,} classes do not fit into this machine's memory of "
            f"{memory_bytes / 2**30:.1f} GiB"
        )


def vocabulary_size(labels: str) -> int | None:
    """Number of classes that the list itself has, for `wordfreq:` and `counts:`; None for the other forms.

    Raises:
        UsageError: as `distribution`.
    """
    form, _, argument = labels.partition(":")
    if form == "wordfreq":
        return len(_word_frequencies(argument))
    if form == "counts":
        return len(_counts(argument, _stamp(argument)))
    if form != "only":
        distribution(labels, n_classes=2)  # refuses what is not a distribution
    return None


def draw(probabilities: Probabilities, size: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Labels drawn independently from a distribution, [size], by inverting its cumulative sum."""
    cumulative = np.cumsum(probabilities)
    # Scaling by the total, which rounding leaves near 1, keeps every draw below the last entry; classes of
    # probability 0 repeat their predecessor's entry, so side="right" never returns them.
    position = rng.random(size) * cumulative[-1]
    found = np.searchsorted(cumulative, position, side="right").astype(np.int64)
    last = int(np.flatnonzero(probabilities)[-1])
    drawn: npt.NDArray[np.int64] = np.minimum(found, last)
    return drawn


def _exponent(labels: str, argument: str) -> float:
    try:
        exponent = float(argument)
    except ValueError:
        exponent = math.nan
    if not (math.isfinite(exponent) and exponent >= 0):
        raise UsageError(f"labels {labels!r}: the exponent should be a number of at least 0, as in zipf:1.0")
    return exponent


@lru_cache(maxsize=8)
def _zipf(exponent: float, n_classes: int) -> Probabilities:
    weight = np.arange(1, n_classes + 1, dtype=np.float64) ** -exponent
    return _frozen(weight / weight.sum())


@lru_cache(maxsize=8)
def _word_frequencies(language: str) -> Probabilities:
    try:
        import wordfreq  # slow to import, and only these labels need it
    except ImportError as error:
        raise UsageError("labels of the form wordfreq:LANG need wordfreq, which is not installed") from error

    available = sorted(wordfreq.available_languages("large"))
    if language not in available:
        raise UsageError(
            f"wordfreq has no large list for {language!r}; choose one of: {', '.join(available)}"
        )
    frequencies = np.array(list(wordfreq.get_frequency_dict(language, "large").values()), dtype=np.float64)
    return _frozen(np.sort(frequencies)[::-1])


@lru_cache(maxsize=8)
def _counts(name: str, _stamp: tuple[int, int]) -> Probabilities:
    file = Path(name)
    try:
        if file.suffix == ".npy":
            raw = np.load(file, allow_pickle=False)
        elif file.suffix == ".csv":
            raw = _csv_counts(file)
        else:
            raw = np.array(list(Counter(file.read_text().split()).values()), dtype=np.int64)
    except (OSError, ValueError) as error:
        raise UsageError(f"counts in {file} cannot be read: {error}") from error
    return _frozen(np.sort(_checked_counts(raw, file))[::-1])


def _csv_counts(file: Path) -> npt.NDArray[np.float64]:
    """Counts stand in the last column; a first line without a number there is a heading."""
    with file.open(newline="") as stream:
        cells = [(number, row[-1].strip()) for number, row in enumerate(csv.reader(stream), 1) if row]
    if cells and not _is_number(cells[0][1]):
        cells = cells[1:]
    for number, cell in cells:
        if not _is_number(cell):
            raise UsageError(f"{file}, line {number}: expected a count in the last column, got {cell!r}")
    return np.array([float(cell) for _, cell in cells], dtype=np.float64)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _checked_counts(raw: npt.NDArray[np.generic], file: Path) -> npt.NDArray[np.float64]:
    if raw.ndim != 1:
        raise UsageError(f"counts in {file} should be one-dimensional, got shape {raw.shape}")
    if raw.dtype.kind not in "iuf":
        raise UsageError(f"counts in {file} should be numbers, got {raw.dtype}")
    counts = raw.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(counts) & (counts >= 0) & (counts == np.floor(counts))))
    if wrong.size:
        first = wrong[0]
        raise UsageError(
            f"counts in {file} should be whole numbers of at least 0: "
            f"{wrong.size} are not, the first is {raw[first]} at position {first}"
        )
    if len(counts) < 2:
        raise UsageError(f"counts in {file} hold {len(counts)} class(es); a label space needs at least 2")
    if counts.sum() == 0:
        raise UsageError(f"counts in {file} are all 0")
    return counts


def _stamp(name: str) -> tuple[int, int]:
    """Tells a changed file from the one already read."""
    try:
        status = Path(name).stat()
    except OSError as error:
        raise UsageError(f"counts in {name} cannot be read: {error.strerror}") from error
    return status.st_mtime_ns, status.st_size


def _cut(frequencies: Probabilities, n_classes: int, labels: str) -> Probabilities:
    if len(frequencies) < n_classes:
        raise UsageError(
            f"labels {labels!r} have {len(frequencies)} classes, fewer than the {n_classes} asked for"
        )
    kept = frequencies[:n_classes]
    return _frozen(kept / kept.sum())


def _only(argument: str, n_classes: int, labels: str) -> Probabilities:
    chosen = np.zeros(n_classes)
    for item in argument.split(","):
        low, _, high = item.partition("-")
        if not (low.isdigit() and (high.isdigit() or not high)):
            raise UsageError(f"labels {labels!r}: expected labels and ranges, as in only:1,5,20-30")
        if not int(low) <= int(high or low) < n_classes:
            raise UsageError(f"labels {labels!r}: {item!r} is not a range of labels below {n_classes}")
        chosen[int(low) : int(high or low) + 1] = 1.0
    return _frozen(chosen / chosen.sum())


def _frozen(values: Probabilities) -> Probabilities:
    """Read-only, because the caches hand out the same array again."""
    values = np.ascontiguousarray(values)
    values.flags.writeable = False
    return values
