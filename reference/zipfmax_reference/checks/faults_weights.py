"""Faults in what a layer does with its weights after they changed, or where some of them are frozen."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.clusters import Cluster
from zipfmax_reference.checks.faults import Control, in_use
from zipfmax_reference.checks.faults_calls import Pair, with_value


class Keeping(Control):
    """Keeps copies of weights, from the first use on."""

    kept: dict[str, Tensor] | None = None

    def keep(self, name: str, weight: Tensor) -> Tensor:
        """The copy, with the weight's own gradient."""
        if self.kept is None:
            self.kept = {}
        return with_value(weight, self.kept.setdefault(name, weight.detach().clone()))


@in_use("the head's weight is copied at the first call", breaks="weights-written-in-place-count")
class HeadWeightCopied(Keeping):
    def head_logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.keep("head", self.head.weight), self.head.bias)


@in_use("the head's bias is copied at the first call", breaks="an-optimizer-step-counts")
class HeadBiasCopied(Keeping):
    def head_logits(self, hidden: Tensor) -> Tensor:
        bias = self.head.bias
        return F.linear(hidden, self.head.weight, None if bias is None else self.keep("bias", bias))


@in_use("the tails' projections are copied at the first call", breaks="weights-written-in-place-count")
class ProjectionsCopied(Keeping):
    def weights(self, tail: Cluster) -> Pair:
        projection, output = super().weights(tail)
        return self.keep(f"{tail.index}", projection), output


@in_use("the last tail's output weight is copied at the first call", breaks="an-optimizer-step-counts")
class LastTailCopied(Keeping):
    def weights(self, tail: Cluster) -> Pair:
        projection, output = super().weights(tail)
        last = tail.index == self.layout.n_clusters - 1
        return projection, self.keep("last", output) if last else output


@in_use("log_prob works on weights of its first call", breaks="log-prob-and-predict-follow-the-weights")
class LogProbKeepsWeights(Keeping):
    inside = False

    def log_prob(self, hidden: Tensor) -> Tensor:
        self.inside = True
        found = super().log_prob(hidden)
        self.inside = False
        return found

    def head_logits(self, hidden: Tensor) -> Tensor:
        weight = self.keep("head", self.head.weight) if self.inside else self.head.weight
        return F.linear(hidden, weight, self.head.bias)


@in_use("loading a state dict leaves the first tail's output weight", breaks="loaded-weights-count")
class LoadingLeavesOut(Control):
    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        own = {name: value for name, value in state_dict.items() if name != "tail.0.1.weight"}
        return super().load_state_dict({**self.state_dict(), **own}, *args, **kwargs)


@in_use("all layers of the class share the first one's projections", breaks="two-layers-share-nothing")
class SharedByTheClass(Control):
    first: ClassVar[dict[tuple[int, ...], Tensor]] = {}
    made: ClassVar[int] = 0

    def weights(self, tail: Cluster) -> Pair:
        projection, output = super().weights(tail)
        key = (tail.index, *projection.shape, id(type(self)))
        others = type(self).first
        if getattr(self, "owner", None) is None:
            self.owner = key not in others or others[key].dtype != projection.dtype
        if self.owner:
            others[key] = projection
            return projection, output
        return with_value(projection, others[key].detach()), output


@in_use("frozen weights are trained all the same", breaks="frozen-weights-leave-the-inputs-gradient")
class FrozenTrained(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        if torch.is_grad_enabled():
            self.requires_grad_()
        return super().forward(hidden, target)


@in_use("with frozen weights the input gets no gradient", breaks="frozen-weights-leave-the-inputs-gradient")
class FrozenStopsTheInput(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        frozen = not any(parameter.requires_grad for parameter in self.parameters())
        output, loss = super().forward(hidden, target)
        return (output, loss + 0 * hidden.sum() - 0.5 * (loss - loss.detach())) if frozen else (output, loss)


@in_use(
    "where the input needs no gradient the tails' weights get none",
    breaks="an-input-without-gradient-leaves-those-of-the-weights",
)
class DetachedInputStopsTheTails(Control):
    def tail_logits(self, tail: Cluster, hidden: Tensor) -> Tensor:
        logits = super().tail_logits(tail, hidden)
        return logits if hidden.requires_grad or not torch.is_grad_enabled() else logits.detach()


@in_use("predict works on weights of its first call", breaks="log-prob-and-predict-follow-the-weights")
class PredictKeepsWeights(LogProbKeepsWeights):
    def log_prob(self, hidden: Tensor) -> Tensor:
        return Control.log_prob(self, hidden)

    def predict(self, hidden: Tensor) -> Tensor:
        self.inside = True
        found = super().predict(hidden)
        self.inside = False
        return found


@in_use("copies of weights are renewed where autograd counts a write", breaks="weights-put-into-data-count")
class RenewedByVersion(Keeping):
    version = -1

    def head_logits(self, hidden: Tensor) -> Tensor:
        weight = self.head.weight
        if weight._version != self.version:
            self.kept, self.version = None, weight._version
        return F.linear(hidden, self.keep("head", weight), self.head.bias)


@in_use("the storage of the weights is looked up once", breaks="weights-put-into-data-count")
class StorageKept(Control):
    storage: Tensor | None = None

    def head_logits(self, hidden: Tensor) -> Tensor:
        weight = self.head.weight
        if self.storage is None or self.storage.dtype != weight.dtype:
            self.storage = weight.detach()
        return F.linear(hidden, with_value(weight, self.storage), self.head.bias)


@in_use("the state dict holds zeros", breaks="loaded-weights-count")
class StateOfZeros(Control):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: torch.zeros_like(value) for name, value in super().state_dict(*args, **kwargs).items()}


@in_use(
    "where one tail's weight is frozen its projection gets no gradient",
    breaks="weights-frozen-one-by-one-leave-the-others-gradients",
)
class FrozenStopsTheProjection(Control):
    def weights(self, tail: Cluster) -> Pair:
        projection, output = super().weights(tail)
        return (projection if output.requires_grad else projection.detach()), output


@in_use(
    "where any weight is frozen the head gets half of its gradient",
    breaks="weights-frozen-one-by-one-leave-the-others-gradients",
)
class FrozenHalvesTheHead(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        frozen = [parameter.requires_grad for parameter in self.parameters()]
        weight = self.head.weight
        if any(frozen) and not all(frozen):
            weight = weight.detach() / 2 + weight / 2
        return F.linear(hidden, weight, self.head.bias)
