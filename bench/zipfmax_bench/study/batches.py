"""What a step reads: a window of each of several streams of text; and the validation sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zipfmax.errors import UsageError
from zipfmax_bench.study.corpus import Corpus
from zipfmax_bench.study.options import StudyOptions


@dataclass(frozen=True)
class TextBatch:
    """Ids and the ids that follow them, [B, T] int64, and whether the streams begin with it."""

    ids: Tensor
    targets: Tensor
    is_start: bool


class TextBatches:
    """The text on the device: the same batch for the same seed and step, whatever the output layer.

    Args:
        corpus: the text.
        options: of the study.

    Raises:
        UsageError: a text too short for a step or for a window of validation.
    """

    def __init__(self, corpus: Corpus, options: StudyOptions) -> None:
        self.length = options.length
        of_stream = (len(corpus.train) - 1) // options.sequences
        self.per_epoch = of_stream // options.length
        windows = (len(corpus.valid) - 1) // options.length
        if not self.per_epoch or not windows:
            raise UsageError(
                f"{len(corpus.train):,} and {len(corpus.valid):,} tokens are too few for windows of "
                f"{options.sequences} x {options.length}: lower --sequences or --length"
            )
        used = options.sequences * of_stream
        self._ids = self._placed(corpus.train[:used], options).view(options.sequences, -1)
        self._targets = self._placed(corpus.train[1 : used + 1], options).view(options.sequences, -1)
        wanted = min(windows, max(1, options.valid_tokens // options.length))
        starts = np.linspace(0, windows - 1, wanted).astype(np.int64) * options.length
        positions = starts[:, None] + np.arange(options.length + 1)
        sample = self._placed(corpus.valid[positions.ravel()], options).view(wanted, -1).long()
        self.valid_ids, self.valid_targets = sample[:, :-1], sample[:, 1:].contiguous()

    def at(self, seed: int, step: int) -> TextBatch:
        """The batch of a step, from 0; each seed begins elsewhere in the streams."""
        first = int(np.random.default_rng(seed).integers(self.per_epoch))
        position = (first + step) % self.per_epoch
        window = slice(position * self.length, (position + 1) * self.length)
        return TextBatch(
            self._ids[:, window].long(), self._targets[:, window].long(), step == 0 or position == 0
        )

    @staticmethod
    def _placed(ids: np.ndarray[tuple[int, ...], np.dtype[np.uint32]], options: StudyOptions) -> Tensor:
        return torch.from_numpy(ids.astype(np.int32)).to(options.device)
