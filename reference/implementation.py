"""The interface in front of every implementation: zipfmax, torch.nn, Paddle, TensorFlow, the definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from zipfmax.reference.case import Case

Array = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]


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


class Runner(Protocol):
    """An implementation that holds a case's weights, ready to compute."""

    def load(self, hidden: Array, target: Labels) -> None:
        """Take a batch: copy it to the implementation's own tensors. Not part of a measurement."""

    def run(self) -> None:
        """Do the case's task once on the loaded batch: this is what is timed.

        "train" leaves fresh gradients of input and weights behind, and keeps none from earlier runs. On a GPU
        the call may return before the work is done.
        """

    def results(self) -> dict[str, Array]:
        """What the last run computed, as NumPy arrays on the host (bfloat16 widened to float32).

        "forward": output [N], loss []. "train": those and grad.input [N, d] and grad.NAME of every weight
        (zeros where the implementation left a gradient unset). "log_prob": log_prob [N, V].
        "predict": predict [N], integers.
        """


class Implementation(Protocol):
    """A named implementation."""

    name: str

    def lacks(self, case: Case) -> str | None:
        """Why it cannot do this case here (not installed, no such dtype, ...), or None where it can."""

    def build(self, case: Case, inputs: Inputs) -> Runner:
        """A runner with the case's weights copied in and its batch loaded."""
