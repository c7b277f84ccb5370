"""Faults that show where there is much: many classes, many rows; at the last class; and in defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.clusters import Cluster, ClusterLayout
from zipfmax_reference.checks.faults import Control, planted


@planted("beyond 4,096 classes of a tail the others are not summed")
class ManyClassesCut(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        if logits.shape[1] <= 4096:
            return super().normalised(logits)
        return logits - logits[:, :4096].logsumexp(dim=1, keepdim=True)


@planted("rows from the 256th on are scored as the row 256 places before")
class RowsWrapped(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        logits = super().head_logits(hidden)
        return torch.cat([logits[:256], logits[: len(logits) - 256]]) if len(logits) > 256 else logits


@planted("a row's number has 16 bits")
class RowsOf16Bits(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        row = torch.arange(len(hidden), device=hidden.device)
        return super().head_logits(hidden[row & 0xFFFF] if len(hidden) > 0x10000 else hidden)


@planted("cutoffs in a tuple are taken to be all but the last")
class TupleOfCutoffs(Control):
    def __init__(
        self, in_features: int, n_classes: int, cutoffs: Sequence[int], *more: Any, **options: Any
    ) -> None:
        if isinstance(cutoffs, tuple) and len(cutoffs) > 1:
            cutoffs = cutoffs[:-1]
        super().__init__(in_features, n_classes, cutoffs, *more, **options)


@planted("the constructor appends the number of classes to the caller's cutoffs")
class CutoffsAppended(Control):
    def __init__(
        self, in_features: int, n_classes: int, cutoffs: Sequence[int], *more: Any, **options: Any
    ) -> None:
        super().__init__(in_features, n_classes, cutoffs, *more, **options)
        if isinstance(cutoffs, list):
            cutoffs.append(n_classes)


@planted("rows beyond 4,096 get no gradient")
class ManyRowsGetNone(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        cut = torch.cat([hidden[:4096], hidden[4096:].detach()]) if len(hidden) > 4096 else hidden
        return super().head_logits(cut)


@planted("log_prob scores rows beyond 1,024 as the row 1,024 places before")
class LogProbRowsWrapped(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        return super().log_prob(hidden[torch.arange(len(hidden), device=hidden.device) % 1024])


@planted("predict of rows beyond 1,024 is the first class")
class PredictOfManyRows(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        return F.pad(super().predict(hidden[:1024]), (0, max(0, len(hidden) - 1024)))


@planted("batches of whole tiles of 128 rows lose their last row")
class LastOfWholeTilesLost(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        whole = len(output) > 0 and len(output) % 128 == 0
        return super().loss(output[:-1] if whole else output, target)


@planted("from 256 features on the logits have 8 bits")
class WideInputsCoarse(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        logits = super().head_logits(hidden)
        return logits.bfloat16().to(logits) if hidden.shape[1] >= 256 else logits


@planted("from the seventh tail on none is scored")
class SeventhTailUniform(Control):
    def tail_logits(self, tail: Cluster, hidden: Tensor) -> Tensor:
        logits = super().tail_logits(tail, hidden)
        return logits * 0 if tail.index >= 6 else logits


@planted("the last class of a tail of 1,000 or more is scored as the one before")
class LastOfManyShadowed(Control):
    def tail_logits(self, tail: Cluster, hidden: Tensor) -> Tensor:
        logits = super().tail_logits(tail, hidden)
        if tail.size < 1000:
            return logits
        return torch.cat([logits[:, :-1], logits[:, -2:-1]], dim=1)


@planted("predict never finds the last of more than 1,000 classes")
class PredictMissesTheLast(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        log_prob = self.log_prob(hidden)
        return (log_prob[:, :-1] if self.layout.n_classes > 1000 else log_prob).argmax(dim=1)


@planted("predict never finds the first class of a tail of 1,000 or more")
class PredictMissesAFirst(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        log_prob = self.log_prob(hidden).clone()
        log_prob[:, [tail.start for tail in self.layout if tail.size >= 1000]] = -torch.inf
        return log_prob.argmax(dim=1)


@planted("by default div_value is 2")
class DefaultDivValue(Control):
    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        div_value: float = 2.0,
        head_bias: bool = False,
    ) -> None:
        super().__init__(in_features, n_classes, cutoffs, div_value, head_bias)


@planted("by default the head has a bias")
class DefaultHeadBias(Control):
    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        head_bias: bool = True,
    ) -> None:
        super().__init__(in_features, n_classes, cutoffs, div_value, head_bias)


@planted("sums over whole tiles of 16 classes leave out the last class")
class WholeTilesLeaveOutTheLast(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        whole = logits.shape[1] > 0 and logits.shape[1] % 16 == 0
        return logits - logits[:, :-1].logsumexp(dim=1, keepdim=True) if whole else super().normalised(logits)


@planted("of whole tiles of 64 features the last tile is left out")
class WholeTilesOfFeatures(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        whole = hidden.shape[1] % 64 == 0
        return super().head_logits(
            torch.cat([hidden[:, :-64], hidden[:, -64:] * 0], dim=1) if whole else hidden
        )


@planted("labels within a tail have 16 bits")
class LabelsOf16Bits(Control):
    def label(self, tail: Cluster, target: Tensor) -> Tensor:
        return super().label(tail, target).to(torch.int16).long()


@planted("predict counts classes in 16 bits")
class PredictIn16Bits(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        return super().predict(hidden).to(torch.int16).long()


@planted("predict keeps classes as floating numbers of 16 bits")
class PredictInHalf(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        return super().predict(hidden).half().long()


@planted("log_prob of more than 32,768 classes knows the first ones only")
class LogProbOfManyClasses(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        log_prob = super().log_prob(hidden)
        return torch.cat([log_prob[:, :32768], log_prob[:, 32768:] * 0 - 1e4], dim=1)


@planted("the caller's list of cutoffs is kept, and read again in each call")
class CutoffsKept(Control):
    def __init__(
        self, in_features: int, n_classes: int, cutoffs: Sequence[int], *more: Any, **options: Any
    ) -> None:
        super().__init__(in_features, n_classes, cutoffs, *more, **options)
        self.cutoffs = cutoffs

    def member(self, tail: Cluster, target: Tensor) -> Tensor:
        bounds = [*self.cutoffs, self.layout.n_classes]
        return (target >= bounds[tail.index]) & (target < bounds[tail.index + 1])


@planted("all layers of as many classes have the clusters of the first one")
class ClustersOfAnother(Control):
    known: ClassVar[dict[int, ClusterLayout]] = {}

    def member(self, tail: Cluster, target: Tensor) -> Tensor:
        clusters = [*self.known.setdefault(self.layout.n_classes, self.layout)]
        return super().member(clusters[min(tail.index, len(clusters) - 1)], target)


@planted("the first class of a tail's second tile of 512 is taken for the last of the first")
class TileBeginsLate(Control):
    def label(self, tail: Cluster, target: Tensor) -> Tensor:
        label = super().label(tail, target)
        return torch.where(label == 512, label - 1, label)
