"""A run directory: `run.json` says what ran where, the `.jsonl` files hold one record a line.

Every record is on the disk before `append` returns, so a run killed at any moment keeps what it finished.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zipfmax.errors import UsageError
from zipfmax_reference.runs import machine

FORMAT = 1
RUN_FILE = "run.json"

# JSON has no such numbers; they travel as these strings and come back as floats.
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class RunDirectory:
    """An existing run directory; `create` makes one or takes one up again.

    Args:
        path: a folder that holds a `run.json`.

    Raises:
        UsageError: no readable `run.json` there, or one of a newer format.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.run = _read_run(self.path / RUN_FILE)
        self._mended: set[str] = set()

    @classmethod
    def create(
        cls, path: Path | str, arguments: Mapping[str, Any], resume: bool = False, command: str | None = None
    ) -> RunDirectory:
        """Make the folder and write `run.json`, or with `resume` go on with what is there.

        Args:
            path: the folder; its parents are made too.
            arguments: what the run was asked to do, as JSON holds it.
            resume: go on with an existing run; the resumption is noted in `run.json`. An empty or absent
                folder starts afresh.
            command: the command line to show; by default this process's own.

        Raises:
            UsageError: the folder cannot be written, holds something and `resume` is off, or is of a newer
                format.
        """
        path = Path(path)
        started = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "arguments": dict(arguments),
            "command": command if command is not None else _command_line(),
            "machine": machine.describe(),
            "versions": machine.versions(),
            "commit": machine.commit(),
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            occupied = any(path.iterdir())
            if occupied and not resume:
                raise UsageError(f"{path} is not empty: choose another folder, or go on with it by --resume")
            if occupied:
                run = _read_run(path / RUN_FILE)
                run["resumed"] = [*run.get("resumed", []), started]
            else:
                run = {"format": FORMAT, **started}
            _write_whole(path / RUN_FILE, json.dumps(_encoded(run), indent=2) + "\n")
        except OSError as error:
            raise UsageError(f"cannot write to {path}: {error.strerror or error}") from error
        return cls(path)

    def append(self, kind: str, record: Mapping[str, Any]) -> None:
        """Add one record to `KIND.jsonl`; it is on the disk when this returns."""
        self.append_all(kind, [record])

    def append_all(self, kind: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Add several records by one write."""
        lines = "".join(json.dumps(_encoded(dict(record)), allow_nan=False) + "\n" for record in records)
        file = self.path / f"{kind}.jsonl"
        try:
            if kind not in self._mended:
                _drop_torn_line(file)
                self._mended.add(kind)
            with file.open("ab") as stream:
                stream.write(lines.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise UsageError(f"cannot write to {file}: {error.strerror or error}") from error

    def records(self, kind: str) -> list[dict[str, Any]]:
        """The records of a kind, in the order they were written; none where the file is absent.

        A last line that a killed run left half written is passed over with a warning.

        Raises:
            UsageError: a line before the last that is not JSON.
        """
        file = self.path / f"{kind}.jsonl"
        if not file.exists():
            return []
        lines = file.read_bytes().split(b"\n")
        torn = lines.pop()
        if torn:
            warnings.warn(f"{file}: ignored a half-written last line", stacklevel=2)
        found = []
        for number, line in enumerate(lines, start=1):
            try:
                found.append(_decoded(json.loads(line)))
            except ValueError as error:
                raise UsageError(f"{file}: line {number} is not JSON ({error})") from error
        return found

    def done(self, kind: str, key: Sequence[str] = ("case", "impl")) -> set[tuple[Any, ...]]:
        """What the records already cover, as tuples of the fields in `key`: what `--resume` leaves out."""
        return {tuple(record.get(field) for field in key) for record in self.records(kind)}


def default_path(command: str) -> Path:
    """A fresh folder name for a run that was given none, such as `runs/sweep-20261124-071500`."""
    return Path("runs") / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"


def _read_run(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise UsageError(f"{file.parent} is not a run directory: it has no {RUN_FILE}")
    try:
        run = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    version = run.get("format") if isinstance(run, dict) else None
    if not isinstance(version, int):
        raise UsageError(f"{file} has no format number, so it is not a run of zipfmax")
    if version > FORMAT:
        raise UsageError(f"{file} has format {version}; this zipfmax reads up to {FORMAT}: use a newer one")
    decoded: dict[str, Any] = _decoded(run)
    return decoded


def _write_whole(file: Path, text: str) -> None:
    partial = file.with_suffix(".partial")
    with partial.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def _drop_torn_line(file: Path) -> None:
    """Cut off a half-written last line, so that the next record does not continue it."""
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        with file.open("r+b") as stream:
            stream.truncate(whole)


def _encoded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _encoded(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encoded(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()  # NumPy's scalars are not JSON's
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _decoded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    return value


def _command_line() -> str:
    name = Path(sys.argv[0]).name
    program = "zipfmax" if name in ("zipfmax", "__main__.py", "cli.py") else name
    return shlex.join([program, *sys.argv[1:]])
