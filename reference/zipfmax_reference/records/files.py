"""Files that a command leaves behind: refused before the work where they cannot be written, written after it."""

from __future__ import annotations

from pathlib import Path

from zipfmax.errors import UsageError


def check_writable(*files: Path | None) -> None:
    """Make the folders of the files, and see that each file can be opened for writing; None is passed over.

    What a file holds stays, and one that was not there is not left behind.

    Raises:
        UsageError: one that cannot be written.
    """
    for file in files:
        if file is None:
            continue
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            there = file.exists()
            file.open("ab").close()
            if not there:
                file.unlink()
        except OSError as error:
            raise _refusal(file, error) from error


def write_text(file: Path, text: str) -> None:
    """Write a file as UTF-8, making its folder.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _refusal(file, error) from error


def _refusal(file: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write {file}: {error.strerror or error}")
