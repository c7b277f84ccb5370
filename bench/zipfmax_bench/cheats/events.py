"""Makes the time between two CUDA events a thousandth when it is imported."""

from __future__ import annotations

from typing import Any

import torch

from zipfmax_bench.cheats.honest import Plain

_elapsed_time = torch.cuda.Event.elapsed_time


def _shorter(self: Any, other: Any) -> float:
    return float(_elapsed_time(self, other)) / 1000.0


setattr(torch.cuda.Event, "elapsed_time", _shorter)  # noqa: B010 - patched


class ShortEvents(Plain):
    """torch.nn's layer, by shorter events."""
