"""A study as the page reads it: its text, layers, curves and map."""

from __future__ import annotations

from dataclasses import dataclass

from zipfmax_reference.records import (
    RunDirectory,
    StudyLayer,
    StudyMap,
    StudyPoint,
    StudyRun,
    StudyText,
    StudyTrunk,
)
from zipfmax_reference.records.study_readings import Readings

FULL = "full"


@dataclass(frozen=True)
class RecordedStudy:
    """A study as it was recorded."""

    text: StudyText | None
    layers: dict[str, StudyLayer]
    runs: list[StudyRun]
    readings: Readings
    cells: list[StudyMap]
    trunks: list[StudyTrunk]
    command: str

    @classmethod
    def read(cls, directory: RunDirectory) -> RecordedStudy | None:
        """The study in a run directory; None where there is none."""
        runs = directory.latest(StudyRun)
        cells, trunks = directory.latest(StudyMap), directory.latest(StudyTrunk)
        readings = Readings.of(directory.read(StudyPoint), runs)
        if not readings.curves and not cells:
            return None
        texts = directory.read(StudyText)
        layers = {layer.layer: layer for layer in directory.latest(StudyLayer)}
        command = directory.meta.command or "zipfmax study"
        return cls(texts[0] if texts else None, layers, runs, readings, cells, trunks, command)

    @property
    def main(self) -> str | None:
        """The layer that is judged: zipfmax as most would use it, or the first of zipfmax's."""
        own = [layer for layer in self.readings.layers if layer.partition(":")[0] == "zipfmax"]
        return "zipfmax" if "zipfmax" in own else own[0] if own else None

    def whole_step(self, layer: str) -> float | None:
        """How many times as fast a whole step is as with full softmax."""
        own, full = self.layers.get(layer), self.layers.get(FULL)
        if own is None or full is None or own.step_s is None or full.step_s is None:
            return None
        return full.step_s / own.step_s
