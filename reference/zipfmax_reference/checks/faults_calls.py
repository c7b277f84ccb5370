"""Faults that one call does not show: in what is kept between calls, and in what surrounds them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.clusters import Cluster
from zipfmax_reference.checks.faults import Control, in_use

Pair = tuple[Tensor, Tensor]


class Counting(Control):
    """Knows how many calls there were before."""

    calls = 0

    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        results = super().forward(hidden, target)
        self.calls += 1
        return results


# Results.


@in_use("only the first call is right", breaks="later-calls-are-right")
class FirstCallOnly(Counting):
    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        return output - 0.01 if self.calls else output


@in_use("only the first call's gradients are right", breaks="a-dropped-gradient-comes-back-new")
class FirstGradientsOnly(Counting):
    def head_logits(self, hidden: Tensor) -> Tensor:
        return super().head_logits(hidden.detach() if self.calls else hidden)


@in_use("the output is handed out in one buffer", breaks="an-earlier-result-stays")
class OutputInOneBuffer(Control):
    buffer: Tensor | None = None

    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        if self.buffer is None or self.buffer.shape != output.shape:
            self.buffer = torch.empty_like(output)
        self.buffer.data.copy_(output.data)
        return with_value(output, self.buffer)


@in_use("the loss is handed out in one buffer", breaks="an-earlier-result-stays")
class LossInOneBuffer(Control):
    buffer: Tensor | None = None

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = super().loss(output, target)
        self.buffer = torch.empty_like(loss) if self.buffer is None else self.buffer
        self.buffer.data.copy_(loss.data)
        return with_value(loss, self.buffer)


@in_use("the loss is a running mean over calls", breaks="later-calls-are-right")
class LossIsRunningMean(Control):
    last: Tensor | None = None

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = super().loss(output, target)
        found = loss if self.last is None else (loss + self.last) / 2
        self.last = loss.detach()
        return found


@in_use("a smaller batch's loss is divided by the largest batch's rows", breaks="later-calls-are-right")
class DividedByTheLargestBatch(Control):
    most = 0

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        self.most = max(self.most, len(output))
        return -output.sum() / self.most if len(output) else super().loss(output, target)


@in_use(
    "the result is a tensor subclass that computes when it is read",
    breaks="a-result-is-a-plain-tensor-in-the-graph",
)
class LazyResult(Control):
    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        return output.as_subclass(_Lazy)


class _Lazy(Tensor):
    pass


@in_use("the output cannot be differentiated", breaks="a-result-is-a-plain-tensor-in-the-graph")
class OutputDetached(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        output, loss = super().forward(hidden, target)
        return output.detach(), loss


# What is recognised by its address or its size.


@in_use("results are kept by the input's address", breaks="new-values-in-the-same-tensors-count")
class KeptByAddress(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: dict[int, Tensor] = {}

    def head_logits(self, hidden: Tensor) -> Tensor:
        logits = super().head_logits(hidden)
        known = self.kept.setdefault(hidden.data_ptr(), logits.detach())
        return logits if known.shape != logits.shape else with_value(logits, known)


@in_use(
    "which rows belong to a tail is kept by the targets' address",
    breaks="new-labels-for-the-same-input-count",
)
class RoutesKeptByAddress(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: dict[tuple[int, int], Tensor] = {}

    def member(self, tail: Cluster, target: Tensor) -> Tensor:
        member = super().member(tail, target)
        known = self.kept.setdefault((tail.index, target.data_ptr()), member)
        return known if known.shape == member.shape else member


@in_use("which rows belong to a tail is kept for batches of one size", breaks="later-calls-are-right")
class RoutesKeptBySize(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: dict[tuple[int, int], Tensor] = {}

    def member(self, tail: Cluster, target: Tensor) -> Tensor:
        return self.kept.setdefault((tail.index, len(target)), super().member(tail, target))


@in_use("a cluster that the first batch lacked stays away", breaks="later-calls-are-right")
class AbsentClusterStaysAway(Control):
    seen: set[int] | None = None

    def tail_logits(self, tail: Cluster, hidden: Tensor) -> Tensor:
        self.used.add(tail.index)
        logits = super().tail_logits(tail, hidden)
        return logits * 0 if self.seen is not None and tail.index not in self.seen else logits

    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        self.used: set[int] = set()
        results = super().forward(hidden, target)
        self.seen = self.used if self.seen is None else self.seen
        return results

    def log_prob(self, hidden: Tensor) -> Tensor:
        self.used = set()
        return super().log_prob(hidden)


# The caller's tensors.


@in_use("the caller's targets are zeroed", breaks="the-callers-tensors-stay")
class TargetZeroed(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        results = super().forward(hidden, target.clone())
        target.zero_()
        return results


@in_use("the caller's targets are sorted in place", breaks="the-callers-tensors-stay")
class TargetSorted(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        results = super().forward(hidden, target.clone())
        target.copy_(target.sort()[0])
        return results


@in_use("the caller's input is written to", breaks="the-callers-tensors-stay")
class InputWritten(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        results = super().forward(hidden.clone(), target)
        hidden.data.clamp_(-1, 1)
        return results


@in_use("predict writes to its input", breaks="the-callers-tensors-stay")
class PredictWrites(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        found = super().predict(hidden)
        hidden.data.mul_(0.5)
        return found


@in_use("log_prob moves the weights", breaks="other-methods-leave-a-call-alone")
class LogProbMovesWeights(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        found = super().log_prob(hidden)
        self.head.weight.data.mul_(1.01)
        return found


# Targets out of range.


@in_use("a target beyond the last class is taken for the last", breaks="a-target-out-of-range-raises")
class LargeTargetClamped(Control):
    def checked(self, target: Tensor) -> Tensor:
        return super().checked(target.clamp(max=self.layout.n_classes - 1))


@in_use("a negative target is taken for class 0", breaks="a-target-out-of-range-raises")
class NegativeTargetClamped(Control):
    def checked(self, target: Tensor) -> Tensor:
        return super().checked(target.clamp(min=0))


@in_use("a target out of range is left out of the loss", breaks="a-target-out-of-range-raises")
class WrongTargetIgnored(Control):
    def checked(self, target: Tensor) -> Tensor:
        return target % self.layout.n_classes


@in_use("after an error the layer stays broken", breaks="a-target-out-of-range-raises")
class BrokenByAnError(Control):
    broken = False

    def checked(self, target: Tensor) -> Tensor:
        try:
            return super().checked(target)
        except RuntimeError:
            self.broken = True
            raise

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return super().loss(output, target) * (2 if self.broken else 1)


# Modes and global state.


@in_use("evaluation mode softens the distribution", breaks="evaluation-mode-is-the-same-function")
class EvaluationSoftens(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        return super().normalised(logits if self.training else 0.99 * logits)


@in_use(
    "a call under no_grad turns gradients off for good",
    breaks="a-call-without-gradients-is-the-same-function",
)
class NoGradStays(Control):
    off = False

    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        self.off |= not torch.is_grad_enabled()
        return super().forward(hidden.detach() if self.off else hidden, target)


@in_use("a call under no_grad skips the tails", breaks="a-call-without-gradients-is-the-same-function")
class NoGradSkipsTails(Control):
    def joint(self, tail: Cluster, prior: Tensor, within: Tensor) -> Tensor:
        mixed = not torch.is_grad_enabled() and getattr(self, "trained", False)
        self.trained = torch.is_grad_enabled() or getattr(self, "trained", False)
        return prior if mixed else prior + within


@in_use("a call leaves the grad mode off", breaks="the-surroundings-stay")
class GradModeLeaks(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = super().loss(output, target)
        torch.set_grad_enabled(False)
        return loss


@in_use("a call leaves another default dtype", breaks="the-surroundings-stay")
class DefaultDtypeLeaks(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        torch.set_default_dtype(
            torch.float64 if torch.get_default_dtype() == torch.float32 else torch.float32
        )
        return super().loss(output, target)


@in_use("a call sets the seed", breaks="the-surroundings-stay")
class SeedLeaks(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        torch.manual_seed(0)
        return super().loss(output, target)


@in_use("a call leaves NumPy's errors off", breaks="the-surroundings-stay")
class NumpyErrorsLeak(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        np.seterr(all="ignore")
        return super().loss(output, target)


@in_use("predict draws random numbers", breaks="the-surroundings-stay")
class PredictDraws(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        torch.rand(1)
        return super().predict(hidden)


# Weights.


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


@in_use("log_prob works on weights of its first call", breaks="log-prob-follows-the-weights")
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


def with_value(tensor: Tensor, value: Tensor) -> Tensor:
    """A tensor that lies where `value` lies, with the gradient of `tensor`."""
    return _Value.apply(tensor, value)  # type: ignore[no-untyped-call, no-any-return]


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, value: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
