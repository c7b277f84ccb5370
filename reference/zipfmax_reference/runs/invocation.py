"""What a command notes of itself in the `run.json` of a run directory."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zipfmax_reference.records import Invocation, Machine
from zipfmax_reference.runs import machine


def invocation(
    arguments: Mapping[str, Any], command: str | None = None, sources: Mapping[str, str] | None = None
) -> Invocation:
    """This process on this machine, now.

    Args:
        arguments: what it was asked to do.
        command: the command line to show; by default this process's own.
        sources: digest of the source of each user's class, by its name.
    """
    return Invocation(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        arguments=dict(arguments),
        command=command if command is not None else _command_line(),
        machine=Machine(**machine.describe()),
        versions=machine.versions(),
        sources=dict(sources or {}),
        commit=machine.commit(),
    )


def _command_line() -> str:
    name = Path(sys.argv[0]).name
    program = "zipfmax" if name in ("zipfmax", "__main__.py", "cli.py") else name
    return shlex.join([program, *sys.argv[1:]])
