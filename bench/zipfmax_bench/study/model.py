"""The model of a study: input words, trunk and output layer, each from a random stream of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.embedding import AdaptiveEmbedding
from zipfmax.errors import UsageError
from zipfmax_bench.presets import customary_cutoffs
from zipfmax_bench.study import trunk
from zipfmax_bench.study.options import StudyOptions
from zipfmax_bench.study.outputs import Adaptive, FullOutput, Output
from zipfmax_bench.study.trunk import State

PARTS = 4
"""Random streams of a seed: output, inputs, trunk, and what training itself draws."""


class StudyModel(nn.Module):
    """Predicts each token from those before it. A seed gives the same inputs and trunk below every output layer.

    Args:
        options: of the study.
        n_classes: vocabulary size.
        make_output: makes the output layer.
        seed: of all weights.

    Raises:
        UsageError: tied inputs with a layer that shares no weights.
    """

    def __init__(
        self, options: StudyOptions, n_classes: int, make_output: Callable[[], Output], seed: int
    ) -> None:
        super().__init__()
        d = options.features
        with torch.device(options.device):
            torch.manual_seed(PARTS * seed)
            output = make_output()
            torch.manual_seed(PARTS * seed + 1)
            self.inputs = _inputs(options, n_classes, output)
            torch.manual_seed(PARTS * seed + 2)
            self.trunk = trunk.build(options.trunk, d, options.depth, options.length)
        torch.manual_seed(PARTS * seed + 3)
        self.output = output
        self._hidden: Callable[[Tensor, State], tuple[Tensor, State]] = self._plain_hidden
        if options.compile_trunk:
            self._hidden = torch.compile(self._plain_hidden, dynamic=False)

    def forward(self, ids: Tensor, targets: Tensor, state: State) -> tuple[Tensor, State]:
        """Mean loss [] of ids and targets [B, T], and the trunk's state after them."""
        hidden, state = self._hidden(ids, state)
        loss: Tensor = self.output(hidden.flatten(0, 1), targets.flatten())
        return loss, state

    def nll(self, ids: Tensor, targets: Tensor) -> Tensor:
        """-log p of each target, [B * T] float32, with an empty state before the first."""
        return self.output.nll(self.hidden(ids), targets.flatten())

    def hidden(self, ids: Tensor) -> Tensor:
        """What the output layer sees of ids [B, T]: [B * T, d], with an empty state before the first."""
        return self._plain_hidden(ids, None)[0].flatten(0, 1)

    def own_parameters(self) -> int:
        """Weights of the output layer that the inputs do not share, in elements."""
        shared = {id(weight) for weight in self.inputs.parameters()}
        return sum(weight.numel() for weight in self.output.parameters() if id(weight) not in shared)

    def _plain_hidden(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        hidden: tuple[Tensor, State] = self.trunk(self.inputs(ids), state)
        return hidden


def _inputs(options: StudyOptions, n_classes: int, output: Output) -> nn.Module:
    d = options.features
    if options.inputs == "adaptive":
        return AdaptiveEmbedding(n_classes, d, customary_cutoffs(n_classes))
    if options.inputs == "tied" and isinstance(output, Adaptive):
        if type(output.layer) is not AdaptiveLogSoftmaxWithLoss:
            raise UsageError("tied inputs share zipfmax's weights or full softmax's, not torch.nn's")
        return AdaptiveEmbedding.tied_to(output.layer)
    embedding = nn.Embedding(n_classes, d)
    if options.inputs == "tied" and isinstance(output, FullOutput):
        embedding.weight = output.weight
    else:
        nn.init.normal_(embedding.weight, std=d**-0.5)
    return embedding
