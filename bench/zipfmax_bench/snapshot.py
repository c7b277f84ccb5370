"""What results hold at the moment when the clock stops, at a few random places.

Results that a thread or another stream fills in later differ from it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_PLACES = 64
_places = random.SystemRandom().choices
_index_select, _tensor = torch.index_select, torch.tensor


@dataclass(frozen=True)
class Snapshot:
    """Values of a tensor at some of its elements."""

    places: list[int]
    """In row-major order."""
    values: torch.Tensor

    def holds(self, results: npt.NDArray[Any]) -> bool:
        """Whether the tensor, which is on the host now, still has these values."""
        now = np.asarray(results).reshape(-1)[self.places]
        then = (self.values.float() if self.values.dtype == torch.bfloat16 else self.values).cpu().numpy()
        return bool(np.array_equal(now, then, equal_nan=now.dtype.kind == "f"))


def snapshots(runner: object) -> dict[str, Snapshot]:
    """By name, of every result of a runner whose `tensors()` are torch's; nothing for other runners."""
    tensors = getattr(runner, "tensors", None)
    if tensors is None:
        return {}
    found = {}
    for name, tensor in tensors().items():
        if tensor.numel() and tensor.is_contiguous():
            places = _places(range(tensor.numel()), k=_PLACES)
            at = _tensor(places, device=tensor.device)
            found[name] = Snapshot(places, _index_select(tensor.detach().view(-1), 0, at))
    return found
