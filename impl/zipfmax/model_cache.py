"""Measured cost models on disk, best effort: a folder or a file that is wrong costs a warning, never a plan."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from zipfmax.errors import one_line

T = TypeVar("T")


def folder() -> Path:
    """The user's cache of this package, by the conventions of platformdirs.

    `XDG_CACHE_HOME` counts where it is an absolute path, as its specification has it.

    Raises:
        RuntimeError: there is no home directory.
    """
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "zipfmax" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "zipfmax"
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "zipfmax"


def cached(
    identity: Mapping[str, Any],
    parse: Callable[[Mapping[str, Any]], T],
    make: Callable[[], T],
    record_of: Callable[[T], Mapping[str, Any]],
    *,
    refresh: bool = False,
) -> T:
    """What the cache holds for an identity, or else what `make` makes, which is then kept.

    A file that is corrupt, unreadable or of another identity counts as absent. What went wrong is told by
    one warning.

    Args:
        identity: what the value is valid for; the record holds it as "identity".
        parse: reads a record; raises where it is none.
        make: makes a new value.
        record_of: the value as JSON holds it.
        refresh: make a new one, whatever the cache holds.
    """
    complaint: str | None = None
    try:
        path = folder() / f"cost-{_digest(identity)}.json"
    except RuntimeError as error:
        path, complaint = None, f"there is no folder for cost models ({error})"
    if path is not None and not refresh:
        try:
            return _read(path, identity, parse)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            complaint = (
                f"the cost model in {path} is left aside ({one_line(error)}), a fresh one takes its place"
            )
    made = make()
    if path is not None:
        try:
            _write(path, record_of(made))
        except OSError as error:
            complaint = complaint or f"the cost model is not kept for the next time ({one_line(error)})"
    if complaint is not None:
        warnings.warn(complaint, stacklevel=3)
    return made


def _read(path: Path, identity: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], T]) -> T:
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["identity"] != identity:
        raise ValueError("it is of another machine or version")
    return parse(record)


def _write(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}")
    try:
        scratch.write_text(json.dumps(record, indent=1), encoding="utf-8")
        scratch.replace(path)  # whole or not at all, whoever else calibrates meanwhile
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
