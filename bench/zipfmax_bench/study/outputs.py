"""The output layers that a study compares, by name.

    full                    full softmax: linear and cross entropy on a CPU, the fastest exact one on a GPU
    full:liger              that implementation of full softmax, or any other of `zipfmax sweep --impl`
    zipfmax                 this package's layer with customary cutoffs and div_value 4
    torch                   torch.nn's, likewise
    sampled                 sampled softmax with log-uniform candidates, corrected by log q

After zipfmax: and torch: may follow options, separated by commas: cutoffs=customary, cutoffs=fine (three tails),
cutoffs=plan (what `zipfmax plan` chooses) or cutoffs=2000/10000; div=2; and for zipfmax least=16, the least
width of a tail's projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.clusters import ClusterLayout
from zipfmax.errors import UsageError, unknown
from zipfmax.planner import plan_cutoffs
from zipfmax_bench.presets import customary_cutoffs
from zipfmax_bench.study.full import Chosen
from zipfmax_reference.contestants import registry

ADAPTIVE = ("zipfmax", "torch")
FINE = (0.02, 0.08, 0.37)
"""Three tails in the proportions of 5,000, 20,000 and 100,000 of 267,735 words."""


@dataclass(frozen=True)
class LayerName:
    """An output layer as it was asked for."""

    name: str
    kind: str
    """"zipfmax", "torch", or the name of a full softmax or of a sampled one."""
    cutoffs: str = "customary"
    div_value: float = 4.0
    least: int = 1

    @property
    def is_adaptive(self) -> bool:
        """Whether it has clusters."""
        return self.kind in ADAPTIVE

    def layout(
        self, counts: npt.NDArray[np.int64], in_features: int, rows: int, device: str, dtype: str
    ) -> ClusterLayout:
        """Its partition of words with these counts.

        Raises:
            UsageError: cutoffs or options that allow none.
        """
        n_classes = len(counts)
        try:
            if self.cutoffs == "plan":
                return plan_cutoffs(
                    counts,
                    in_features,
                    rows,
                    self.div_value,
                    device=device,
                    dtype=getattr(torch, dtype),
                    min_projection=self.least,
                ).layout
            if self.cutoffs == "customary":
                cutoffs = customary_cutoffs(n_classes)
            elif self.cutoffs == "fine":
                cutoffs = tuple(max(i + 1, round(share * n_classes)) for i, share in enumerate(FINE))
            else:
                cutoffs = tuple(int(part) for part in self.cutoffs.split("/"))
            layout = ClusterLayout(in_features, n_classes, cutoffs, self.div_value)
            sizes = tuple(max(size, self.least) for size in layout.projection_sizes)
            return ClusterLayout(in_features, n_classes, cutoffs, self.div_value, sizes)
        except (ValueError, ImportError, TimeoutError) as error:
            raise UsageError(f"layer {self.name}: {error}") from error


def parsed(name: str) -> LayerName:
    """A layer by its name; see this module.

    Raises:
        UsageError: an unknown layer or option.
    """
    kind, _, rest = name.partition(":")
    if kind not in ADAPTIVE:
        allowed = [known for known in registry.names() if known.partition(":")[0] in ("full", "sampled")]
        if name not in allowed:
            raise UsageError(unknown("layer", name, ["zipfmax", "torch", *allowed]))
        return LayerName(name, name)
    options: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        if not equals or key not in ("cutoffs", "div", "least") or not value:
            raise UsageError(f"layer {name}: its options are cutoffs=, div= and least=, not {part!r}")
        options[key] = value
    if "least" in options and kind == "torch":
        raise UsageError(f"layer {name}: torch.nn's projections follow from div, it has no least=")
    try:
        cutoffs = options.get("cutoffs", "customary")
        found = LayerName(name, kind, cutoffs, float(options.get("div", "4")), int(options.get("least", "1")))
        numbers = (
            [] if cutoffs in ("customary", "fine", "plan") else [int(part) for part in cutoffs.split("/")]
        )
    except ValueError:
        raise UsageError(
            f"layer {name}: div= and least= take numbers, cutoffs= customary, fine, plan or 2000/10000"
        ) from None
    if not 0 < found.div_value < float("inf") or found.least < 1:
        raise UsageError(f"layer {name}: div= and least= take positive numbers")
    if any(low >= high for low, high in pairwise((0, *numbers))):
        raise UsageError(f"layer {name}: cutoffs= take positive integers in increasing order")
    return found


class Output(nn.Module):
    """An output layer of a study: a loss to train on, and exact log-probabilities to judge by."""

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        """The mean loss [] of hidden states [N, d] and labels [N]."""
        raise NotImplementedError

    def nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        """-log p of each label, [N], float32, with no gradient."""
        raise NotImplementedError


class NoOutput(Output):
    """The mean square of the hidden states: what a step costs without an output layer."""

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        """A loss with a gradient of every hidden state."""
        return hidden.float().square().mean()


class Adaptive(Output):
    """zipfmax's layer or torch.nn's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        """The layer's own loss."""
        # float32, because torch.nn's layer collects autocast's float32 results in a tensor like its input.
        loss: Tensor = self.layer(hidden.float(), target).loss
        return loss

    @torch.no_grad()
    def nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        """The layer's own log-probabilities."""
        output: Tensor = self.layer(hidden.float(), target).output
        return -output.float()


class FullOutput(Output):
    """A loss over one matrix [V, d].

    Args:
        in_features, n_classes: its shape.
        chosen: what computes the loss.
    """

    ROWS = 1024
    """Of a chunk of the evaluation."""

    def __init__(self, in_features: int, n_classes: int, chosen: Chosen) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_classes, in_features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as nn.Linear's
        self._dtype, self._loss = chosen.dtype, chosen.make()
        self._samples = chosen.name == "sampled"

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        """The mean loss, in the dtype of the products."""
        if self._samples:  # only the rows that are drawn are cast, by autocast
            return self._loss(hidden.float(), _densified(self.weight), target, None)
        with torch.autocast(hidden.device.type, enabled=False):
            return self._loss(hidden.to(self._dtype), self.weight.to(self._dtype), target, None)

    @torch.no_grad()
    def nll(self, hidden: Tensor, target: Tensor) -> Tensor:
        """By full softmax, with logits in the dtype of the products."""
        weight = self.weight.to(self._dtype)
        hidden = hidden.to(self._dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.cat(
                [
                    F.cross_entropy(
                        F.linear(hidden[at : at + self.ROWS], weight).float(),
                        target[at : at + self.ROWS],
                        reduction="none",
                    )
                    for at in range(0, len(target), self.ROWS)
                ]
            )


def _densified(weight: Tensor) -> Tensor:
    dense: Tensor = _Densified.apply(weight)  # type: ignore[no-untyped-call]
    return dense


class _Densified(torch.autograd.Function):
    """The identity, whose gradient is not a sparse tensor: AdamW takes none."""

    @staticmethod
    def forward(context: object, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return gradient.to_dense() if gradient.is_sparse else gradient


def build(
    name: LayerName, in_features: int, n_classes: int, layout: ClusterLayout | None, chosen: Chosen | None
) -> Output:
    """An output layer with weights drawn by torch's generator.

    Args:
        name: which.
        in_features, n_classes: its shape.
        layout: of an adaptive one.
        chosen: what computes the loss of another one.
    """
    if layout is None:
        assert chosen is not None
        return FullOutput(in_features, n_classes, chosen)
    if name.kind == "torch":
        return Adaptive(
            nn.AdaptiveLogSoftmaxWithLoss(in_features, n_classes, list(layout.cutoffs), layout.div_value)
        )
    return Adaptive(
        AdaptiveLogSoftmaxWithLoss(
            in_features,
            n_classes,
            layout.cutoffs,
            layout.div_value,
            projection_sizes=layout.projection_sizes,
            gradients="loss",
        )
    )
