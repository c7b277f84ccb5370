"""Label distributions: how often each class occurs, and labels drawn from them.

A distribution is named by text, so that it travels in a case: `zipf:1.0`, `uniform`, `wordfreq:en`,
`counts:FILE`, or for awkward cells `only:LABELS`. Classes are ranks: 0 is the most frequent.
`counts:FORMAT@FILE` overrides the guess of the file's format, `counts:TOKENIZER.json@FILE` counts its tokens.
"""

from __future__ import annotations

import math
from enum import IntEnum
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zipfmax.counts import FORMATS, LabelCounts, read_counts
from zipfmax.errors import UsageError, unknown
from zipfmax_reference.runs import machine

Probabilities = npt.NDArray[np.float64]

FORMS = "zipf:S, uniform, wordfreq:LANG, counts:FILE (counts, or a text to count), only:1,5,20-30"


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
    machine.check_fits(24 * n_classes, f"the frequencies of {n_classes:,} classes")  # and what sums them
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


def label_counts(argument: str) -> LabelCounts:
    """What the argument of `counts:` names, by label, in the file's own order.

    Raises:
        UsageError: a file that cannot be read or holds no counts.
    """
    return _read(argument, _stamp(argument))


@lru_cache(maxsize=8)
def _read(argument: str, _stamp: tuple[int, ...]) -> LabelCounts:
    how, file = _how_and_file(argument)
    try:
        if how.endswith(".json"):
            return read_counts(file, tokenizer=how)
        return read_counts(file, how or None)
    except OSError as error:
        raise UsageError(f"counts in {file} cannot be read: {error.strerror or error}") from error
    except (ValueError, ImportError) as error:
        raise UsageError(f"counts in {file} cannot be read: {error}") from error


IMPORT = "from zipfmax.counts import read_counts"
"""What the code of `expression` needs."""


def expression(labels: str) -> str:
    """Python that reads the counts of `counts:` labels, by label."""
    how, file = _how_and_file(labels.partition(":")[2])
    option = f", tokenizer={how!r}" if how.endswith(".json") else f", {how!r}" if how else ""
    return f"read_counts({file!r}{option}).values"


def counts_labels(file: Path, form: str | None = None, tokenizer: Path | None = None) -> str:
    """The labels `counts:FILE` with a format or a tokenizer.

    Raises:
        UsageError: an unknown format, both, or a tokenizer that is no .json file.
    """
    if form is not None and tokenizer is not None:
        raise UsageError("a tokenizer counts the tokens of a text: it goes without a format of counts")
    if form is not None and form not in OF_FILES:
        raise UsageError(unknown("format of counts", form, OF_FILES))
    if tokenizer is not None and tokenizer.suffix != ".json":
        raise UsageError(
            f"{tokenizer}: a tokenizer should be a file tokenizer.json of Hugging Face's tokenizers"
        )
    how = tokenizer if tokenizer is not None else form
    return f"counts:{file}" if how is None else f"counts:{how}@{file}"


OF_FILES = tuple(form for form in FORMATS if form != "tokenizer")
"""What the counts in a file may be written as."""


def _how_and_file(argument: str) -> tuple[str, str]:
    """A format or a tokenizer, empty where it is to be guessed, and the file."""
    how, at, file = argument.partition("@")
    return (how, file) if at and (how in FORMATS or how.endswith(".json")) else ("", argument)


def files_of_counts(argument: str) -> list[str]:
    """The files that `counts:` with this argument reads: the counts, and the tokenizer where there is one."""
    how, file = _how_and_file(argument)
    return [file, how] if how.endswith(".json") else [file]


@lru_cache(maxsize=8)
def _counts(argument: str, _stamp: tuple[int, ...]) -> Probabilities:
    return _frozen(np.sort(_read(argument, _stamp).values)[::-1])


def _stamp(argument: str) -> tuple[int, ...]:
    """Tells changed files from those already read.

    Raises:
        UsageError: one of them is not there.
    """
    found: list[int] = []
    for name in files_of_counts(argument):
        try:
            status = Path(name).stat()
        except OSError as error:
            what = "counts in" if name == _how_and_file(argument)[1] else "tokenizer"
            form, at, _ = name.partition("@")
            hint = f"; {form} is not a format: {', '.join(OF_FILES)} or a tokenizer.json" if at else ""
            raise UsageError(f"{what} {name} cannot be read: {error.strerror}{hint}") from error
        found += [status.st_mtime_ns, status.st_size]
    return tuple(found)


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
