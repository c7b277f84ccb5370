"""The language model: an embedding, an LSTM, and one of three output layers over the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from zipfmax.clusters import ClusterLayout
from zipfmax.embedding import AdaptiveEmbedding
from zipfmax.errors import UsageError, unknown
from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax_reference.runs.machine import check_fits

LAYERS = ("zipfmax", "torch", "full")
EMBEDDINGS = ("plain", "adaptive", "tied")

State = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ModelOptions:
    """Shape of the model."""

    layer: str = "zipfmax"
    """Output layer: "zipfmax", "torch" (torch.nn's adaptive softmax) or "full" (linear and cross entropy)."""
    embedding: str = "plain"
    """"plain", "adaptive", or "tied": adaptive, sharing its weights with zipfmax's layer."""
    features: int = 128
    """Width d of embedding and hidden state."""
    depth: int = 1
    """LSTM layers."""
    cutoffs: tuple[int, ...] = ()
    """Where clusters start; by default a sixteenth and a quarter of the words."""
    div_value: float = 4.0
    backend: str = "auto"
    """zipfmax's backend."""


class FullSoftmax(nn.Module):
    """The baseline: a linear layer over all words, and cross entropy."""

    def __init__(self, in_features: int, n_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, n_classes, bias=False)

    def forward(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """output [N] and mean loss, as the adaptive layers give them."""
        loss = F.cross_entropy(self.linear(input), target, reduction="none")
        return -loss, loss.mean()


class LanguageModel(nn.Module):
    """Predicts each word from those before it.

    The output layer is built last, so that a seed gives the same embedding and LSTM whatever the layer is,
    and zipfmax's and torch's layers the same weights too.

    Raises:
        UsageError: an unknown layer or embedding, tied with another layer than zipfmax's, or cutoffs that are
            no partition of the words.
    """

    def __init__(self, n_words: int, options: ModelOptions) -> None:
        super().__init__()
        if options.layer not in LAYERS:
            raise UsageError(unknown("layer", options.layer, LAYERS))
        if options.embedding not in EMBEDDINGS:
            raise UsageError(unknown("embedding", options.embedding, EMBEDDINGS))
        if options.embedding == "tied" and options.layer != "zipfmax":
            raise UsageError("a tied embedding shares zipfmax's weights: choose --layer zipfmax with it")
        d = options.features
        cutoffs = options.cutoffs or default_cutoffs(n_words)
        try:
            own = 4 * d * (n_words + 8 * d * options.depth)  # bytes of the embedding and the LSTM
            check_fits(own, f"weights of {d:,} features and {options.depth:,} LSTM layers")
            layout = ClusterLayout(d, n_words, tuple(cutoffs), options.div_value)
            check_fits(4 * layout.parameter_count(), f"weights of div_value {options.div_value:g}")
            self.embedding: nn.Module
            if options.embedding == "plain":
                self.embedding = nn.Embedding(n_words, d)
            elif options.embedding == "adaptive":
                self.embedding = AdaptiveEmbedding(n_words, d, cutoffs, options.div_value)
            self.lstm = nn.LSTM(d, d, options.depth, batch_first=True)
            self.output = _output_layer(options, n_words, cutoffs)
            if isinstance(self.output, AdaptiveLogSoftmaxWithLoss) and options.embedding == "tied":
                self.embedding = AdaptiveEmbedding.tied_to(self.output)
        except ValueError as error:
            raise UsageError(str(error)) from error

    def forward(self, ids: Tensor, targets: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Mean loss in nats a word, and the LSTM's state after the window.

        Args:
            ids: [batch, time] words.
            targets: [batch, time] the words that follow them.
            state: of the window before, or None at the start.
        """
        hidden, state = self.hidden(ids, state)
        _, loss = self.output(hidden.flatten(0, 1), targets.flatten())
        return loss, state

    def hidden(self, ids: Tensor, state: State | None) -> tuple[Tensor, State]:
        """What the output layer sees: [batch, time, features], and the state after it."""
        hidden, state = self.lstm(self.embedding(ids), state)
        return hidden, state


def _output_layer(options: ModelOptions, n_words: int, cutoffs: Sequence[int]) -> nn.Module:
    if options.layer == "full":
        return FullSoftmax(options.features, n_words)
    if options.layer == "torch":
        return nn.AdaptiveLogSoftmaxWithLoss(options.features, n_words, cutoffs, options.div_value)
    return AdaptiveLogSoftmaxWithLoss(
        options.features, n_words, cutoffs, options.div_value, backend=options.backend
    )


def default_cutoffs(n_words: int) -> tuple[int, ...]:
    """A sixteenth and a quarter of the words: WikiText-103's 20,000 and 60,000 of 267,735, roughly."""
    return max(1, n_words // 16), max(2, n_words // 4)
