"""Faults that show in what a user does around a call: settings, checkpoints, hooks, computed weights, hard masks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipfmax_reference.checks.faults import Control, in_use, scaled_gradient
from zipfmax_reference.checks.faults_backward import Early, Gradients
from zipfmax_reference.checks.faults_calls import Pair, of_four_bits, with_value

# Settings of the process.

SETTINGS = "settings-of-the-process-change-no-result"


@in_use("with several threads the last row is left out of the loss", breaks=SETTINGS)
class ThreadsLoseARow(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        lost = torch.get_num_threads() > 1 and len(output) > 1
        return super().loss(output[:-1] if lost else output, target)


@in_use("the search for anomalies doubles the head's gradient", breaks=SETTINGS)
class AnomalyDoubles(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        return scaled_gradient(super().head_logits(hidden), 2.0 if torch.is_anomaly_enabled() else 1.0)


@in_use("under deterministic algorithms of rows with one label only the last has a gradient", breaks=SETTINGS)
class DeterministicLosesDuplicates(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        if torch.are_deterministic_algorithms_enabled() and grad_output is not None:
            labels = step.target.tolist()
            last = [label not in labels[row + 1 :] for row, label in enumerate(labels)]
            grad_output = grad_output * torch.tensor(last, device=grad_output.device)
        return super().combined(step, grad_output, grad_loss)


@in_use(
    "where products may be coarse the logits have 4 bits", breaks="products-of-lower-precision-are-within-it"
)
class CoarseProducts(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        coarse = torch.get_float32_matmul_precision() != "highest"
        return super().normalised(of_four_bits(logits) if coarse else logits)


@in_use(
    "where no device is given numbers of rows lie on the default one",
    breaks="a-call-under-other-defaults-is-right",
)
class RowsOnTheDefaultDevice(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return super().loss(output[torch.arange(len(output))], target)


@in_use(
    "while evaluating under autocast the head's logits have 4 bits", breaks="autocast-keeps-to-its-precision"
)
class EvaluationCoarseUnderAutocast(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        logits = super().head_logits(hidden)
        coarse = torch.is_autocast_enabled("cpu") and not self.training
        return of_four_bits(logits) if coarse else logits


# Checkpoints, computed weights, parameters, hooks.

CHECKPOINT = "a-checkpointed-call-is-right"


@in_use("a call that is broken off leaves the layer in another state", breaks=CHECKPOINT)
class BrokenOffStaysBusy(Control):
    busy = False

    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        self.checked(target)
        was, self.busy = self.busy, True
        results = super().forward(hidden, target)
        self.busy = False
        return results if not was else (results[0] + 0.01, results[1] - 0.01)


@in_use("the first call saves more for backward than others", breaks=CHECKPOINT)
class FirstCallSavesMore(Control):
    known = False

    def head_logits(self, hidden: Tensor) -> Tensor:
        logits = super().head_logits(hidden)
        if not self.known and torch.is_grad_enabled():
            self.known = True
            logits = logits + 0 * logits.square()
        return logits


@in_use(
    "weights that are no parameters are taken for the last ones that were", breaks="weights-may-be-computed"
)
class ParametersAlone(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.met: list[Tensor] = []

    def head_logits(self, hidden: Tensor) -> Tensor:
        if isinstance(self.head.weight, nn.Parameter) or not self.met:
            self.met = [self.head.weight.detach()]
            return super().head_logits(hidden)
        return F.linear(hidden, self.met[0], self.head.bias)


@in_use("an input that is a parameter is cut from its graph", breaks="the-input-may-be-a-parameter")
class ParameterInputCut(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        return super().forward(hidden.detach() if isinstance(hidden, nn.Parameter) else hidden, target)


TENSOR_HOOKS = "hooks-of-tensors-run"


@in_use("a head whose gradient has a hook gets none", breaks=TENSOR_HOOKS)
class HookedHeadCut(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        weight = self.head.weight
        return F.linear(hidden, weight.detach() if weight._backward_hooks else weight, self.head.bias)


@in_use("hooks on weights of clusters without targets run without a gradient", breaks=TENSOR_HOOKS)
class HooksWithNothing(Early):
    def again(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        return self._without(super().again(step, grad_output, grad_loss))

    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        return self._without(super().combined(step, grad_output, grad_loss))

    def _without(self, found: Gradients) -> Gradients:
        return [None if one is not None and not one.any() else one for one in found]


# Rows, magnitudes and masks.

ROWS = "every-number-of-rows-is-a-batch"


@in_use("plans are kept for eight numbers of rows, and the ninth gets the first one's mean", breaks=ROWS)
class NinthNumberOfRows(Control):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.plans: dict[int, int] = {}

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        if len(self.plans) < 8:
            self.plans.setdefault(len(output), len(output))
        return -output.sum() / self.plans.get(len(output), 1 if self.plans else len(output))


@in_use("two rows take the path of one", breaks=ROWS)
class TwoRowsAreOne(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return super().loss(output[:1] if len(output) == 2 else output, target)


@in_use("a tile of 16 rows loses its last", breaks=ROWS)
class TileOfRowsLosesOne(Control):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return super().loss(output[:-1] if len(output) == 16 else output, target)


@in_use(
    "inputs are cut at twice the largest magnitude of the calls before",
    breaks="a-batch-may-be-larger-than-all-before",
)
class LargestSoFar(Control):
    largest = 0.0

    def head_logits(self, hidden: Tensor) -> Tensor:
        largest, most = float(hidden.detach().abs().max()) if len(hidden) else 0.0, 2 * self.largest
        self.largest = max(largest, self.largest)
        return super().head_logits(hidden.clamp(-most, most) if most else hidden)


RULED_OUT = "a-bias-may-rule-out-classes"


@in_use("a logit of minus infinity counts as -50", breaks=RULED_OUT)
class LogitsCutBelow(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        return super().head_logits(hidden).clamp(min=-50)


@in_use("a logit of minus infinity is not a number in the gradient", breaks=RULED_OUT)
class RuledOutIsNotANumber(Control):
    def head_logits(self, hidden: Tensor) -> Tensor:
        logits = super().head_logits(hidden)
        if torch.is_grad_enabled() and logits.requires_grad and bool(logits.isinf().any()):
            logits = logits.max().detach() + (logits - logits.max().detach()).exp().log()
        return logits


FAR = "logits-may-all-be-far-below-zero"


@in_use("the running maximum begins at -10,000", breaks=FAR)
class MaximumFromBelow(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        most = logits.detach().amax(dim=1, keepdim=True).clamp(min=-1e4) if logits.shape[1] else 0.0
        return logits - most - (logits - most).exp().sum(dim=1, keepdim=True).log()


@in_use("padding columns hold -10,000 and take part in the sum", breaks=FAR)
class PaddingFarBelow(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        return super().normalised(F.pad(logits, (0, 3), value=-1e4))[:, : logits.shape[1]]


@in_use("an input of 64 bits is read as 32 bits", breaks="an-input-of-another-dtype-is-right-or-refused")
class OtherDtypeReinterpreted(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        own = self.head.weight.dtype
        if hidden.dtype == torch.float64 and own == torch.float32:
            hidden = hidden.detach().view(own)[..., : hidden.shape[-1]]
        return super().forward(hidden, target)


# What comes in for backward, and what is left of it.


@in_use("gradients are divided by what comes in for the loss", breaks="the-incoming-gradient-counts")
class NothingComesInIsNotANumber(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        if grad_loss is not None:
            grad_loss = grad_loss / grad_loss * grad_loss
        return super().combined(step, grad_output, grad_loss)


@in_use("gradients of rows whose sum is zero are taken for none", breaks="output-can-be-differentiated")
class BalancedTakenForNone(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        if grad_output is not None and not grad_output.sum():
            grad_output = torch.zeros_like(grad_output)
        return super().combined(step, grad_output, grad_loss)


WHOLE = "log-prob-of-a-whole-batch-can-be-differentiated"


@in_use("log_prob of rows beyond 64 cannot be differentiated", breaks=WHOLE)
class LogProbOfManyRowsCut(Control):
    large = True

    def log_prob(self, hidden: Tensor) -> Tensor:
        log_prob = super().log_prob(hidden)
        return torch.cat([log_prob[:64], log_prob[64:].detach()])


@in_use("a log_prob that can be differentiated is softened", breaks=WHOLE)
class RecordedLogProbSoftened(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        log_prob = super().log_prob(hidden)
        return with_value(log_prob, 0.99 * log_prob.detach()) if log_prob.requires_grad else log_prob


@in_use("weights of clusters without targets share one memory of zeros", breaks="gradients-accumulate")
class ZerosShared(Early):
    zeros = torch.zeros(0)

    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        found = super().combined(step, grad_output, grad_loss)
        return [None if one is None else one if one.any() else self._view(one) for one in found]

    def _view(self, gradient: Tensor) -> Tensor:
        if self.zeros.numel() < gradient.numel() or self.zeros.dtype != gradient.dtype:
            self.zeros = torch.zeros(gradient.numel() * 4, dtype=gradient.dtype, device=gradient.device)
        return self.zeros[: gradient.numel()].view_as(gradient)


@in_use(
    "evaluation with frozen weights records no gradient of the input",
    breaks="frozen-weights-leave-the-inputs-gradient",
)
class FrozenEvaluationCut(Control):
    def forward(self, hidden: Tensor, target: Tensor) -> Pair:
        frozen = not any(weight.requires_grad for weight in self.parameters())
        if self.training or not frozen:
            return super().forward(hidden, target)
        output, loss = super().forward(hidden.detach(), target)
        return output + 0 * hidden.sum(), loss + 0 * hidden.sum()
