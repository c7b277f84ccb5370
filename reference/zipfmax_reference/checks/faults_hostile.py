"""Faults in what a layer does to itself and to its caller's tensors, and in batches of unusual labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipfmax.clusters import Cluster
from zipfmax_reference.checks.faults import Control, in_use
from zipfmax_reference.checks.faults_backward import Early, Gradients
from zipfmax_reference.checks.faults_calls import Counting, Pair, with_value

# Itself and its caller's tensors, besides their values.

LEAVES = "a-call-leaves-the-module-and-its-inputs-as-they-are"


@in_use("a call puts the module into training mode", breaks=LEAVES)
class TrainingModeLeaks(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        self.train()
        return super().loss(output, target)


@in_use("the caller's input takes gradients from then on", breaks=LEAVES)
class InputTakesGradients(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        results = super().forward(hidden, target)
        if hidden.is_leaf and not hidden.is_inference():
            hidden.requires_grad_()
        return results


@in_use("a hook is left on the caller's input", breaks=LEAVES)
class HookLeft(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        if hidden.requires_grad and torch.is_grad_enabled():
            hidden.register_hook(lambda gradient: None)  # type: ignore[no-untyped-call]
        return super().forward(hidden, target)


@in_use("the head's parameter is another one after each call", breaks=LEAVES)
class ParameterReplaced(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        results = super().forward(hidden, target)
        if not self.training or not torch.is_grad_enabled():
            self.head.weight = nn.Parameter(self.head.weight.detach(), self.head.weight.requires_grad)
        return results


@in_use("a call enters a buffer into the state dict", breaks=LEAVES)
class BufferEntered(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        self.register_buffer("calls", torch.ones((), dtype=output.dtype))
        return super().loss(output, target)


@in_use("every batch is kept alive", breaks=LEAVES)
class BatchesKept(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[Tensor] = []

    def checked(self, target: Tensor) -> Tensor:
        self.seen.append(target)
        return super().checked(target)


# What is changed between a call and its backward, or in a result.

BETWEEN = "what-changes-before-backward-is-refused-or-does-not-count"


class Late(Early):
    """Computes the step again in backward."""

    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        return self.again(step, grad_output, grad_loss)


class _Step:
    def __init__(self, step: Any, **other: Any) -> None:
        self.names, self.tensors, self.target = step.names, step.tensors, step.target
        vars(self).update(other)


@in_use("backward works on the weights of its time", breaks=BETWEEN)
class WeightsOfBackward(Late):
    def saved(self, step: Any) -> Any:
        now = [step.tensors[0], *(weight.detach() for weight in self.parameters())]
        return _Step(step, tensors=now) if self.training else step


@in_use("backward works on the input of its time", breaks=BETWEEN)
class InputOfBackward(Late):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        results = super().forward(hidden, target)
        if torch.is_grad_enabled():
            self.last.given = hidden.detach()
        return results

    def saved(self, step: Any) -> Any:
        return _Step(step, tensors=[step.given, *step.tensors[1:]])


@in_use("backward works on the targets of its time", breaks=BETWEEN)
class TargetOfBackward(Late):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        results = super().forward(hidden, target)
        if torch.is_grad_enabled():
            self.last.given = target
        return results

    def saved(self, step: Any) -> Any:
        return _Step(step, target=step.given)


@in_use("log_prob is handed out again where nothing changed", breaks="a-result-is-its-callers")
class LogProbHandedOutAgain(Control):
    known: tuple[float, Tensor] | None = None

    def log_prob(self, hidden: Tensor) -> Tensor:
        found = super().log_prob(hidden)
        key = hidden.sum().item() + self.head.weight.sum().item()
        if found.requires_grad or hidden.is_inference():
            return found
        if self.known is None or self.known[0] != key or self.known[1].shape != found.shape:
            self.known = key, found
        return self.known[1]


@in_use("a second backward without a kept graph gives zeros", breaks="a-graph-is-used-once-or-right")
class SecondBackwardOfZeros(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        found = super().combined(step, grad_output, grad_loss)
        if getattr(step, "done", False):
            return [None if gradient is None else torch.zeros_like(gradient) for gradient in found]
        step.done = True
        return found


# Memory that is not side by side.

GAPS = "batches-may-have-gaps"


@in_use("rows of an input are read as if they lay side by side", breaks=GAPS)
class RowStrideIgnored(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        d = hidden.shape[1]
        if hidden.stride(1) == 1 and hidden.stride(0) > d and len(hidden) > 1:
            hidden = with_value(hidden, hidden.as_strided(hidden.shape, (d, 1)))
        return super().head_logits(hidden)


@in_use("an input that lies column by column is read row by row", breaks=GAPS)
class ColumnsReadAsRows(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        if hidden.stride(0) == 1 and hidden.shape[1] > 1 and hidden.stride(1) == len(hidden) > 1:
            hidden = with_value(hidden, hidden.as_strided(hidden.shape, (hidden.shape[1], 1)))
        return super().head_logits(hidden)


@in_use("weights are read as if they lay row by row", breaks="weights-put-into-data-count")
class WeightStrideIgnored(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        weight = self.head.weight
        if not weight.is_contiguous():
            weight = with_value(weight, weight.detach().as_strided(weight.shape, (weight.shape[1], 1)))
        return F.linear(hidden, weight, self.head.bias)


# Batches that are unusual.

INFERENCE = "log-prob-and-predict-are-the-same-in-inference-mode"

MIX = "any-mix-of-labels-is-right"


@in_use("a batch of one tail skips the head", breaks=MIX)
class OneTailSkipsTheHead(Control):
    alone = False

    def checked(self, target: Tensor) -> Tensor:
        parts = {self.layout.n_clusters if int(t) < self.layout.shortlist_size else 0 for t in target}
        self.alone = parts == {0} and len(set(target.tolist())) > 1
        return super().checked(target)

    def joint(self, tail: Cluster, prior: Tensor, within: Tensor) -> Tensor:
        return within if self.alone else super().joint(tail, prior, within)


@in_use("a batch whose labels are sorted is taken for one label", breaks=MIX)
class SortedTakenForOne(Control):
    def checked(self, target: Tensor) -> Tensor:
        target = super().checked(target)
        ordered = len(target) > 3 and bool((target[1:] > target[:-1]).all())
        return target[:1].expand_as(target) if ordered else target


@in_use("where each row has the same label it is counted once", breaks=MIX)
class SameLabelCountedOnce(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        same = len(target) > 3 and bool((target == target[0]).all())
        return super().loss(output[:1] if same else output, target)


@in_use("a row of zeros is taken for padding", breaks=MIX)
class ZeroRowIsPadding(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        output, loss = super().forward(hidden, target)
        if hidden.dim() == 2 and bool((hidden == 0).all(dim=1).any()):
            return output, -output[(hidden != 0).any(dim=1)].sum() / len(output)
        return output, loss


@in_use("a batch of no rows is an error", breaks="a-batch-of-no-rows-is-a-batch")
class NoRowsRaise(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        if len(hidden) == 0:
            raise ValueError("no rows")
        return super().forward(hidden, target)


@in_use("log_prob of no rows has no classes", breaks="a-batch-of-no-rows-is-a-batch")
class NoRowsNoClasses(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        return super().log_prob(hidden) if len(hidden) else hidden.new_empty(0, 0)


@in_use("from the 40th call on the output is another one", breaks="later-calls-are-right")
class FromThe40thCall(Counting):
    def returned(self, output: Tensor, target: Tensor) -> Tensor:
        return output - 0.01 if self.calls >= 39 else output


@in_use("in inference mode log_prob is 0.01 too small", breaks=INFERENCE)
class InferenceLogProb(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        found = super().log_prob(hidden)
        return found - 0.01 if torch.is_inference_mode_enabled() else found


@in_use("in inference mode predict knows the shortlist only", breaks=INFERENCE)
class InferencePredicts(Control):
    def predict(self, hidden: Tensor) -> Tensor:
        known = self.layout.shortlist_size if torch.is_inference_mode_enabled() else self.layout.n_classes
        return self.log_prob(hidden)[:, :known].argmax(dim=1)


@in_use("weights of zeros are taken for weights that were not loaded", breaks="weights-of-zeros-are-weights")
class ZeroWeightsSkipped(Control):
    def joint(self, tail: Cluster, prior: Tensor, within: Tensor) -> Tensor:
        absent = not self.weights(tail)[1].any()
        return prior if absent and tail.projection_size else super().joint(tail, prior, within)
