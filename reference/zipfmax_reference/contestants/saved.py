"""Results carried from another machine: what an implementation computed there, as a reference here.

A framework that does not run where another is verified, such as Paddle beside a GPU, is run elsewhere:
`zipfmax verify --impl paddle --save-results DIR` keeps what it computed, and `--against saved:DIR` reads it.
Each file also holds a digest of the inputs, so results are never compared on other numbers than their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from zipfmax.errors import UsageError
from zipfmax_reference.contestants.implementation import Family, Implementation
from zipfmax_reference.runs.arrays import Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case

PREFIX = "saved:"
_DIGEST, _OF, _FAMILY = "#inputs", "#implementation", "#family"


def save(directory: Path, case: Case, implementation: Implementation, inputs: Inputs) -> None:
    """Run an implementation once and keep its results; nothing where it lacks what the case needs."""
    if implementation.unsupported_reason(case) is not None:
        return
    runner = implementation.build(case, inputs)
    runner.run()
    told = {_DIGEST: _digest(inputs), _OF: implementation.name, _FAMILY: implementation.family}
    directory.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {**runner.results(), **{k: np.array(v) for k, v in told.items()}}
    np.savez_compressed(_file(directory, case), **arrays)


class SavedResults:
    """The results in a directory as an implementation.

    Args:
        directory: what `--save-results` wrote.

    Raises:
        UsageError: there are no results in it.
    """

    orders = 1
    """It can be asked for the inputs' own order of summation alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        files: Sequence[Path] = sorted(directory.glob("*.npz"))
        if not files:
            raise UsageError(
                f"{directory} holds no saved results; make them with: "
                f"zipfmax verify --impl NAME --save-results {directory}"
            )
        with np.load(files[0]) as first:
            self.family: Family = "full" if str(first[_FAMILY]) == "full" else "adaptive"

    @property
    def name(self) -> str:
        """`saved:DIRECTORY`."""
        return f"{PREFIX}{self._directory}"

    def unsupported_reason(self, case: Case) -> str | None:
        """This case was not among those that were run."""
        return None if _file(self._directory, case).is_file() else "the case is not among the saved results"

    def build(self, case: Case, inputs: Inputs) -> SavedRunner:
        """The case's results.

        Raises:
            ValueError: they were computed from other inputs.
        """
        with np.load(_file(self._directory, case)) as file:
            if str(file[_DIGEST]) != _digest(inputs):
                raise ValueError(f"the results of {file[_OF]} were computed from other inputs than these")
            return SavedRunner({name: file[name] for name in file.files if not name.startswith("#")})


class SavedRunner:
    """One case's results, which no run changes."""

    def __init__(self, results: Results) -> None:
        self._results = results

    def load(self, hidden: Array, target: Labels) -> None:
        """Refuse: there are results of one batch.

        Raises:
            ValueError: always.
        """
        raise ValueError("saved results are of one batch and cannot take another")

    def run(self) -> None:
        """Nothing to do."""

    def results(self) -> Results:
        """What was saved."""
        return self._results

    def mismatches(self) -> dict[str, str]:
        """None: the arrays keep their dtype."""
        return {}


def _file(directory: Path, case: Case) -> Path:
    """The same whatever device the case is on."""
    identity = replace(case, device="cpu").id
    return directory / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.npz"


def _digest(inputs: Inputs) -> str:
    digest = hashlib.sha256()
    for array in (inputs.hidden, inputs.target, *(inputs.weights[name] for name in sorted(inputs.weights))):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
