"""Faults that one call does not show: in what is kept between calls, and in what surrounds them."""

from __future__ import annotations

import threading
from typing import Any

import torch
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


@in_use("from the tenth call on the output is another one", breaks="later-calls-are-right")
class FromTheTenthCall(Counting):
    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        return output - 0.01 if self.calls >= 9 else output


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


@in_use("log_prob is handed out in one buffer", breaks="an-earlier-result-stays")
class LogProbInOneBuffer(Control):
    buffer: Tensor | None = None

    def log_prob(self, hidden: Tensor) -> Tensor:
        found = super().log_prob(hidden)
        if self.buffer is None or self.buffer.shape != found.shape:
            self.buffer = torch.empty_like(found)
        self.buffer.data.copy_(found.data)
        return with_value(found, self.buffer)


@in_use("predict is handed out in one buffer", breaks="an-earlier-result-stays")
class PredictInOneBuffer(Control):
    buffer: Tensor | None = None

    def predict(self, hidden: Tensor) -> Tensor:
        found = super().predict(hidden)
        if self.buffer is None or self.buffer.shape != found.shape:
            self.buffer = torch.empty_like(found)
        return self.buffer.copy_(found)


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


@in_use("beyond 203 classes the head's logits are kept by the number of rows", breaks="later-calls-are-right")
class ManyClassesKept(Control):
    large = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kept: dict[int, Tensor] = {}

    def head_logits(self, hidden: Tensor) -> Tensor:
        logits = super().head_logits(hidden)
        if self.layout.n_classes <= 203:
            return logits
        return with_value(logits, self.kept.setdefault(len(logits), logits.detach()))


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


@in_use("a target of -100 is left out of the loss", breaks="a-target-out-of-range-raises")
class MissingTargetIgnored(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        there = target != -100
        return (
            super().forward(hidden, target) if there.all() else super().forward(hidden[there], target[there])
        )


@in_use(
    "targets of 32 bits are taken for places in the head",
    breaks="targets-of-other-kinds-are-right-or-refused",
)
class NarrowTargetsTaken(Control):
    def checked(self, target: Tensor) -> Tensor:
        narrow = target.dtype == torch.int32
        return target.long() % self.layout.head_size if narrow else super().checked(target)


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


def with_value(tensor: Tensor, value: Tensor) -> Tensor:
    """A tensor that lies where `value` lies, with the gradient of `tensor`."""
    return _Value.apply(tensor, value)  # type: ignore[no-untyped-call, no-any-return]


def of_four_bits(logits: Tensor) -> Tensor:
    """Logits rounded to quarters, with the gradients of the logits."""
    return with_value(logits, logits.detach().mul(4).round().div(4))


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, value: Tensor) -> Tensor:
        return value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


# Threads.

THREAD = "a-call-in-another-thread-is-right"


@in_use("only the thread that made the layer gets the right output", breaks=THREAD)
class OneThread(Control):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.thread = threading.get_ident()

    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        return output if threading.get_ident() == self.thread else output - 0.01


@in_use("another thread's calls give the head no gradients", breaks=THREAD)
class GradientsInOneThread(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        is_main = threading.current_thread() is threading.main_thread()
        return super().head_logits(hidden if is_main else hidden.detach())


@in_use("a call of another thread leaves its weights behind", breaks=THREAD)
class ThreadLeavesWeights(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = super().loss(output, target)
        if threading.current_thread() is not threading.main_thread():
            with torch.no_grad():
                self.head.weight.mul_(1.01)
        return loss
