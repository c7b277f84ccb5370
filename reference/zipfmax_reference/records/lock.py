"""One process at a time writes a run directory."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from weakref import WeakValueDictionary

from zipfmax.errors import UsageError


class DirectoryLock:
    """Held from `take` until the last object that holds it is gone, or the process.

    The folder itself is locked (flock), so nothing is left in it and a killed process leaves no lock. A file
    system that has no such lock, as some network ones, is written without.
    """

    _held: WeakValueDictionary[Path, DirectoryLock] = WeakValueDictionary()

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, folder: Path) -> DirectoryLock:
        """The lock of a folder: this process's, if it holds it already.

        Raises:
            UsageError: another process holds it.
        """
        place = folder.resolve()
        if place not in cls._held:
            lock = cls._held[place] = cls(os.open(place, os.O_RDONLY))
            try:
                fcntl.flock(lock._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise UsageError(f"{folder} is being written by another process: let it end") from error
        return cls._held[place]

    def __del__(self) -> None:
        os.close(self._descriptor)
