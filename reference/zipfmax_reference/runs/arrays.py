"""What a case is computed on, and what computing it gives, as NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]
Results = dict[str, npt.NDArray[Any]]
"""Tensor name -> what was computed, on the host."""

CLASSES = ("predict", "topk.classes")
"""Results that are classes, best first. The probability of what was picked counts: a tie may fall either way."""


@dataclass(frozen=True)
class Inputs:
    """What a case is computed on: values that the case's dtype holds exactly, so that an implementation

    and the float64 definition start from the same numbers. The arrays are float64 for a float64 case and
    float32 for the others.
    """

    hidden: Array
    """[N, d]"""
    target: Labels
    """[N]"""
    weights: dict[str, Array]
    """By torch.nn's parameter names: head.weight, head.bias, tail.0.0.weight, tail.0.1.weight, ..."""
