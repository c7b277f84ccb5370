"""How often each label occurs, read from the files that people have: lists of counts, or text to count."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LINES_LOOKED_AT = 200
"""Of a file without a telling name, to guess whether it is a list of counts or running text."""
SHORTEST_LIST_OF_IDS = 10
"""A JSON of that many numbers that follow each other, in any order, holds ids, not counts."""


@dataclass(frozen=True)
class LabelCounts:
    """Counts by label."""

    values: Floats
    """[V] whole numbers: how often label 0, 1, ... occurs."""
    format: str
    """One of `FORMATS`."""
    guessed: bool
    """Whether the format was guessed from the file."""
    by_id: bool = False
    """Whether the file names labels 0 to V - 1 beside their counts."""

    @property
    def labels(self) -> str:
        """What label i is, in words."""
        return "the file's own numbers of labels" if self.by_id else _LABELS[self.format]

    @property
    def are_sorted(self) -> bool:
        """Whether no label is more frequent than the one before it."""
        return bool((np.diff(self.values) <= 0).all())


_LABELS = {
    "text": "the words by falling frequency",
    "token-count": "the file's lines in order",
    "count-token": "the file's lines in order",
    "csv": "the file's rows in order",
    "tsv": "the file's rows in order",
    "npy": "the array's indices",
    "npz": "the array's indices",
    "json": "the file's entries in order",
    "tokenizer": "the tokenizer's ids",
}
FORMATS = tuple(_LABELS)
"""running text, lines of a token and its count, or of a count and its token as `uniq -c` writes them, comma- or
tab-separated rows with the count last, NumPy's two, a JSON object of token to count (or a list of counts), a text
counted by a tokenizer.json. Tokens that are the numbers 0 to V - 1 are labels: their counts go where they say."""


@dataclass(frozen=True)
class _Listed:
    """Counts beside what they are of."""

    tokens: list[str]
    counts: list[float]

    def by_id(self) -> list[float] | None:
        """The counts in the order of labels, if the tokens are labels."""
        if not all(token.isdecimal() for token in self.tokens):
            return None
        ids = [int(token) for token in self.tokens]
        if sorted(ids) != list(range(len(ids))):
            return None
        return [count for _, count in sorted(zip(ids, self.counts, strict=True))]


def read_counts(
    path: str | Path, format: str | None = None, tokenizer: str | Path | None = None
) -> LabelCounts:
    """The counts in a file, which may be gzipped.

    Args:
        path: the file.
        format: one of `FORMATS`; guessed from its name and its first lines where it is None.
        tokenizer: a tokenizer.json as Hugging Face's tokenizers writes it: the file is a text, and its tokens
            are counted. Needs the package `tokenizers`.

    Raises:
        OSError: a file that cannot be read.
        ImportError: `tokenizers` is needed and not installed.
        ValueError: an unknown format, a file of another format, or numbers that are no counts.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise ValueError(f"unknown format {format!r} of counts; choose one of: {', '.join(FORMATS)}")
    if format is not None and (format == "tokenizer") != (tokenizer is not None):
        raise ValueError("the format 'tokenizer' and a tokenizer.json go together")
    chosen = format or ("tokenizer" if tokenizer is not None else "text")
    try:
        chosen = _guess(path) if format is None and tokenizer is None else chosen
        found = _READERS[chosen](path) if tokenizer is None else _tokens(path, Path(tokenizer))
        by_id = found.by_id() if isinstance(found, _Listed) else None
        if isinstance(found, _Listed):
            found = found.counts if by_id is None else by_id
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is {_kind_of_bytes(path)}, no {chosen}") from error
    except (EOFError, zlib.error, zipfile.BadZipFile, csv.Error) as error:
        raise ValueError(f"{path} is cut short or damaged: {error}") from error
    guessed = format is None and tokenizer is None
    return LabelCounts(_checked(found, path), chosen, guessed, by_id is not None)


def _guess(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    by_name = suffixes[-1].removeprefix(".") if suffixes else ""
    if by_name in ("csv", "tsv", "npy", "npz", "json"):
        return by_name
    with _open(path) as stream:
        lines = [line for line in islice(stream, LINES_LOOKED_AT) if line.strip()]
    fields = [line.split() for line in lines]
    if len(fields) > 1 and all(len(line) == 2 for line in fields):
        for name, column in (("token-count", 1), ("count-token", 0)):
            if all(line[column].isdecimal() for line in fields):
                return name
    return "text"


@contextmanager
def _open(path: Path) -> Iterator[Iterator[str]]:
    opened = gzip.open if _is_gzipped(path) else open
    with opened(path, "rt", encoding="utf-8", newline="") as stream:
        yield cast(Iterator[str], stream)


def _is_gzipped(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _text(path: Path) -> Iterable[int]:
    with _open(path) as stream:
        words = Counter(word for line in stream for word in line.split())
    return [count for _, count in words.most_common()]


def _token_count(path: Path) -> _Listed:
    with _open(path) as stream:
        rows = [(number, line.rsplit(None, 1)) for number, line in enumerate(stream, 1) if line.strip()]
    return _listed(rows, path, "last")


def _count_token(path: Path) -> _Listed:
    with _open(path) as stream:
        rows = [(number, line.split(None, 1)[::-1]) for number, line in enumerate(stream, 1) if line.strip()]
    return _listed(rows, path, "first")


def _separated(path: Path, **dialect: Any) -> _Listed:
    with _open(path) as stream:
        rows = [(number, row) for number, row in enumerate(csv.reader(stream, **dialect), 1) if row]
    return _listed(rows, path, "last")


def _listed(rows: list[tuple[int, list[str]]], path: Path, place: str) -> _Listed:
    """Tokens and counts of rows that end in a count, which stands at a place in the file's lines.

    A first row without a number is a heading. What names the label of a row is all that is not its count.
    """
    if rows and not _is_number(rows[0][1][-1]):
        rows = rows[1:]
    for number, row in rows:
        if not _is_number(row[-1]):
            cell = row[-1].strip()
            raise ValueError(f"{path}, line {number}: expected a count in the {place} column, got {cell!r}")
    return _Listed([" ".join(row[:-1]).strip() for _, row in rows], [float(row[-1]) for _, row in rows])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _npy(path: Path) -> npt.ArrayLike:
    return cast(npt.ArrayLike, np.load(_of_numpy(path, "npy"), allow_pickle=False))


def _npz(path: Path) -> npt.ArrayLike:
    with np.load(_of_numpy(path, "npz"), allow_pickle=False) as arrays:
        names = list(arrays)
        if len(names) != 1 and "counts" not in names:
            raise ValueError(f"{path} should hold one array, or one named 'counts', got {', '.join(names)}")
        return cast(npt.ArrayLike, arrays["counts" if "counts" in names else names[0]])


_FIRST_BYTES = {"npy": b"\x93NUMPY", "npz": b"PK"}


def _of_numpy(path: Path, kind: str) -> io.BytesIO:
    """The content of a .npy or .npz file; NumPy takes what is neither for pickled Python."""
    content = path.read_bytes()
    content = gzip.decompress(content) if _is_gzipped(path) else content
    if not content.startswith(_FIRST_BYTES[kind]):
        raise ValueError(f"{path} does not begin as a .{kind} file of NumPy does")
    return io.BytesIO(content)


def _kind_of_bytes(path: Path) -> str:
    """What a file is that is not UTF-8, in words."""
    with path.open("rb") as stream:
        first = stream.read(8)
    if first.startswith(_FIRST_BYTES["npy"]):
        return "a .npy file"
    is_zip = first.startswith(_FIRST_BYTES["npz"])
    return "a zip archive, as .npz and .xlsx files are" if is_zip else "not text in UTF-8"


def _json(path: Path) -> npt.ArrayLike | _Listed:
    with _open(path) as stream:
        try:
            found = json.loads("".join(stream))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON of counts: {error}") from error
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        raise ValueError(f"{path} is a tokenizer: give it as the tokenizer of a text")
    counts = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(counts, list) or not all(type(count) in (int, float) for count in counts):
        raise ValueError(f"{path} should map each token to its count, or list the counts")
    least = min(counts, default=0)
    if len(counts) >= SHORTEST_LIST_OF_IDS and sorted(counts) == [least + i for i in range(len(counts))]:
        raise ValueError(f"{path} maps tokens to their ids, not to counts")
    return _Listed(list(found), counts) if isinstance(found, dict) else counts


def _tokens(path: Path, tokenizer: Path) -> npt.ArrayLike:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError("counting tokens needs the package tokenizers: pip install tokenizers") from error
    try:
        encoder = Tokenizer.from_str(tokenizer.read_text(encoding="utf-8"))
    except OSError:
        raise
    except Exception as error:  # the library raises a bare Exception for what is not a tokenizer
        raise ValueError(f"{tokenizer} is not a tokenizer.json: {error}") from error
    counts = np.zeros(1 + max(encoder.get_vocab(with_added_tokens=True).values()), dtype=np.int64)
    with _open(path) as stream:
        while lines := list(islice(stream, 10_000)):
            for encoded in encoder.encode_batch(lines, add_special_tokens=False):
                counts += np.bincount(encoded.ids, minlength=len(counts)) if encoded.ids else 0
    return counts


_READERS: dict[str, Callable[[Path], npt.ArrayLike | Iterable[float] | _Listed]] = {
    "text": _text,
    "token-count": _token_count,
    "count-token": _count_token,
    "csv": _separated,
    # Tabs part the columns whatever else a token holds, a quotation mark included.
    "tsv": lambda path: _separated(path, delimiter="\t", quoting=csv.QUOTE_NONE),
    "npy": _npy,
    "npz": _npz,
    "json": _json,
}


def _checked(found: npt.ArrayLike | Iterable[float], path: Path) -> Floats:
    raw = np.asarray(found)
    if raw.ndim != 1:
        raise ValueError(f"counts in {path} should be one-dimensional, got shape {raw.shape}")
    if raw.size and raw.dtype.kind not in "iuf":
        raise ValueError(f"counts in {path} should be numbers, got {raw.dtype}")
    counts = raw.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(counts) & (counts >= 0) & (counts == np.floor(counts))))
    if wrong.size:
        first = wrong[0]
        raise ValueError(
            f"counts in {path} should be whole numbers of at least 0: "
            f"{wrong.size} are not, the first is {raw[first]} at position {first}"
        )
    if len(counts) < 2:
        raise ValueError(f"counts in {path} hold {len(counts)} class(es); a label space needs at least 2")
    with np.errstate(over="ignore"):
        total = counts.sum()
    if not np.isfinite(total):
        raise ValueError(f"counts in {path} are too large: their sum is beyond a float64")
    if total == 0:
        raise ValueError(f"counts in {path} are all 0")
    return counts
