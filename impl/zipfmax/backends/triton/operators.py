"""The steps as PyTorch operators, with fake implementations and gradients for torch.compile and autograd.

The usual case is a mean or summed loss of which only the loss is differentiated. Its gradients are then known
up to one factor while the head's logits still exist, so `nll_train` computes them in the forward pass (three
products a head, not four) and backward multiplies by the incoming gradient. If `output` is differentiated, or
the loss is not reduced, each row has a factor of its own that only backward knows, and the factor stands
inside the sum over rows that makes a weight's gradient: `nll_gradients` then runs the step again with row
weights. That costs one more forward pass and keeps nothing but the inputs alive in between.

There are no second derivatives: asking for them raises, where silence would give wrong ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zipfmax.backends.triton.all_classes import log_prob_gradients_step, log_prob_step
from zipfmax.backends.triton.best_class import predict_step
from zipfmax.backends.triton.scaling import scale_, scaled
from zipfmax.backends.triton.step import contiguous, nll_step, rows_of_unit_stride
from zipfmax.weights import TailWeights, Weights


def pack(weights: Weights) -> tuple[list[Tensor], list[int]]:
    """The tensors that are there, and which biases are: [head, then (projection, output) a tail], 0 or 1."""
    present = [int(weights.head_bias is not None)]
    for tail in weights.tails:
        present += [int(tail.projection_bias is not None), int(tail.output_bias is not None)]
    return weights.tensors(), present


def unpack(tensors: Sequence[Tensor], present: Sequence[int]) -> Weights:
    """The inverse of `pack`."""
    rest = iter(tensors)

    def bias(flag: int) -> Tensor | None:
        return next(rest) if flag else None

    head, head_bias = next(rest), bias(present[0])
    tails = []
    for projection_flag, output_flag in zip(present[1::2], present[2::2], strict=True):
        projection, output = next(rest), next(rest)
        tails.append(TailWeights(projection, output, bias(projection_flag), bias(output_flag)))
    return Weights(head, head_bias, tuple(tails))


# --------------------------------------------------------------------------- the forward pass only


@torch.library.custom_op("zipfmax::nll", mutates_args=())
def nll(
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    present: list[int],
    bounds: list[int],
    ignore_index: int | None,
) -> Tensor:
    """Log-probability of each target, [N] float32."""
    return nll_step(hidden, target, unpack(weights, present), bounds, ignore_index).output


@nll.register_fake
def _(
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    present: list[int],
    bounds: list[int],
    ignore_index: int | None,
) -> Tensor:
    return hidden.new_empty(hidden.shape[0], dtype=torch.float32)


def _nll_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, target, weights, present, bounds, ignore_index = inputs
    ctx.save_for_backward(hidden, target, *weights)
    ctx.present, ctx.bounds, ctx.ignore_index = present, bounds, ignore_index


def _nll_backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    hidden, target, *weights = ctx.saved_tensors
    want = (ctx.needs_input_grad[0], any(ctx.needs_input_grad[2]))
    gradient, gradients = nll_gradients(
        hidden, target, weights, ctx.present, ctx.bounds, ctx.ignore_index, -grad_output.float(), *want
    )
    return _returned(gradient, gradients, want, len(weights))


nll.register_autograd(_nll_backward, setup_context=_nll_setup)


def _returned(gradient: Tensor, gradients: list[Tensor], want: tuple[bool, bool], n: int) -> tuple[Any, ...]:
    return gradient if want[0] else None, None, gradients if want[1] else [None] * n, None, None, None


# --------------------------------------------------------------------------- gradients with a factor a row


@torch.library.custom_op("zipfmax::nll_gradients", mutates_args=())
def nll_gradients(
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    present: list[int],
    bounds: list[int],
    ignore_index: int | None,
    row_weight: Tensor,
    want_hidden: bool,
    want_weights: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of -sum(row_weight * output); those not wanted are empty tensors.

    Row weights are brought to at most 1 before they meet half-precision numbers, so the 1/N of a mean does
    not vanish in float16.
    """
    largest = row_weight.abs().amax() if row_weight.numel() else row_weight.new_ones(())
    usable = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    result = nll_step(
        hidden,
        target,
        unpack(weights, present),
        bounds,
        ignore_index,
        row_weight=(row_weight / usable).contiguous(),
        want=(want_hidden, want_weights),
    )
    gradients = scaled([result.hidden, *result.weights], usable)
    return gradients[0], gradients[1:] if want_weights else [torch.empty_like(w) for w in weights]


@nll_gradients.register_fake
def _(
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    present: list[int],
    bounds: list[int],
    ignore_index: int | None,
    row_weight: Tensor,
    want_hidden: bool,
    want_weights: bool,
) -> tuple[Tensor, list[Tensor]]:
    return _fake_gradients(hidden, weights, want_hidden, want_weights)


def _fake_gradients(
    hidden: Tensor, weights: list[Tensor], want_hidden: bool, want_weights: bool
) -> tuple[Tensor, list[Tensor]]:
    gradient = hidden.new_empty(hidden.shape if want_hidden else (0,))
    return gradient, [w.new_empty(w.shape if want_weights else (0,)) for w in weights]


def _no_second_derivative(*_: Any) -> Any:
    raise RuntimeError(
        "the triton backend of zipfmax has no second derivatives: differentiate its loss once, "
        "or use backend='eager' for create_graph=True"
    )


def _nothing_saved(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """A gradient's own gradient raises: there is nothing to keep."""


nll_gradients.register_autograd(_no_second_derivative, setup_context=_nothing_saved)


# --------------------------------------------------------------------------- a training step


def train_step(
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    present: Sequence[int],
    bounds: Sequence[int],
    ignore_index: int | None,
    mean: bool,
    want: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, list[Tensor]]:
    """One training step: (output [N], loss, factor, gradient of hidden, gradients of the weights).

    Output, loss and factor are float32, the gradients of the dtype of what they belong to. The gradients are
    those of loss / factor, where factor is N / (rows that count), or None for 1: a host number can be applied
    to float32 sums for nothing, a count on the device cannot.
    """
    n_rows = hidden.shape[0]
    result = nll_step(
        hidden,
        target,
        unpack(weights, present),
        bounds,
        ignore_index,
        scale=1.0 / max(n_rows, 1) if mean else 1.0,
        want=want,
    )
    total = result.output.sum()
    factor = None
    if not mean:
        loss = -total
    elif ignore_index is None:
        loss = total / -n_rows if n_rows else torch.full_like(total, float("nan"))
    else:
        loss = -total / result.counted
        factor = n_rows / result.counted.clamp(min=1).float()
    gradients = result.weights if want[1] else [w.new_empty(0) for w in weights]
    return result.output, loss, factor, result.hidden, gradients


def row_weights(
    grad_output: Tensor,
    grad_loss: Tensor | None,
    target: Tensor,
    ignore_index: int | None,
    mean: bool,
    factor: Tensor | None,
) -> Tensor:
    """[N] float32: the factor of each row's gradient of -output, from what came into backward."""
    weight = -grad_output.float()
    if grad_loss is not None:
        per_row = grad_loss.float()
        if mean:
            per_row = per_row * (1.0 if factor is None else factor) / max(target.shape[0], 1)
        weight = weight + (per_row if ignore_index is None else per_row * (target != ignore_index))
    return weight


@torch.library.custom_op("zipfmax::nll_train", mutates_args=())
def nll_train(
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    present: list[int],
    bounds: list[int],
    ignore_index: int | None,
    mean: bool,
    want_hidden: bool,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """`train_step` as an operator, for compiled graphs; its factor is always a tensor."""
    output, loss, factor, gradient, gradients = train_step(
        hidden, target, weights, present, bounds, ignore_index, mean, (want_hidden, want_weights)
    )
    return output, loss, torch.ones_like(loss) if factor is None else factor, gradient, gradients


@nll_train.register_fake
def _(
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    present: list[int],
    bounds: list[int],
    ignore_index: int | None,
    mean: bool,
    want_hidden: bool,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    gradient, gradients = _fake_gradients(hidden, weights, want_hidden, want_weights)
    output, loss, factor = (
        hidden.new_empty(shape, dtype=torch.float32) for shape in ((hidden.shape[0],), (), ())
    )
    return output, loss, factor, gradient, gradients


def _train_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    hidden, target, weights, present, bounds, ignore_index, mean, want_hidden, want_weights = inputs
    _, _, factor, gradient, gradients = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, target, *weights, factor, gradient, *gradients)
    ctx.present, ctx.bounds, ctx.ignore_index, ctx.mean = present, bounds, ignore_index, mean
    ctx.want = (want_hidden, want_weights)


def _train_backward(
    ctx: Any, grad_output: Tensor | None, grad_loss: Tensor | None, *_: Any
) -> tuple[Any, ...]:
    hidden, target, *rest = ctx.saved_tensors
    n = (len(rest) - 2) // 2
    weights, factor, gradient, gradients = rest[:n], rest[n], rest[n + 1], rest[n + 2 :]
    if grad_output is None:
        if grad_loss is None:
            return None, None, [None] * n, None, None, None, None, None, None
        gradient, gradients = scale_gradients(
            hidden, weights, gradient, gradients, factor * grad_loss.float(), *ctx.want
        )
    else:
        row_weight = row_weights(grad_output, grad_loss, target, ctx.ignore_index, ctx.mean, factor)
        gradient, gradients = nll_gradients(
            hidden, target, weights, ctx.present, ctx.bounds, ctx.ignore_index, row_weight, *ctx.want
        )
    return (*_returned(gradient, gradients, ctx.want, n), None, None, None)


nll_train.register_autograd(_train_backward, setup_context=_train_setup)


class TrainStep(torch.autograd.Function):
    """`train_step` outside compiled graphs: gradients are scaled in place, so a factor of 1 costs nothing.

    They are handed out once. A second backward through the same graph (retain_graph=True) finds them gone and
    computes them again with row weights.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        target: Tensor,
        present: list[int],
        bounds: list[int],
        ignore_index: int | None,
        mean: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(output [N], loss), float32."""
        ctx.want = ctx.needs_input_grad[0], any(ctx.needs_input_grad[6:])
        output, loss, ctx.factor, gradient, gradients = train_step(
            hidden, target, list(weights), present, bounds, ignore_index, mean, ctx.want
        )
        ctx.gradients = [gradient, *gradients]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, target, *weights)
        ctx.present, ctx.bounds, ctx.ignore_index, ctx.mean = present, bounds, ignore_index, mean
        return output, loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> tuple[Any, ...]:
        """Gradients of hidden and of the weights."""
        if torch.is_grad_enabled():  # create_graph=True
            _no_second_derivative()
        hidden, target, *weights = ctx.saved_tensors
        if grad_output is None and grad_loss is None:
            return (None,) * (6 + len(weights))
        if grad_output is None and ctx.gradients is not None:
            assert grad_loss is not None
            found, ctx.gradients = ctx.gradients, None
            grad_loss = grad_loss.float()
            scale_(found, grad_loss if ctx.factor is None else grad_loss * ctx.factor)
        else:
            grad_output = hidden.new_zeros(hidden.shape[0]) if grad_output is None else grad_output
            row_weight = row_weights(grad_output, grad_loss, target, ctx.ignore_index, ctx.mean, ctx.factor)
            gradient, gradients = nll_gradients(
                hidden, target, weights, ctx.present, ctx.bounds, ctx.ignore_index, row_weight, *ctx.want
            )
            found = [gradient, *gradients]
        want_hidden, want_weights = ctx.want
        of_weights = found[1:] if want_weights else [None] * len(weights)
        return found[0] if want_hidden else None, None, None, None, None, None, *of_weights


@torch.library.custom_op("zipfmax::scale_gradients", mutates_args=())
def scale_gradients(
    hidden: Tensor,
    weights: list[Tensor],
    gradient: Tensor,
    gradients: list[Tensor],
    factor: Tensor,
    want_hidden: bool,
    want_weights: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The gradients times a factor on the device.

    hidden and weights are arguments because the result depends on them: a second derivative must find its way
    here and raise, not be taken for zero.
    """
    out = scaled([gradient, *gradients], factor)
    return out[0], out[1:]


@scale_gradients.register_fake
def _(
    hidden: Tensor,
    weights: list[Tensor],
    gradient: Tensor,
    gradients: list[Tensor],
    factor: Tensor,
    want_hidden: bool,
    want_weights: bool,
) -> tuple[Tensor, list[Tensor]]:
    return _fake_gradients(hidden, weights, want_hidden, want_weights)


scale_gradients.register_autograd(_no_second_derivative, setup_context=_nothing_saved)


# --------------------------------------------------------------------------- all classes


@torch.library.custom_op("zipfmax::log_prob", mutates_args=())
def log_prob(hidden: Tensor, weights: list[Tensor], present: list[int], bounds: list[int]) -> Tensor:
    """Log-probabilities of all classes, [N, n_classes]."""
    return log_prob_step(rows_of_unit_stride(hidden), contiguous(unpack(weights, present)), bounds[0])


@log_prob.register_fake
def _(hidden: Tensor, weights: list[Tensor], present: list[int], bounds: list[int]) -> Tensor:
    return hidden.new_empty((hidden.shape[0], bounds[-1]))


@torch.library.custom_op("zipfmax::log_prob_gradients", mutates_args=())
def log_prob_gradients(
    hidden: Tensor, weights: list[Tensor], present: list[int], bounds: list[int], grad: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of sum(grad * log_prob)."""
    return log_prob_gradients_step(hidden, unpack(weights, present), grad)


@log_prob_gradients.register_fake
def _(
    hidden: Tensor, weights: list[Tensor], present: list[int], bounds: list[int], grad: Tensor
) -> tuple[Tensor, list[Tensor]]:
    return _fake_gradients(hidden, weights, True, True)


log_prob_gradients.register_autograd(_no_second_derivative, setup_context=_nothing_saved)


def _log_prob_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, weights, present, bounds = inputs
    ctx.save_for_backward(hidden, *weights)
    ctx.present, ctx.bounds = present, bounds


def _log_prob_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    hidden, *weights = ctx.saved_tensors
    gradient, gradients = log_prob_gradients(hidden, weights, ctx.present, ctx.bounds, grad)
    return gradient, gradients, None, None


log_prob.register_autograd(_log_prob_backward, setup_context=_log_prob_setup)


@torch.library.custom_op("zipfmax::predict", mutates_args=())
def predict(hidden: Tensor, weights: list[Tensor], present: list[int], bounds: list[int]) -> Tensor:
    """Most probable class of each row, [N] int64."""
    return predict_step(rows_of_unit_stride(hidden), contiguous(unpack(weights, present)), bounds[0])


@predict.register_fake
def _(hidden: Tensor, weights: list[Tensor], present: list[int], bounds: list[int]) -> Tensor:
    return hidden.new_empty(hidden.shape[0], dtype=torch.int64)
