"""How many threads an implementation computes with, and how a worker process is told."""

from __future__ import annotations

import os

from zipfmax.errors import UsageError
from zipfmax_reference.runs.machine import THREAD_VARIABLES, usable_cores

# Intel's OpenMP keeps idle threads spinning for 200 ms, into the next worker's sample. One millisecond spans
# the gaps within a run and is over before the next worker has drawn its batch.
_SPIN = {"KMP_BLOCKTIME": "1"}


def worker_environment(threads: int) -> dict[str, str]:
    """This process's environment with the thread count of every framework set, equal for all."""
    return {**os.environ, **_SPIN, **dict.fromkeys(THREAD_VARIABLES, str(threads))}


MOST_THREADS = 4096
"""That a command takes: no machine has more."""


def checked_threads(threads: int | None) -> None:
    """Raise UsageError where a number of threads is given that no machine has."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"--threads should be from 1 to {MOST_THREADS}, got {threads}")


def default_threads() -> int:
    """Threads of an implementation where a command is given none: OMP_NUM_THREADS, or all usable cores.

    Of a list, as for nested parallel regions, the first number counts; what is not a number of threads is passed
    over, as OpenMP does.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if given.isdecimal() and 1 <= int(given) <= MOST_THREADS:
        return int(given)
    return usable_cores()
