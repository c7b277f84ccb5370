"""The interface in front of every implementation: zipfmax, torch.nn, Paddle, TensorFlow, the definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from zipfmax_reference.runs.arrays import Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case

Family = Literal["adaptive", "full"]
"""Which function is computed: adaptive softmax on the case's weights, or full softmax on `full.weight`."""


@dataclass(frozen=True)
class GradientSupport:
    """What an implementation says of its gradients. Inexact ones are no baseline for a speedup."""

    exact: bool
    """Whether they are those of the loss that `family` names, up to rounding."""
    why: str


class Runner(Protocol):
    """An implementation that holds a case's weights, ready to compute."""

    def load(self, hidden: Array, target: Labels) -> None:
        """Take a batch: copy it to the implementation's own tensors. Not part of a measurement."""

    def run(self) -> None:
        """Do the case's task once on the loaded batch: this is what is timed.

        "forward", "log_prob", "predict" and "topk" run without recording gradients. "train" drops the
        gradients of earlier runs and leaves fresh ones of input and weights behind; the dropping is part of
        the step, for every implementation alike. On a GPU the call may return before the work is done.
        """

    def results(self) -> Results:
        """What the last run computed, as NumPy arrays on the host (bfloat16 widened to float32).

        "forward": output [N], loss []. "train": those and grad.input [N, d] and grad.NAME of every weight
        (zeros where the implementation left a gradient unset). "log_prob": log_prob [N, V].
        "predict": predict [N], integers. "topk": topk.values [N, k], log-probabilities, descending, and
        topk.classes [N, k], integers. Full softmax has no output, and grad.full.weight for its weight.
        """

    def mismatches(self) -> dict[str, str]:
        """Results of the last run whose own dtype or device is not the input's: tensor name -> what it is.

        Told by the implementation, because `results` has already brought everything to the host.
        """


class Implementation(Protocol):
    """A named implementation."""

    @property
    def name(self) -> str:
        """The name it is known by."""

    @property
    def family(self) -> Family:
        """Which function it computes."""

    def unsupported_reason(self, case: Case) -> str | None:
        """Why it cannot do this case here (not installed, no such dtype, ...), or None where it can."""

    def build(self, case: Case, inputs: Inputs) -> Runner:
        """A runner with the case's weights copied in and its batch loaded."""


AS_DEFINED = GradientSupport(True, "computed as defined; parity is judged against the definition")


def gradients(implementation: Implementation) -> GradientSupport:
    """What an implementation says of its gradients; one that says nothing claims that they are exact."""
    own: GradientSupport = getattr(implementation, "gradients", AS_DEFINED)
    return own


def build_for_timing(implementation: Implementation, case: Case, inputs: Inputs) -> Runner:
    """A runner with the fastest exact settings: by `build_fastest` where there is a choice, or by `build`."""
    fastest: Callable[[Case, Inputs], Runner] | None = getattr(implementation, "build_fastest", None)
    return (fastest or implementation.build)(case, inputs)


def settings_of(runner: Runner) -> str | None:
    """What a runner was set to, in words; None where there was no choice."""
    text: str | None = getattr(runner, "settings", None)
    return text or None
