"""Real text without a download: `tokens:site-packages`, or anyone's files by `tokens:PATH...`.

The text is split by file into a part to train on and one to validate on, words become ids by falling frequency
in the training part, and both parts lie on the disk as raw uint32, mapped into memory. Files are read by as
many processes as there are cores; no list ever holds more than one chunk of files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sysconfig
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zipfmax import model_cache
from zipfmax.errors import UsageError
from zipfmax_bench.study.tokens import Encoded, Ids, Numbering, encode, kind_of
from zipfmax_bench.study.vocabulary import Vocabulary, falling
from zipfmax_reference.records import StudyText
from zipfmax_reference.runs.machine import usable_cores

FORM = "tokens:site-packages or tokens:PATH,PATH (files or folders)"
SITE_PACKAGES = "site-packages"
FORMAT = 1
"""Of the cached files."""
ONE_IN = 20
"""One file in so many is for validation; of few files the last tenth of each is."""
FEW_FILES = 2 * ONE_IN
CHUNK_BYTES = 8 * 2**20
LEAST_TRAIN, LEAST_VALID = 1000, 100


@dataclass(frozen=True)
class CorpusOptions:
    """What to read, and which words to keep."""

    tokens: str = f"tokens:{SITE_PACKAGES}"
    min_count: int = 5
    """Words that occur less often in the training part become <unk>."""
    classes: int | None = None
    """Keep that many words at most, <unk> among them."""
    megabytes: float | None = None
    """Read files, in the order of their hashes, until so many are read; None for all."""


@dataclass(frozen=True)
class Corpus:
    """A text as ids."""

    train: Ids
    """[n_train] ids, file after file."""
    valid: Ids
    """[n_valid] ids."""
    counts: npt.NDArray[np.int64]
    """[V] how often each id occurs in the training part; falling."""
    card: StudyText
    """What the text is, as it is recorded."""


@dataclass(frozen=True)
class TextSource:
    """The files of a text, in the order in which they are read."""

    root: Path
    files: tuple[Path, ...]
    is_valid: tuple[bool, ...]
    """Of each file; empty where the last tenth of each file is for validation."""

    @property
    def split(self) -> str:
        """How the text is split, in words."""
        if self.is_valid:
            return f"one file in {ONE_IN}, by the hash of its path, is for validation"
        return "the last tenth of each file is for validation"

    def identity(self, options: CorpusOptions) -> str:
        """Digest of everything that the ids depend on: names, sizes and times of the files, and the options."""
        digest = hashlib.sha256(f"{FORMAT} {options}".encode())
        for file in self.files:
            status = file.stat()
            digest.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:20]


def read_corpus(options: CorpusOptions, cache: Path | None = None, processes: int | None = None) -> Corpus:
    """The text, from the cache where it was read before.

    Args:
        options: which text.
        cache: a folder to keep it in; by default one in the user's cache of this package.
        processes: that read files; by default one a core.

    Raises:
        UsageError: text that is not there, that is too short, or with fewer words than `classes`.
    """
    found = source(options)
    folder = (cache or model_cache.folder() / "corpora") / found.identity(options)
    if not (folder / "card.json").is_file():
        started = time.monotonic()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            _make(Path(made), options, found, processes or usable_cores(), started)
            if not folder.exists():
                shutil.copytree(made, folder.with_suffix(f".{os.getpid()}"))
                folder.with_suffix(f".{os.getpid()}").rename(folder)
    return _load(folder)


def source(options: CorpusOptions) -> TextSource:
    """The files that a text is read from.

    Raises:
        UsageError: another form than `tokens:...`, or a path that is not there or holds no text.
    """
    form, _, argument = options.tokens.partition(":")
    if form != "tokens" or not argument:
        raise UsageError(f"the text {options.tokens!r} should be {FORM}")
    if argument == SITE_PACKAGES:
        root = Path(sysconfig.get_paths()["purelib"])
        files = [file for file in root.rglob("*.py") if file.is_file()]
    else:
        paths = [Path(part).resolve() for part in argument.split(",")]
        root = Path(os.path.commonpath([path if path.is_dir() else path.parent for path in paths]))
        files = [file for path in paths for file in _files(path)]
    if not files:
        raise UsageError(f"{options.tokens} holds no text")
    hashes = {file: _hash(file.relative_to(root).as_posix()) for file in set(files)}
    ordered = _within(sorted(hashes, key=lambda file: (hashes[file], file)), options.megabytes)
    is_valid = [hashes[file] % ONE_IN == 0 for file in ordered]
    if len(ordered) < FEW_FILES:
        is_valid = []
    elif not any(is_valid):
        is_valid[0] = True
    return TextSource(root, tuple(ordered), tuple(is_valid))


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big")


def _files(path: Path) -> Iterator[Path]:
    """The text files of a path; what is hidden or holds a zero byte is none."""
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise UsageError(f"no text at {path}")
    for file in path.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and file.is_file():
            with file.open("rb") as stream:
                if b"\0" not in stream.read(1024):
                    yield file


def _within(files: list[Path], megabytes: float | None) -> list[Path]:
    if megabytes is None:
        return files
    total = np.cumsum([file.stat().st_size for file in files])
    return files[: int(np.searchsorted(total, megabytes * 1e6)) + 1]


def _make(folder: Path, options: CorpusOptions, found: TextSource, processes: int, started: float) -> None:
    """Read the files and write train.u32, valid.u32, counts.npy, vocabulary.txt and card.json."""
    numbering = Numbering()
    raw = {True: folder / "valid.raw", False: folder / "train.raw"}
    counts = np.zeros(0, np.int64)
    with raw[True].open("wb") as valid, raw[False].open("wb") as train:
        for encoded, is_valid in _encoded(found, folder, processes):
            number_of = np.fromiter(
                map(numbering.__getitem__, encoded.tokens), np.uint32, len(encoded.tokens)
            )
            ids = number_of[encoded.numbers()]
            counts = np.concatenate([counts, np.zeros(len(numbering) - len(counts), np.int64)])
            for part, here in _parts(ids, encoded.lengths, is_valid):
                part.tofile(valid if here else train)
                if not here:
                    counts += np.bincount(part, minlength=len(counts))
    n_train, n_valid = (raw[part].stat().st_size // 4 for part in (False, True))
    if n_train < LEAST_TRAIN or n_valid < LEAST_VALID:
        raise UsageError(
            f"{options.tokens} has {n_train:,} tokens to train on and {n_valid:,} to validate, too few: at least "
            f"{LEAST_TRAIN:,} and {LEAST_VALID:,} are needed"
        )
    vocabulary = falling(list(numbering), counts, options.min_count, options.classes)
    digest = hashlib.sha256(vocabulary.counts.tobytes())
    shares = []
    for name, file in (("train", raw[False]), ("valid", raw[True])):
        shares.append(_ranked(file, folder / f"{name}.u32", vocabulary, digest))
        file.unlink()
    np.save(folder / "counts.npy", vocabulary.counts)
    (folder / "vocabulary.txt").write_bytes(b"\n".join(vocabulary.shown()))
    kinds = sorted({kind_of(file) for file in found.files})
    card = StudyText(
        tokens=options.tokens,
        kind=" and ".join(kinds),
        split=found.split,
        n_files=len(found.files),
        n_valid_files=sum(found.is_valid) or len(found.files),
        n_train=n_train,
        n_valid=n_valid,
        n_distinct=int((counts > 0).sum()),
        n_classes=len(vocabulary.counts),
        min_count=vocabulary.least_count,
        coverage=shares[0],
        valid_coverage=shares[1],
        zipf_slope=zipf_slope(vocabulary.counts),
        checksum=digest.hexdigest(),
        read_s=time.monotonic() - started,
        processes=processes,
    )
    (folder / "card.json").write_text(card.model_dump_json(indent=1) + "\n")


def _encoded(found: TextSource, folder: Path, processes: int) -> Iterator[tuple[Encoded, bool | None]]:
    """The chunks of the text in order, each with whether it is for validation; None where it has both."""
    groups: list[tuple[list[Path], bool | None]] = []
    if found.is_valid:
        for part in (False, True):
            files = [file for file, valid in zip(found.files, found.is_valid, strict=True) if valid is part]
            groups += [(chunk, part) for chunk in _chunks(files)]
    else:
        groups = [(chunk, None) for chunk in _chunks(found.files)]
    try:
        if min(processes, len(groups)) == 1:
            yield from ((encode(files), is_valid) for files, is_valid in groups)
            return
        with ProcessPoolExecutor(min(processes, len(groups)), mp_context=get_context("spawn")) as pool:
            into = [folder / f"{index}.chunk" for index in range(len(groups))]
            waiting = deque(
                pool.submit(encode, files, file) for (files, _), file in zip(groups, into, strict=True)
            )
            for (_, is_valid), file in zip(groups, into, strict=True):
                yield waiting.popleft().result(), is_valid
                file.unlink()
    except OSError as error:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}") from error


def _chunks(files: Sequence[Path]) -> Iterator[list[Path]]:
    chunk: list[Path] = []
    size = 0
    for file in files:
        chunk.append(file)
        size += file.stat().st_size
        if size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _parts(ids: Ids, lengths: Sequence[int], is_valid: bool | None) -> Iterator[tuple[Ids, bool]]:
    if is_valid is not None:
        yield ids, is_valid
        return
    start = 0
    for length in lengths:
        middle = start + length - length // 10
        yield ids[start:middle], False
        yield ids[middle : start + length], True
        start += length


def _ranked(raw: Path, into: Path, vocabulary: Vocabulary, digest: hashlib._Hash) -> float:
    """Write a part's ids, add them to the digest, and return the share that is not <unk>."""
    known = total = 0
    with raw.open("rb") as numbers, into.open("wb") as ids:
        while block := numbers.read(1 << 24):
            found = vocabulary.rank_of[np.frombuffer(block, np.uint32)]
            known += int((found != vocabulary.unknown).sum())
            total += len(found)
            found.tofile(ids)
            digest.update(found.tobytes())
    return known / max(total, 1)


def zipf_slope(counts: npt.NDArray[np.int64], first: int = 100, last: int = 50_000) -> float:
    """Exponent s of the law count ~ rank**-s, by least squares of logarithms between two ranks."""
    ranks = np.unique(np.geomspace(min(first, len(counts)), min(last, len(counts)), 200).astype(int))
    kept = ranks[counts[ranks - 1] > 0]
    if len(kept) < 2:
        return 0.0
    slope = np.polyfit(np.log(kept), np.log(counts[kept - 1].astype(np.float64)), 1)[0]
    return float(-slope)


def _load(folder: Path) -> Corpus:
    try:
        card = StudyText.model_validate(json.loads((folder / "card.json").read_bytes()))
        counts: npt.NDArray[np.int64] = np.load(folder / "counts.npy")
        train, valid = (np.memmap(folder / f"{part}.u32", np.uint32, "r") for part in ("train", "valid"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the cached text in {folder} cannot be read ({error}): remove that folder"
        ) from error
    return Corpus(train, valid, counts, card)
