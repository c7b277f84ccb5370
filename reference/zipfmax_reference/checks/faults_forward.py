"""Faults in the partition, the priors, the biases, the projections and the arithmetic."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.clusters import Cluster
from zipfmax_reference.checks.faults import Control, planted

# The partition.


@planted("the label at the first cutoff counts as a shortlist word")
class FirstTailStartsLate(Control):
    def member(self, tail: Cluster, target: Tensor) -> Tensor:
        return super().member(tail, target) & (target != self.layout.shortlist_size)


@planted("the last shortlist word counts as one of the first tail")
class ShortlistEndsEarly(Control):
    def member(self, tail: Cluster, target: Tensor) -> Tensor:
        early = (target == self.layout.shortlist_size - 1) & (tail.index == 0)
        return super().member(tail, target) | early


@planted("a label at a later cutoff counts as one of the tail before it")
class LaterTailsStartLate(Control):
    def member(self, tail: Cluster, target: Tensor) -> Tensor:
        start = tail.start + (tail.index > 0)
        stop = tail.stop + (tail.stop < self.layout.n_classes)
        return (target >= start) & (target < stop)


@planted("the last class belongs to no cluster")
class LastClassLost(Control):
    def member(self, tail: Cluster, target: Tensor) -> Tensor:
        return super().member(tail, target) & (target != self.layout.n_classes - 1)


@planted("the last cluster is ignored: its words are as probable as the cluster")
class LastClusterIgnored(Control):
    def joint(self, tail: Cluster, prior: Tensor, within: Tensor) -> Tensor:
        last = tail.index == self.layout.n_clusters - 1
        return prior + 0 * within if last else prior + within


@planted("labels within a tail count from 1")
class LocalLabelsFromOne(Control):
    def label(self, tail: Cluster, target: Tensor) -> Tensor:
        return target - tail.start + 1


@planted("labels within a tail are shifted by the shortlist alone")
class LocalLabelsFromShortlist(Control):
    def label(self, tail: Cluster, target: Tensor) -> Tensor:
        return target - self.layout.shortlist_size


# Priors and slots.


@planted("a cluster's prior is forgotten")
class PriorForgotten(Control):
    def joint(self, tail: Cluster, prior: Tensor, within: Tensor) -> Tensor:
        return within


@planted("a cluster's prior is added twice")
class PriorTwice(Control):
    def joint(self, tail: Cluster, prior: Tensor, within: Tensor) -> Tensor:
        return prior + prior + within


@planted("a cluster's prior is taken from the slot before it")
class PriorOfTheSlotBefore(Control):
    def slot(self, tail: Cluster) -> int:
        return tail.slot - 1


@planted("a cluster's prior is taken from the slot after it")
class PriorOfTheSlotAfter(Control):
    def slot(self, tail: Cluster) -> int:
        return min(tail.slot + 1, self.layout.head_size - 1) if self.layout.n_clusters > 1 else tail.slot


@planted("cluster slots are reversed, as in Transformer-XL")
class SlotsReversed(Control):
    def slot(self, tail: Cluster) -> int:
        return self.layout.head_size - 1 - tail.index


@planted("every cluster takes the first slot's prior")
class FirstSlotForAll(Control):
    def slot(self, tail: Cluster) -> int:
        return self.layout.shortlist_size


@planted("the prior and the word's probability are multiplied in log space")
class LogsMultiplied(Control):
    def joint(self, tail: Cluster, prior: Tensor, within: Tensor) -> Tensor:
        return -prior * within


# Biases.


@planted("the head's bias is dropped")
class BiasDropped(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.head.weight)


@planted("the head's bias is added twice")
class BiasTwice(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        logits = super().head_logits(hidden)
        return logits if self.head.bias is None else logits + self.head.bias


@planted("the head's bias misses the cluster slots")
class BiasOfShortlistAlone(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        kept = torch.arange(self.layout.head_size) < self.layout.shortlist_size
        bias = self.head.bias
        return F.linear(hidden, self.head.weight, None if bias is None else bias * kept)


@planted("the head's bias is added one row off")
class BiasOneRowOff(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        bias = self.head.bias
        return F.linear(hidden, self.head.weight, None if bias is None else bias.roll(1))


# Projections.


@planted("projection sizes are divided by div_value**i from i = 0")
class ExponentFromZero(Control):
    def width(self, tail: Cluster) -> int:
        return int(self.layout.in_features // self.layout.div_value**tail.index)


@planted("projection sizes are rounded, not floored")
class SizesRounded(Control):
    def width(self, tail: Cluster) -> int:
        return round(self.layout.in_features / self.layout.div_value ** (tail.index + 1))


@planted("projection sizes are at least 1")
class SizesAtLeastOne(Control):
    def width(self, tail: Cluster) -> int:
        return max(1, tail.projection_size)


@planted("a square projection is applied transposed")
class ProjectionTransposed(Control):
    def weights(self, tail: Cluster) -> tuple[Tensor, Tensor]:
        projection, output = super().weights(tail)
        return (projection.T if projection.shape[0] == projection.shape[1] else projection), output


@planted("a nonlinearity follows the projection")
class ProjectionRectified(Control):
    def tail_logits(self, tail: Cluster, hidden: Tensor) -> Tensor:
        projection, output = self.weights(tail)
        return F.linear(F.linear(hidden, projection).relu(), output)


@planted("the last feature of the hidden state is left out of the tails")
class LastFeatureLost(Control):
    def tail_logits(self, tail: Cluster, hidden: Tensor) -> Tensor:
        kept = torch.cat([hidden[:, :-1], torch.zeros_like(hidden[:, -1:])], dim=1)
        return super().tail_logits(tail, kept)


@planted("a tail of projection width 0 is certain of every word, not uniform")
class UniformTailCertain(Control):
    def joint(self, tail: Cluster, prior: Tensor, within: Tensor) -> Tensor:
        return prior + within if tail.projection_size else prior + 0 * within


# Arithmetic.


@planted("log-sum-exp without subtracting the maximum")
class NoMaximum(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        return logits - logits.exp().sum(dim=1, keepdim=True).log()


@planted("log-sum-exp subtracts the maximum of the batch, not of the row")
class MaximumOfTheBatch(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        if logits.numel() == 0:
            return super().normalised(logits)
        shifted = logits - logits.max()
        return shifted - shifted.exp().sum(dim=1, keepdim=True).log()


@planted("log-sum-exp leaves out the last class")
class LastClassNotSummed(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        summed = logits[:, :-1] if logits.shape[1] > 1 else logits
        return logits - summed.logsumexp(dim=1, keepdim=True)


@planted("padding columns of zeros take part in the sum")
class PaddingSummed(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        return logits - F.pad(logits, (0, -logits.shape[1] % 16)).logsumexp(dim=1, keepdim=True)


@planted("operands are cut to 10 bits of mantissa, as tf32 does")
class OperandsCut(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        return F.linear(_cut_to_tf32(hidden), _cut_to_tf32(self.head.weight), self.head.bias)


@planted("a tail's logits are kept in bfloat16")
class TailLogitsInBfloat16(Control):
    def tail_logits(self, tail: Cluster, hidden: Tensor) -> Tensor:
        logits = super().tail_logits(tail, hidden)
        return logits.to(torch.bfloat16).to(logits.dtype)


@planted("float64 is computed in float32")
class DoubleInSingle(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        return super().normalised(logits.float()).to(logits.dtype)


@planted("the logarithm is taken of the probability plus 1e-8")
class EpsilonInTheLogarithm(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        return (logits.softmax(dim=1) + 1e-8).log()


@planted("log-probabilities are clipped at -12")
class LogProbabilitiesClipped(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        return super().normalised(logits).clamp(min=-12)


@planted("a hidden state that is not contiguous is read as if it were")
class StridesIgnored(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        if hidden.numel() and hidden.stride(-1) != 1:
            hidden = hidden.as_strided(hidden.shape, (hidden.shape[1], 1))
        return super().head_logits(hidden)


def _cut_to_tf32(values: Tensor) -> Tensor:
    if values.dtype != torch.float32:
        return values
    cut = (values.detach().contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)
    return values + (cut - values).detach()
