"""The bundled cost models: what was measured on named hardware, for plans that measure nothing.

`hardware.json` holds them as `Calibration.to_record` does.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch

from zipfmax.calibration import Calibration

FILE = Path(__file__).with_name("hardware.json")


@cache
def bundled() -> tuple[Calibration, ...]:
    """Every bundled cost model."""
    return tuple(map(Calibration.from_record, json.loads(FILE.read_text(encoding="utf-8"))))


def nearest(device: torch.device, dtype: torch.dtype, task: str) -> Calibration | None:
    """The model for that kind of device: of this task and dtype where there is one, else of another.

    The processor and its threads do not matter: so a plan is the same on every machine, whatever else runs
    there. None where no model is of that kind of device.
    """
    name = str(dtype).removeprefix("torch.")

    def distance(one: Calibration) -> tuple[bool, bool]:
        return one.identity["task"] != task, one.identity["dtype"] != name

    return min(
        (one for one in bundled() if one.identity["device"] == device.type), key=distance, default=None
    )


def described(calibration: Calibration) -> str:
    """Where a cost model is from, in words: whether bundled or measured, the machine, the dtype and the task."""
    identity, origin = calibration.identity, "bundled" if calibration in bundled() else "measured"
    threads = f", {identity['threads']} threads" if identity["device"] == "cpu" else ""
    return f"{origin}: {identity['hardware']}{threads}, {identity['dtype']}, {identity['task']}"
