"""A run directory: `run.json` says what ran where, each `.jsonl` file holds the records of one type.

Every record is on the disk before `write` returns, so a run killed at any moment keeps what it finished. A
last line that was cut short is left out when it is read and cut off before the next one is written.
"""

from __future__ import annotations

import json
import os
from itertools import groupby
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from zipfmax.errors import UsageError
from zipfmax_reference.records import former
from zipfmax_reference.records.base import FORMAT, Part, Record
from zipfmax_reference.records.lock import DirectoryLock
from zipfmax_reference.records.meta import Invocation, RunMeta

RUN_FILE = "run.json"

R = TypeVar("R", bound=Record)
P = TypeVar("P", bound=Part)


class RunDirectory:
    """An existing run directory; `start` makes one or goes on with one.

    Args:
        path: a folder that holds a `run.json`.

    Attributes:
        meta: the object in `run.json`.
        remarks: what a reader should know of the files read so far: last lines that were cut short.

    Raises:
        UsageError: the folder has no readable `run.json`, or one of a format that is not known here.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.meta = _read_meta(self.path / RUN_FILE)
        self.remarks: list[str] = []
        self._mended: set[str] = set()
        self._lock: DirectoryLock | None = None

    @classmethod
    def optional(cls, path: Path | None, invocation: Invocation, resume: bool) -> Self | None:
        """As `start`, for a command that need not keep its records: None where no folder is given.

        Raises:
            UsageError: as `start`; or `resume` without a folder.
        """
        if path is None and resume:
            raise UsageError("--resume needs --out: the run directory to go on with")
        return None if path is None else cls.start(path, invocation, resume)

    @classmethod
    def start(
        cls, path: Path | str, invocation: Invocation, resume: bool = False, shared: bool = False
    ) -> Self:
        """Make the folder and write `run.json`, or with `resume` go on with what is there.

        Args:
            path: the folder; its parents are made too.
            invocation: what runs, where.
            resume: go on with an existing run, and note that in `run.json`. An empty folder, as a run leaves
                that was killed at once, starts afresh.
            shared: whether other processes of the same job write it too; otherwise it is locked as long as
                the object lives.

        Raises:
            UsageError: the folder cannot be written, holds something and `resume` is off, is absent and
                `resume` is on, is being written by another process, or holds a run of another format or of
                other source of a user's class.
        """
        path = Path(path)
        if path.is_file():
            raise UsageError(f"{path} is a file: a run directory is a folder")
        if resume and not path.exists():
            raise UsageError(f"there is no run to go on with at {path}: leave --resume out to start one")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = None if shared else DirectoryLock.take(path)
            occupied = any(path.iterdir())
            if occupied and not resume:
                raise UsageError(f"{path} is not empty: choose another folder, or go on with it by --resume")
            if occupied:
                meta = _read_meta(path / RUN_FILE)
                if meta.format != FORMAT:
                    raise UsageError(
                        f"{path} is a run of format {meta.format}, which can be read but not gone on with: "
                        f"this zipfmax writes format {FORMAT}"
                    )
                for name in _changed(meta, invocation):
                    raise UsageError(
                        f"{name}{_read_by(name)} has changed since the run in {path}, whose records are of what "
                        "it was: choose another --out"
                    )
                meta = meta.model_copy(update={"resumed": [*meta.resumed, invocation]})
            else:
                meta = RunMeta(**invocation.model_dump())
            _write_whole(path / RUN_FILE, meta.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise UsageError(f"cannot write to {path}: {error.strerror or error}") from error
        started = cls(path)
        started._lock = lock
        return started

    def write(self, *records: Record) -> None:
        """Add records to their files, those of one type by one write; they are on the disk on return.

        Raises:
            UsageError: a file that cannot be written.
        """
        for name, group in groupby(records, key=lambda record: record.FILE):
            self._append(name, "".join(record.model_dump_json() + "\n" for record in group))

    def read(self, kind: type[R]) -> list[R]:
        """The records of a type in the order they were written; none where there is no file.

        A last line that was cut short is left out and named in `remarks`.

        Raises:
            UsageError: a line that is not a record of the type.
        """
        file = self.path / f"{kind.FILE}.jsonl"
        lines, torn = _lines(file)
        remark = f"{file.name}: the last line (line {len(lines) + 1}) is half-written and was left out."
        if torn and remark not in self.remarks:
            self.remarks.append(remark)
        return [_parsed(kind, line, self.meta.format, f"{file}, line {n}") for n, line in enumerate(lines, 1)]

    def rows(self, kind: type[Record]) -> list[dict[str, Any]]:
        """As `read`, each record as a dict of its fields."""
        return [record.model_dump() for record in self.read(kind)]

    def latest(self, kind: type[R]) -> list[R]:
        """As `read`, and of records with the same key only the last."""
        return list({record.key: record for record in self.read(kind)}.values())

    def finished(self, kind: type[Record]) -> set[tuple[Any, ...]]:
        """Keys of the records of a type: what a resumed run leaves out."""
        return {record.key for record in self.read(kind)}

    def _append(self, name: str, text: str) -> None:
        file = self.path / f"{name}.jsonl"
        try:
            if name not in self._mended:
                _drop_torn_line(file)
                self._mended.add(name)
            with file.open("ab") as stream:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise UsageError(f"cannot write to {file}: {error.strerror or error}") from error


def _read_meta(file: Path) -> RunMeta:
    if not file.parent.is_dir():
        raise UsageError(f"no run directory at {file.parent}; zipfmax verify and zipfmax sweep write one")
    if not file.is_file():
        raise UsageError(f"{file.parent} is not a run directory: it has no {RUN_FILE}")
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{file} is not valid JSON: {error}") from error
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise UsageError(f'{file} should hold an object with an integer "format"')
    if not former.OLDEST <= version <= FORMAT:
        raise UsageError(
            f"{file} is of format {version}; this zipfmax reads formats {former.OLDEST} to {FORMAT}: "
            "use another version"
        )
    if version < FORMAT:
        resumed = [former.upgraded(Invocation, entry) for entry in content.get("resumed", [])]
        content = {**former.upgraded(RunMeta, content), "resumed": resumed}
    try:
        return RunMeta.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{file}: {_first(error)}") from error


def _read_by(name: str) -> str:
    return "" if name.startswith(("saved:", "counts:")) else ", or a file that it imports,"


def _changed(meta: RunMeta, invocation: Invocation) -> list[str]:
    """The classes whose source is not that of an earlier command of the run."""
    return [
        name
        for earlier in (meta, *meta.resumed)
        for name, digest in earlier.sources.items()
        if invocation.sources.get(name, digest) != digest
    ]


def _lines(file: Path) -> tuple[list[bytes], bool]:
    """Whole lines of a file, and whether one that was cut short follows them."""
    try:
        content = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error
    *lines, rest = content.split(b"\n")
    return lines, bool(rest.strip())


def _parsed(kind: type[P], line: bytes, version: int, where: str) -> P:
    try:
        fields = json.loads(line)
        if version < FORMAT and isinstance(fields, dict):
            fields = former.upgraded(kind, fields)
        return kind.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"{where}: {_first(error)}") from error
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error


def _first(error: ValidationError) -> str:
    """The first of a record's faults, in one line."""
    fault = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, fault["loc"]))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{field}: {fault['msg']}{more}" if field else f"{fault['msg']}{more}"


def _write_whole(file: Path, text: str) -> None:
    partial = file.with_suffix(".partial")
    with partial.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def _drop_torn_line(file: Path) -> None:
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        with file.open("r+b") as stream:
            stream.truncate(whole)
