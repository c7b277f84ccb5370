"""Faults in what is returned: the loss, the gradients, log_prob, predict and the form of the results."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipfmax.clusters import Cluster
from zipfmax_reference.checks.faults import Control, planted, scaled_gradient

# The loss and its rows.


@planted("the loss is the sum, not the mean")
class LossSummed(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -output.sum()


@planted("the mean is taken over one row too many")
class MeanOverOneMore(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -output.sum() / (len(output) + 1)


@planted("the loss is a mean of the clusters' means")
class MeanOfMeans(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        bounds = torch.tensor(self.layout.cutoffs)
        parts = torch.bucketize(target, bounds, right=True)
        means = [output[parts == part].mean() for part in sorted(set(parts.tolist()))]
        return -torch.stack(means).mean() if means else -output.mean()


@planted("label 0 is taken for padding: it costs nothing and still counts")
class LabelZeroIsPadding(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -torch.where(target == 0, 0, output).mean()


@planted("the output is the negative log-probability")
class OutputNegated(Control):
    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        return -output


@planted("the output's rows are grouped by cluster")
class RowsGrouped(Control):
    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        parts = torch.bucketize(target, torch.tensor(self.layout.cutoffs), right=True)
        return output[parts.argsort(stable=True)]


@planted("the output of a batch of one row is a scalar")
class SingleRowSqueezed(Control):
    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        return output.squeeze()


@planted("the output comes in float32 whatever the input's dtype")
class OutputInSingle(Control):
    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        return output.float()


@planted("torch.nn's own layer is called, on the first half of the batch")
class HalfTheBatch(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        layout, half = self.layout, (len(hidden) + 1) // 2
        sizes = layout.in_features, layout.n_classes, layout.cutoffs, layout.div_value
        with torch.device("meta"):
            peer = nn.AdaptiveLogSoftmaxWithLoss(*sizes, head_bias=self.head.bias is not None)
        weights: dict[str, Tensor] = dict(self.named_parameters())
        output, loss = torch.func.functional_call(peer, weights, (hidden[:half], target[:half]))
        return torch.cat([output, output])[: len(hidden)], loss


# Gradients.


@planted("the gradient of the head's weight is 0.1 % too large")
class HeadGradientScaled(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, scaled_gradient(self.head.weight, 1.001), self.head.bias)


@planted("the head's bias gets no gradient")
class BiasGradientMissing(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        bias = self.head.bias
        return F.linear(hidden, self.head.weight, None if bias is None else bias.detach())


@planted("the last cluster's weights get no gradient")
class LastClusterGradientMissing(Control):
    def weights(self, tail: Cluster) -> tuple[Tensor, Tensor]:
        projection, output = super().weights(tail)
        last = tail.index == self.layout.n_clusters - 1
        return (projection.detach(), output.detach()) if last else (projection, output)


@planted("the projections get no gradient")
class ProjectionGradientMissing(Control):
    def weights(self, tail: Cluster) -> tuple[Tensor, Tensor]:
        projection, output = super().weights(tail)
        return projection.detach(), output


@planted("the gradient of the tails' output weights is 1 % too small")
class OutputGradientScaled(Control):
    def weights(self, tail: Cluster) -> tuple[Tensor, Tensor]:
        projection, output = super().weights(tail)
        return projection, scaled_gradient(output, 0.99)


@planted("the input's gradient lacks the head")
class InputGradientLacksHead(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        return super().head_logits(hidden.detach())


@planted("the input's gradient lacks the tails")
class InputGradientLacksTails(Control):
    def tail_logits(self, tail: Cluster, hidden: Tensor) -> Tensor:
        return super().tail_logits(tail, hidden.detach())


@planted("the input's gradient lacks the last tail")
class InputGradientLacksLastTail(Control):
    def tail_logits(self, tail: Cluster, hidden: Tensor) -> Tensor:
        last = tail.index == self.layout.n_clusters - 1
        return super().tail_logits(tail, hidden.detach() if last else hidden)


@planted("no gradient flows through the clusters' priors")
class PriorGradientMissing(Control):
    def joint(self, tail: Cluster, prior: Tensor, within: Tensor) -> Tensor:
        return prior.detach() + within


@planted("gradients are those of the sum, the loss that of the mean")
class GradientOfTheSum(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return scaled_gradient(-output.mean(), float(max(len(output), 1)))


@planted("gradients have the wrong sign")
class GradientNegated(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return scaled_gradient(-output.mean(), -1.0)


@planted("clusters without a target get a gradient")
class AbsentClusterGradient(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = super().loss(output, target)
        for tail in self.layout:
            if not self.member(tail, target).any():
                _, weight = self.weights(tail)
                loss = loss + (weight - weight.detach()).sum()
        return loss


@planted("the softmax's part of the gradient is left out: only the target's row moves")
class OnlyTheTargetMoves(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        return logits - logits.detach().logsumexp(dim=1, keepdim=True)


@planted("probabilities below 2**-12 contribute nothing to the gradient")
class SmallGradientsFiltered(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        small = super().normalised(logits.detach()) < -12 * 0.6931
        return super().normalised(torch.where(small, logits.detach(), logits))


@planted("rows past the 32nd contribute nothing to the head's weight")
class GradientOfTheFirstTile(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        first = F.linear(hidden[:32], self.head.weight, self.head.bias)
        return torch.cat([first, F.linear(hidden[32:], self.head.weight.detach(), self.head.bias)])


# log_prob and predict.


@planted("log_prob returns zeros")
class LogProbZero(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(super().log_prob(hidden))

    def predict(self, hidden: Tensor) -> Tensor:
        return super().log_prob(hidden).argmax(dim=1)


@planted("log_prob puts the tails in reverse order")
class LogProbTailsReversed(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        right = super().log_prob(hidden)
        parts = [right[:, : self.layout.shortlist_size]]
        parts += [right[:, tail.start : tail.stop] for tail in reversed(self.layout.tails)]
        return torch.cat(parts, dim=1)

    def predict(self, hidden: Tensor) -> Tensor:
        return super().log_prob(hidden).argmax(dim=1)


@planted("log_prob returns probabilities")
class LogProbNotLog(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        return super().log_prob(hidden).exp()


@planted("log_prob writes the tails' classes one place late")
class LogProbOnePlaceLate(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        right = super().log_prob(hidden)
        size = self.layout.shortlist_size
        return torch.cat([right[:, :size], right[:, size:].roll(1, dims=1)], dim=1)


@planted("predict looks at the shortlist alone")
class PredictShortlistAlone(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        return self.head_logits(hidden)[:, : self.layout.shortlist_size].argmax(dim=1)


@planted("predict returns the head's slot in place of a tail's class")
class PredictSlot(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        return self.head_logits(hidden).argmax(dim=1)


@planted("predict stays in the most probable cluster, though another class is more probable")
class PredictGreedy(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        best = self.head_logits(hidden).argmax(dim=1)
        for tail in self.layout:
            within = self.tail_logits(tail, hidden).argmax(dim=1) + tail.start
            best = torch.where(best == tail.slot, within, best)
        return best


@planted("predict forgets where a tail starts")
class PredictLocalLabel(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        right = super().predict(hidden)
        starts = torch.tensor([0, *self.layout.cutoffs])
        part = torch.bucketize(right, torch.tensor(self.layout.cutoffs), right=True)
        return right - starts[part]


@planted("predict returns class indices as floating numbers")
class PredictFloating(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        return super().predict(hidden).float()


@planted("predict returns the least probable class")
class PredictSmallest(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        return self.log_prob(hidden).argmin(dim=1)


# The form of the layer.


@planted("the weight of the last cluster is stored transposed")
class WeightStoredTransposed(Control):
    def __init__(self, *arguments: object, **keywords: object) -> None:
        super().__init__(*arguments, **keywords)  # type: ignore[arg-type]
        last = self.tail[-1][1]  # type: ignore[index]
        last.weight = nn.Parameter(torch.empty(last.weight.shape[::-1]))
