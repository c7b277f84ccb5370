"""Which timed runs are verified: drawn where the processes that compute cannot see it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Protocol

from zipfmax import timing
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
        self._run = 0

    def run_of(self, round: int, name: str, going: Sequence[str], runs: int) -> int | None:
        """Which of a sample's runs is verified; None for no one."""
        if self._verifier is None:
            return None
        if round != self._round:
            self._round = round
            cases = {each: self._cases[each] for each in going}
            common = round == self._common
            self._wanted = self._verifier.wanted(cases, common, self._secret.choice(going))
            # The same run of all, so that their truth is computed once.
            self._run = self._secret.randrange(timing.RUNS_OF_A_SHORT_SAMPLE)
        return self._run % runs if name in self._wanted else None

    def fault(self, name: str, batch: int, executor: Executor) -> tuple[str, str] | None:
        """Status and reason where the last timed run is wrong."""
        assert self._verifier is not None
        return self._verifier.timed_fault(name, self._cases[name], batch, executor)
