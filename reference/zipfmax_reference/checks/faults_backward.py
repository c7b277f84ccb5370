"""Faults in backward that loss.backward() after one call does not show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zipfmax_reference.checks.faults import Control, in_use

Gradients = list[Tensor | None]


class Early(Control):
    """Takes the loss's gradients in its forward, as fused losses do; what comes in is a part to be replaced."""

    last: Any
    """The last call's context."""

    def forward(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return super().forward(hidden, target)
        weights = dict(self.named_parameters())
        results: tuple[Tensor, Tensor] = _Step.apply(  # type: ignore[no-untyped-call]
            self, tuple(weights), hidden, target, *weights.values()
        )
        return results

    def on_leaves(
        self, names: tuple[str, ...], tensors: list[Tensor], target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Output and loss of the plain layer on these tensors."""
        with torch.enable_grad():
            state = dict(zip(names, tensors[1:], strict=True))
            results: tuple[Tensor, Tensor] = torch.func.functional_call(
                _plain(self), state, (tensors[0], target)
            )
        return results

    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        """The step's gradients for what comes in."""
        if grad_output is None and grad_loss is not None:
            return [gradient * grad_loss for gradient in step.gradients]
        return self.again(step, grad_output, grad_loss)

    def again(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        """By computing the step again."""
        leaves = [tensor.detach().requires_grad_() for tensor in step.tensors]
        results = self.on_leaves(step.names, leaves, step.target)
        pairs = [(r, g) for r, g in zip(results, (grad_output, grad_loss), strict=True) if g is not None]
        found = torch.autograd.grad([r for r, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]

    def saved(self, step: Any) -> Any:
        """What backward works on."""
        return step


def _plain(module: Control) -> Control:
    layout = module.layout
    sizes = layout.in_features, layout.n_classes, layout.cutoffs, layout.div_value
    with torch.device("meta"):
        return Control(*sizes, head_bias=module.head.bias is not None)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, module: Early, names: tuple[str, ...], hidden: Tensor, target: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.module, ctx.names, ctx.target = module, names, target.clone()
        ctx.tensors = [hidden.clone(), *(weight.clone() for weight in weights)]
        leaves = [tensor.detach().requires_grad_() for tensor in ctx.tensors]
        output, loss = module.on_leaves(names, leaves, target)
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        ctx.gradients = [torch.zeros_like(t) if g is None else g for t, g in zip(leaves, found, strict=True)]
        module.last = ctx
        return output.detach(), loss.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> tuple[Any, ...]:
        if grad_output is None and grad_loss is None:
            return (None,) * (3 + len(ctx.tensors))
        first, *rest = ctx.module.combined(ctx.module.saved(ctx), grad_output, grad_loss)
        wanted = ctx.needs_input_grad
        return (
            None,
            None,
            first if wanted[2] else None,
            None,
            *(g if want else None for g, want in zip(rest, wanted[4:], strict=True)),
        )


@in_use("the incoming gradient of the loss is taken for 1", breaks="the-incoming-gradient-counts")
class IncomingIgnored(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        one = None if grad_loss is None else torch.ones_like(grad_loss)
        return super().combined(step, grad_output, one)


@in_use("the incoming gradient's sign is lost", breaks="the-incoming-gradient-counts")
class IncomingSignLost(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        return super().combined(step, grad_output, None if grad_loss is None else grad_loss.abs())


@in_use("the incoming gradient reaches the input only", breaks="the-incoming-gradient-counts")
class IncomingReachesInputOnly(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        right = super().combined(step, grad_output, grad_loss)
        return right if grad_output is not None else [right[0], *step.gradients[1:]]


@in_use("the incoming gradient is rounded to 8 bits", breaks="output-and-loss-can-be-differentiated-together")
class IncomingRounded(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        rounded = None if grad_loss is None else grad_loss.bfloat16().to(grad_loss)
        return super().combined(step, grad_output, rounded)


@in_use("gradients through output are dropped", breaks="output-can-be-differentiated")
class OutputGradientDropped(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        if grad_loss is None:
            return [torch.zeros_like(gradient) for gradient in step.gradients]
        return super().combined(step, None, grad_loss)


@in_use("gradients through output are averaged over the rows", breaks="output-can-be-differentiated")
class OutputGradientAveraged(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        mean = None if grad_output is None else torch.full_like(grad_output, float(grad_output.mean()))
        return super().combined(step, mean, grad_loss)


@in_use(
    "of output and loss together only output is differentiated",
    breaks="output-and-loss-can-be-differentiated-together",
)
class OutputOnly(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        return super().combined(step, grad_output, grad_loss if grad_output is None else None)


@in_use(
    "of output and loss together the loss counts twice",
    breaks="output-and-loss-can-be-differentiated-together",
)
class LossTwice(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        twice = grad_loss if grad_output is None or grad_loss is None else 2 * grad_loss
        return super().combined(step, grad_output, twice)


@in_use(
    "after a backward through output the loss's gradients are zero",
    breaks="output-and-loss-can-be-differentiated-together",
)
class OutputTurnsLossOff(Early):
    seen = False

    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        right = super().combined(step, grad_output, grad_loss)
        off = self.seen and grad_output is None
        self.seen |= grad_output is not None
        return [torch.zeros_like(gradient) for gradient in step.gradients] if off else right


@in_use("backward works on what the last call saved", breaks="backwards-may-come-later-and-in-any-order")
class LastCallSaved(Early):
    def saved(self, step: Any) -> Any:
        return self.last if len(self.last.target) == len(step.target) else step


@in_use("the gradients of all calls add up in the layer", breaks="gradients-accumulate")
class GradientsAddUp(Early):
    total: Gradients | None = None

    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        right = super().combined(step, grad_output, grad_loss)
        if self.total is not None:
            right[1:] = [a + b for a, b in zip(right[1:], self.total, strict=True)]  # type: ignore[operator]
        self.total = right[1:]
        return right


@in_use("a weight that already has a gradient gets no more", breaks="gradients-accumulate")
class NoAccumulation(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        right = super().combined(step, grad_output, grad_loss)
        own = [None, *self.parameters()]
        return [
            g if p is None or p.grad is None or g is None else torch.zeros_like(g)
            for p, g in zip(own, right, strict=True)
        ]


@in_use(
    "a second backward through a kept graph scales twice", breaks="a-graph-that-is-kept-can-be-used-twice"
)
class KeptGraphScaledTwice(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        if grad_loss is not None:
            for gradient in step.gradients:
                gradient.mul_(grad_loss)
            if grad_output is None:
                return [gradient.clone() for gradient in step.gradients]
            extra = self.again(step, grad_output, None)
            return [a + b for a, b in zip(step.gradients, extra, strict=True)]
        return self.again(step, grad_output, None)


@in_use("all gradients are handed out in one buffer", breaks="losses-of-several-calls-can-be-added-up")
class GradientsInOneBuffer(Early):
    handed: Gradients | None = None

    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        right = super().combined(step, grad_output, grad_loss)
        if self.handed is None:
            self.handed = [None if g is None else torch.empty_like(g) for g in right[1:]]
        for buffer, gradient in zip(self.handed, right[1:], strict=True):
            if buffer is not None and gradient is not None:
                buffer.copy_(gradient)
        return [right[0], *self.handed]


@in_use("the incoming gradient is clamped to 65,536", breaks="the-incoming-gradient-counts")
class IncomingClamped(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        clamped = None if grad_loss is None else grad_loss.clamp(-65_536, 65_536)
        return super().combined(step, grad_output, clamped)


@in_use("beyond 64 rows the incoming gradient of output is cut off", breaks="output-can-be-differentiated")
class ManyRowsCutOff(Early):
    large = True

    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        if grad_output is not None:
            grad_output = torch.cat([grad_output[:64], torch.zeros_like(grad_output[64:])])
        return super().combined(step, grad_output, grad_loss)


@in_use("log_prob cannot be differentiated", breaks="log-prob-can-be-differentiated")
class LogProbDetached(Control):
    def log_prob(self, hidden: Tensor) -> Tensor:
        return super().log_prob(hidden).detach().requires_grad_()


@in_use("the gradient of log_prob lacks that of the softmax", breaks="log-prob-can-be-differentiated")
class LogProbGradientOfLogits(Control):
    inside = False

    def log_prob(self, hidden: Tensor) -> Tensor:
        self.inside = True
        found = super().log_prob(hidden)
        self.inside = False
        return found

    def normalised(self, logits: Tensor) -> Tensor:
        if not self.inside:
            return super().normalised(logits)
        return logits - logits.detach().logsumexp(dim=1, keepdim=True)


@in_use("the second derivative lacks the softmax's own", breaks="a-second-derivative-is-right")
class SecondDerivativeCut(Control):
    def normalised(self, logits: Tensor) -> Tensor:
        return LogSoftmax.apply(logits)  # type: ignore[no-untyped-call, no-any-return]


class LogSoftmax(torch.autograd.Function):
    """log_softmax whose backward takes the probabilities for constants."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        found = torch.log_softmax(logits, dim=1)
        ctx.p = found.exp().detach()
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        found: Tensor = gradient - ctx.p * gradient.sum(dim=1, keepdim=True)
        return found


@in_use("a backward works on one of the last three calls", breaks="losses-of-several-calls-can-be-added-up")
class ThreeCallsKept(Early):
    recent: tuple[Any, ...] = ()

    def forward(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        results = super().forward(hidden, target)
        if torch.is_grad_enabled():
            self.recent = (*self.recent, self.last)[-3:]
        return results

    def saved(self, step: Any) -> Any:
        return step if any(step is one for one in self.recent) else self.recent[0]


@in_use("backward clears the gradient that comes in for output", breaks="output-can-be-differentiated")
class IncomingOutputCleared(Early):
    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        found = super().combined(step, grad_output, grad_loss)
        if grad_output is not None and grad_output.is_contiguous():
            grad_output.zero_()
        return found


@in_use("a computed input's memory is taken for its gradient", breaks="the-input-may-be-computed")
class ComputedInputOverwritten(Early):
    given: Tensor | None = None

    def forward(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        self.given = None if hidden.is_leaf else hidden.detach()
        return super().forward(hidden, target)

    def combined(self, step: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> Gradients:
        found = super().combined(step, grad_output, grad_loss)
        if self.given is not None and found[0] is not None:
            self.given.copy_(found[0])
        return found
