"""Faults of the kinds that people make in adaptive softmax, each planted in an otherwise right layer.

`Control` is right, and made of small parts; a fault is a subclass with one part replaced. The parity check
has to catch every one of them (`zipfmax mutants`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipfmax.clusters import Cluster, ClusterLayout


class Control(nn.Module):
    """Adaptive softmax in plain torch operations, with torch.nn's constructor and parameter names."""

    fault = "none: this one is right"
    breaks: str | None = None
    """Rule of the protocol of calls that a fault in use breaks."""
    large = False
    """Whether it shows in large cases only."""

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        head_bias: bool = False,
    ) -> None:
        super().__init__()
        self.layout = ClusterLayout(in_features, n_classes, tuple(cutoffs), div_value)
        self.head = nn.Linear(in_features, self.layout.head_size, bias=head_bias)
        self.tail = nn.ModuleList(
            nn.Sequential(
                nn.Linear(in_features, self.width(tail), bias=False),
                nn.Linear(self.width(tail), tail.size, bias=False),
            )
            for tail in self.layout
        )

    def forward(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Output and mean loss; of one row where the input is [d]."""
        if hidden.dim() == 1:
            output, loss = Control.forward(self, hidden.unsqueeze(0), target.unsqueeze(0))
            return output.squeeze(0), loss
        if len(hidden) != len(target):
            raise RuntimeError("input and target have other numbers of rows")
        target = self.checked(target)
        head = self.normalised(self.head_logits(hidden))
        output = head.gather(1, target.clamp(max=head.shape[1] - 1).unsqueeze(1)).squeeze(1)
        for tail in self.layout:
            rows = self.member(tail, target).nonzero().squeeze(1)
            if len(rows) == 0:
                continue
            prior = head[rows, self.slot(tail)]
            within = self.normalised(self.tail_logits(tail, hidden[rows]))
            label = self.label(tail, target[rows]).clamp(0, tail.size - 1)
            joint = self.joint(tail, prior, within.gather(1, label.unsqueeze(1)).squeeze(1))
            output = output.index_copy(0, rows, joint)
        return self.returned(output, target), self.loss(output, target)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of all classes."""
        head = self.normalised(self.head_logits(hidden))
        parts = [head[:, : self.layout.shortlist_size]]
        for tail in self.layout:
            within = self.normalised(self.tail_logits(tail, hidden))
            parts.append(self.joint(tail, head[:, self.slot(tail), None], within))
        return torch.cat(parts, dim=1)

    def predict(self, hidden: Tensor) -> Tensor:
        """Most probable classes."""
        return self.log_prob(hidden).argmax(dim=1)

    # The parts that faults replace.

    def checked(self, target: Tensor) -> Tensor:
        """The targets, which have to be classes."""
        if len(target) and not 0 <= int(target.min()) <= int(target.max()) < self.layout.n_classes:
            raise RuntimeError("a target is not a class")
        return target

    def width(self, tail: Cluster) -> int:
        """Width of a tail's projection."""
        return tail.projection_size

    def member(self, tail: Cluster, target: Tensor) -> Tensor:
        """Which rows belong to a tail."""
        return (target >= tail.start) & (target < tail.stop)

    def slot(self, tail: Cluster) -> int:
        """The head's row of a tail."""
        return tail.slot

    def label(self, tail: Cluster, target: Tensor) -> Tensor:
        """Labels within the tail."""
        return target - tail.start

    def head_logits(self, hidden: Tensor) -> Tensor:
        """[N, head_size]"""
        return F.linear(hidden, self.head.weight, self.head.bias)

    def weights(self, tail: Cluster) -> tuple[Tensor, Tensor]:
        """A tail's projection and output weight."""
        projection, output = (cast(nn.Linear, linear) for linear in self.tail[tail.index].children())
        return projection.weight, output.weight

    def tail_logits(self, tail: Cluster, hidden: Tensor) -> Tensor:
        """[N, tail size]"""
        projection, output = self.weights(tail)
        return F.linear(F.linear(hidden, projection), output)

    def normalised(self, logits: Tensor) -> Tensor:
        """Log-probabilities of logits."""
        return F.log_softmax(logits, dim=1)

    def joint(self, tail: Cluster, prior: Tensor, within: Tensor) -> Tensor:
        """Log-probability of a tail's class from its cluster's and its own."""
        return prior + within

    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        """The output as the caller gets it."""
        return output

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss from log-probabilities in the rows' order."""
        return -output.mean()


FAULTS: dict[str, type[Control]] = {}
"""Those that one call shows."""
IN_USE: dict[str, type[Control]] = {}
"""Those that one call, and loss.backward() after it, does not show: the protocol of calls has to."""

_Fault = TypeVar("_Fault", bound=type[Control])


def planted(fault: str, among: dict[str, type[Control]] = FAULTS) -> Callable[[_Fault], _Fault]:
    """Enter a class among the faults under its own name in kebab case."""

    def enter(cls: _Fault) -> _Fault:
        cls.fault = fault
        name = "".join(f"-{c.lower()}" if c.isupper() else c for c in cls.__name__).lstrip("-")
        among[name] = cls
        return cls

    return enter


def in_use(fault: str, breaks: str) -> Callable[[_Fault], _Fault]:
    """Enter a class among those that the protocol of calls has to catch, with the rule that it breaks."""

    def enter(cls: _Fault) -> _Fault:
        cls.breaks = breaks
        return planted(fault, IN_USE)(cls)

    return enter


def scaled_gradient(value: Tensor, factor: float) -> Tensor:
    """The value itself, whose gradient is multiplied by a factor."""
    return value.detach() + factor * (value - value.detach()) if factor else value.detach()
