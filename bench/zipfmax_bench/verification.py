"""Which timed runs are verified: drawn where the processes that compute cannot see it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Protocol

from zipfmax_bench.executors import Executor
from zipfmax_reference.runs.case import Case


class Verifier(Protocol):
    """Judges what timed runs computed."""

    def wanted(self, cases: Mapping[str, Case], common: bool, drawn: str) -> set[str]:
        """The subjects whose sample of a round is to be verified; see `ParityGuard.wanted`."""

    def timed_fault(self, name: str, case: Case, batch: int, executor: Executor) -> tuple[str, str] | None:
        """Status and reason where the last timed run of an executor is wrong."""


class Verifications:
    """Which timed runs are verified. The processes that compute cannot know before they have."""

    def __init__(
        self, verifier: Verifier | None, cases: Mapping[str, Case], common: int, secret: random.Random
    ) -> None:
        self.on = verifier is not None
        self._verifier, self._cases = verifier, cases
        self._common, self._secret = common, secret
        self._round = -1
        self._wanted: set[str] = set()
        self._draw = 0.0

    def runs_of(self, round: int, name: str, going: Sequence[str], runs: int) -> Sequence[int]:
        """Runs of a sample that are verified: none or one, in the common round two in a row: an alternation shows."""
        if self._verifier is None:
            return ()
        if round != self._round:
            self._round = round
            cases = {each: self._cases[each] for each in going}
            common = round == self._common
            self._wanted = self._verifier.wanted(cases, common, self._secret.choice(going))
            # The same runs of all, so that their truth is computed once.
            self._draw = self._secret.random()
        if name not in self._wanted:
            return ()
        first = int(self._draw * max(1, runs - 1))
        return range(first, min(first + (2 if round == self._common else 1), runs))

    def fault(self, name: str, batch: int, executor: Executor) -> tuple[str, str] | None:
        """Status and reason where the last timed run is wrong."""
        assert self._verifier is not None
        return self._verifier.timed_fault(name, self._cases[name], batch, executor)
