"""What a run was asked to do, and on what machine: `run.json`."""

from __future__ import annotations

from typing import Any

from zipfmax_reference.records.base import FORMAT, Part


class Machine(Part):
    """A machine as a process sees it."""

    cpu: str | None = None
    """The processor's name, with family and model where the system tells them."""
    cores: int | None = None
    """Cores that the process may use."""
    memory_bytes: int | None = None
    """What is installed."""
    threads: int | None = None
    """torch's number of threads."""
    omp_num_threads: str | None = None
    """The environment's OMP_NUM_THREADS."""
    gpus: list[str] = []
    """Names of the GPUs."""
    os: str | None = None
    python: str | None = None


class Invocation(Part):
    """One command that wrote to a run directory."""

    created: str = ""
    """When it started, ISO 8601 in UTC."""
    arguments: dict[str, Any] = {}
    """What it was asked to do."""
    command: str | None = None
    """The command line."""
    machine: Machine = Machine()
    versions: dict[str, str | None] = {}
    """Installed versions by name; null for what is not installed."""
    sources: dict[str, str] = {}
    """Digest of the source of each user's class, by its name."""
    commit: str | None = None
    """Git commit of the code, with "-dirty" for local changes; null where it is not a checkout."""


class RunMeta(Invocation):
    """The object in `run.json`: the first command, and those that went on with the run."""

    format: int = FORMAT
    """Version of the records."""
    resumed: list[Invocation] = []
