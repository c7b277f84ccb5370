"""Progress of a long run in the terminal: a bar that estimates what is left, or plain lines in a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class SweepProgress:
    """Shows which case is running and about how long the rest will take.

    Args:
        weights: expected cost of each case in any unit; elapsed time scales it.
        console: where to draw.
    """

    def __init__(self, weights: list[float], console: Console) -> None:
        self._weights = weights
        self._finished = 0
        self._started = time.monotonic()
        self._console = console
        self._bar = Progress(
            TextColumn("{task.fields[left]:>16}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),  # may hold the name of a file
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=len(weights), left="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, text: str) -> None:
        """A case starts."""
        self._bar.update(self._task, description=text, left=self.remaining())
        if not self._console.is_terminal:
            place = f"[{self._finished + 1}/{len(self._weights)}]"
            self._console.print(f"{place} {text}  {self.remaining()}", highlight=False, markup=False)

    def finish(self) -> None:
        """The case that was begun is recorded."""
        self._finished += 1
        self._bar.update(self._task, completed=self._finished, left=self.remaining())

    def remaining(self) -> str:
        """Text such as "about 2 min left"; empty before the first case is done."""
        spent = sum(self._weights[: self._finished])
        if spent == 0:
            return ""
        elapsed_s = time.monotonic() - self._started
        return f"about {_span(elapsed_s * sum(self._weights[self._finished :]) / spent)} left"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
