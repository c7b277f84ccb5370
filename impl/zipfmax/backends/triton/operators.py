"""The steps as PyTorch operators, with fake implementations and gradients for torch.compile and autograd.

The usual case is a mean or summed loss of which only the loss is differentiated. Its gradients are then known
up to one factor while the head's logits still exist, so `train` computes them in the forward pass (three
products a head, not four) and backward multiplies by the incoming gradient. If `output` is differentiated, or
the loss is not reduced, each row has a factor of its own that only backward knows, and the factor stands
inside the sum over rows that makes a weight's gradient: `gradients_by_row` then runs the step again with row
weights. That costs one more forward pass and keeps nothing but the inputs alive in between.

Outside compiled graphs `TrainStep` calls these functions; a compiled graph calls them as operators. Operators
are defined by schema, not through torch.library.custom_op, whose wrapper costs 20 us a call on the host.

A backward that is itself differentiated (create_graph=True) or batched (is_grads_batched=True) is computed by the
eager backend.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zipfmax.backends import eager
from zipfmax.backends.context import is_differentiated
from zipfmax.backends.triton.all_classes import log_prob_gradients_step, log_prob_step
from zipfmax.backends.triton.best_class import predict_step
from zipfmax.backends.triton.loss import row_weights
from zipfmax.backends.triton.scaling import scale_, scaled
from zipfmax.backends.triton.step import (
    Result,
    contiguous,
    gradients_of,
    nll_step,
    rows_of_unit_stride,
)
from zipfmax.gradients import Upstream
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


# --------------------------------------------------------------------------- what a step computes


def forward(
    hidden: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    present: Sequence[int],
    bounds: Sequence[int],
    ignore_index: int | None,
    reduction: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """(output [N], loss) of this dtype, without gradients."""
    if hidden.shape[0] == 0:
        return _nothing(hidden, reduction, dtype)
    result = nll_step(
        hidden,
        target,
        weights,
        present,
        bounds,
        ignore_index,
        reduction=reduction,
        result_dtype=dtype,
    )
    return result.output, result.loss


def _nothing(hidden: Tensor, reduction: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Output and loss of no rows."""
    output = hidden.new_empty(0, dtype=dtype)
    if reduction == "none":
        return output, output.clone()
    return output, hidden.new_full((), float("nan") if reduction == "mean" else 0.0, dtype=dtype)


def train(
    hidden: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    present: Sequence[int],
    bounds: Sequence[int],
    ignore_index: int | None,
    reduction: str,
    dtype: torch.dtype,
    want: tuple[bool, bool],
) -> Result:
    """Output and a reduced loss of this dtype, and the gradients of loss / factor: see `Result`.

    With a lease, factor and gradients are to be copied before it is dropped.
    """
    if hidden.shape[0] == 0:
        output, loss = _nothing(hidden, reduction, dtype)
        factor = None
        if reduction == "mean" and ignore_index is not None:
            factor = hidden.new_zeros((), dtype=torch.float32)
        found = _no_gradients(hidden, weights, present, bounds, want)
        return Result(output, loss, factor, *found, gradients_of(hidden, weights, present, bounds))
    return nll_step(
        hidden,
        target,
        weights,
        present,
        bounds,
        ignore_index,
        reduction=reduction,
        want=want,
        result_dtype=dtype,
        capture=True,
    )


def gradients_by_row(
    hidden: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    present: Sequence[int],
    bounds: Sequence[int],
    ignore_index: int | None,
    reduction: str,
    grad_output: Tensor | None,
    grad_loss: Tensor | None,
    factor: Tensor | None,
    want: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of hidden and, in one allocation, of the weights, from those of output and loss.

    Args:
        grad_output: [N]; grad_loss: a scalar or, for reduction "none", [N]; None where nothing came in.
        factor: as `train` or a step's `Result` has it; computed here where it is None and needed.
    """
    if hidden.shape[0] == 0:
        return _no_gradients(hidden, weights, present, bounds, want)
    if factor is None and grad_loss is not None and reduction == "mean" and ignore_index is not None:
        counted = (target != ignore_index).sum().clamp(min=1)
        factor = target.shape[0] / counted.float()
    row_weight, largest = row_weights(grad_output, grad_loss, factor, target, reduction, ignore_index)
    result = nll_step(
        hidden,
        target,
        weights,
        present,
        bounds,
        ignore_index,
        row_weight=row_weight,
        want=want,
    )
    scale_(result.hidden, result.weights, largest)
    return result.hidden, result.weights


def _no_gradients(
    hidden: Tensor,
    weights: Sequence[Tensor],
    present: Sequence[int],
    bounds: Sequence[int],
    want: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of no rows: zeros."""
    flat = hidden.new_zeros(gradients_of(hidden, weights, present, bounds).size) if want[1] else None
    return torch.zeros_like(hidden) if want[0] else None, flat


def _plain_gradients(
    hidden: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    present: Sequence[int],
    bounds: Sequence[int],
    ignore_index: int | None,
    reduction: str,
    upstream: tuple[Tensor | None, Tensor | None],
    dtype: torch.dtype,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of hidden and of the weights by plain operations; zeros for clusters without targets."""
    of_hidden, *of_weights = eager.gradients(
        (0, *bounds),
        unpack(weights, present),
        hidden,
        target,
        upstream,
        ignore_index=ignore_index,
        reduction=reduction,
        dtype=dtype,
    )
    return of_hidden, eager.zeros_for_absent(weights, of_weights)


# --------------------------------------------------------------------------- outside compiled graphs


class TrainStep(torch.autograd.Function):
    """A differentiable step outside compiled graphs.

    Where the backward is expected to start from a reduced loss, the forward computes the gradients, and
    backward scales them in place, so a factor of 1 costs nothing, or from a captured step's memory into new
    tensors. They are handed out once: a second backward through the same graph (retain_graph=True) finds them
    gone and computes them by row.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        target: Tensor,
        present: list[int],
        bounds: list[int],
        ignore_index: int | None,
        reduction: str,
        dtype: torch.dtype,
        upstream: Upstream,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(output [N], loss), of this dtype."""
        needs = ctx.needs_input_grad
        ctx.want = needs[0], True in needs[8:]
        ctx.factor = ctx.gradients = ctx.places = ctx.lease = None
        ctx.settings = present, bounds, ignore_index, reduction, dtype
        ctx.upstream = upstream
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, *weights)
        ready = reduction != "none" and not upstream.from_output
        # The caller may write to the targets before backward, which needs them where no gradients are ready.
        ctx.target = target if ready else target.clone()
        ctx.version = _version(ctx.target)
        if not ready:
            return forward(hidden, target, weights, present, bounds, ignore_index, reduction, dtype)
        found = train(hidden, target, weights, present, bounds, ignore_index, reduction, dtype, ctx.want)
        ctx.factor, ctx.gradients, ctx.places = found.factor, (found.hidden, found.weights), found.places
        ctx.lease = found.lease
        return found.output, found.loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> tuple[Any, ...]:
        """Gradients of hidden and of the weights."""
        hidden, *weights = ctx.saved_tensors
        target = ctx.target
        if grad_output is None and grad_loss is None:
            return (None,) * (8 + len(weights))
        present, bounds, ignore_index, reduction, dtype = ctx.settings
        if reduction != "none":
            ctx.upstream.learn(from_output=grad_output is not None)
        ready = grad_output is None and ctx.gradients is not None
        if _version(target) != ctx.version and not (ready and not torch.is_grad_enabled()):
            raise RuntimeError(
                "the targets of AdaptiveLogSoftmaxWithLoss were modified in place after the call, and this backward "
                "computes the step again: pass a copy of them, or say gradients='output' where output is "
                "differentiated"
            )
        if is_differentiated(grad_output, grad_loss):
            gradient, plain = _plain_gradients(
                hidden,
                target,
                weights,
                present,
                bounds,
                ignore_index,
                reduction,
                (grad_output, grad_loss),
                dtype,
            )
            return gradient, None, None, None, None, None, None, None, *plain
        if ready:
            assert grad_loss is not None
            (gradient, flat), ctx.gradients = ctx.gradients, None
            if ctx.lease is None:
                scale_(gradient, flat, grad_loss, ctx.factor)
            else:
                gradient, flat = scaled(gradient, flat, grad_loss, ctx.factor)
                ctx.factor = ctx.lease = None  # the next step may overwrite them now
        else:
            gradient, flat = gradients_by_row(
                hidden,
                target,
                weights,
                present,
                bounds,
                ignore_index,
                reduction,
                grad_output,
                grad_loss,
                ctx.factor,
                ctx.want,
            )
        of_weights: Sequence[Tensor | None] = [None] * len(weights)
        if flat is not None:
            places = ctx.places or gradients_of(hidden, weights, present, bounds)
            of_weights = places.split(flat)
        return gradient, None, None, None, None, None, None, None, *of_weights


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 for one of inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


# --------------------------------------------------------------------------- operators of compiled graphs

_LIBRARY = torch.library.Library("zipfmax", "FRAGMENT")
_BATCH = (
    "Tensor hidden, Tensor target, Tensor[] weights, int[] present, int[] bounds, "
    "int? ignore_index, str reduction"
)
_WANT = "bool want_hidden, bool want_weights"


def _operator(name: str, schema: str, implementation: Any, fake: Any) -> Any:
    """Define zipfmax::name and return its overload."""
    _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.needs_exact_strides,))
    for key in ("CUDA", "CPU", "Meta"):
        if key != "Meta":
            _LIBRARY.impl(name, implementation, key)
    torch.library.register_fake(f"zipfmax::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.zipfmax, name).default


def _empty_if_none(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor


def _fake_results(hidden: Tensor, reduction: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (hidden.shape[0],)
    return hidden.new_empty(shape, dtype=dtype), hidden.new_empty(
        shape if reduction == "none" else (), dtype=dtype
    )


def _fake_gradients(
    hidden: Tensor,
    weights: list[Tensor],
    present: list[int],
    bounds: list[int],
    want_hidden: bool,
    want_weights: bool,
) -> tuple[Tensor, Tensor]:
    size = gradients_of(hidden, weights, present, bounds).size if want_weights else 0
    return hidden.new_empty(hidden.shape if want_hidden else (0,)), hidden.new_empty(size)


def _forward_fake(
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    present: list[int],
    bounds: list[int],
    ignore_index: int | None,
    reduction: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    return _fake_results(hidden, reduction, dtype)


nll_forward = _operator(
    "nll_forward", f"({_BATCH}, ScalarType dtype) -> (Tensor, Tensor)", forward, _forward_fake
)


def _train_operator(
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    present: list[int],
    bounds: list[int],
    ignore_index: int | None,
    reduction: str,
    dtype: torch.dtype,
    want_hidden: bool,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    found = train(
        hidden,
        target,
        weights,
        present,
        bounds,
        ignore_index,
        reduction,
        dtype,
        (want_hidden, want_weights),
    )
    if found.lease is not None:
        found = found.copied()
    factor = hidden.new_empty(0, dtype=torch.float32) if found.factor is None else found.factor
    return (
        found.output,
        found.loss,
        factor,
        _empty_if_none(found.hidden, hidden),
        _empty_if_none(found.weights, hidden),
    )


def _train_fake(
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    present: list[int],
    bounds: list[int],
    ignore_index: int | None,
    reduction: str,
    dtype: torch.dtype,
    want_hidden: bool,
    want_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    has_factor = reduction == "mean" and ignore_index is not None
    factor = hidden.new_empty(() if has_factor else (0,), dtype=torch.float32)
    return (
        *_fake_results(hidden, reduction, dtype),
        factor,
        *_fake_gradients(hidden, weights, present, bounds, want_hidden, want_weights),
    )


nll_train = _operator(
    "nll_train",
    f"({_BATCH}, ScalarType dtype, {_WANT}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _train_operator,
    _train_fake,
)


def _gradients_operator(
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    present: list[int],
    bounds: list[int],
    ignore_index: int | None,
    reduction: str,
    grad_output: Tensor | None,
    grad_loss: Tensor | None,
    factor: Tensor | None,
    known: list[Tensor],
    want_hidden: bool,
    want_weights: bool,
) -> tuple[Tensor, Tensor]:
    if known and grad_loss is not None and grad_output is not None and _is_zero(grad_output):
        first, second = _scaled(known, grad_loss, factor)
        return first, second
    gradient, flat = gradients_by_row(
        hidden,
        target,
        weights,
        present,
        bounds,
        ignore_index,
        reduction,
        grad_output,
        grad_loss,
        factor,
        (want_hidden, want_weights),
    )
    return _empty_if_none(gradient, hidden), _empty_if_none(flat, hidden)


def _gradients_fake(
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    present: list[int],
    bounds: list[int],
    ignore_index: int | None,
    reduction: str,
    grad_output: Tensor | None,
    grad_loss: Tensor | None,
    factor: Tensor | None,
    known: list[Tensor],
    want_hidden: bool,
    want_weights: bool,
) -> tuple[Tensor, Tensor]:
    return _fake_gradients(hidden, weights, present, bounds, want_hidden, want_weights)


nll_gradients = _operator(
    "nll_gradients",
    f"({_BATCH}, Tensor? grad_output, Tensor? grad_loss, Tensor? factor, Tensor[] known, {_WANT}) "
    "-> (Tensor, Tensor)",
    _gradients_operator,
    _gradients_fake,
)


class _CompiledStep(torch.autograd.Function):
    """A differentiable step inside compiled graphs, in terms of the operators above, which have no gradients.

    So the compiled graph calls them as they are: an operator with a gradient of its own would at each call be
    entered through Python's autograd first.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        target: Tensor,
        present: list[int],
        bounds: list[int],
        ignore_index: int | None,
        reduction: str,
        dtype: torch.dtype,
        trains: bool,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(output [N], loss), of this dtype; with `trains` the gradients of the loss as well, for backward."""
        needs = ctx.needs_input_grad
        ctx.want = needs[0], True in needs[8:]
        ctx.settings = present, bounds, ignore_index, reduction, dtype
        ctx.n = len(weights)
        ctx.set_materialize_grads(False)
        batch = (hidden, target, list(weights), present, bounds, ignore_index, reduction, dtype)
        output, loss, *kept = nll_train(*batch, *ctx.want) if trains else nll_forward(*batch)
        ctx.save_for_backward(hidden, target, *weights, *kept)
        return output, loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_loss: Tensor | None) -> tuple[Any, ...]:
        """Gradients of hidden and of the weights."""
        hidden, target, *rest = ctx.saved_tensors
        weights, kept = rest[: ctx.n], rest[ctx.n :]
        nothing = (None,) * 7
        if grad_output is None and grad_loss is None:
            return None, *nothing, *[None] * ctx.n
        present, bounds, ignore_index, reduction, dtype = ctx.settings
        upstream = grad_output, grad_loss
        if is_differentiated(*upstream):
            gradient, plain = _plain_gradients(
                hidden, target, weights, present, bounds, ignore_index, reduction, upstream, dtype
            )
            return gradient, *nothing, *plain
        factor = kept[0] if kept and kept[0].dim() == 0 else None
        if grad_output is None and kept:
            assert grad_loss is not None
            gradient, flat = _scaled(kept[1:], grad_loss, factor)
        else:
            batch = (hidden, target, weights, present, bounds, ignore_index, reduction)
            gradient, flat = nll_gradients(*batch, *upstream, factor, kept[1:], *ctx.want)
        of_weights: list[Tensor | None] = [None] * ctx.n
        if ctx.want[1]:
            of_weights = [
                flat[first : first + math.prod(shape)].view(shape)
                for shape, _, first in gradients_of(hidden, weights, present, bounds).places
            ]
        return gradient if ctx.want[0] else None, *nothing, *of_weights


def _nll(
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    present: list[int],
    bounds: list[int],
    ignore_index: int | None,
    reduction: str,
    dtype: torch.dtype,
    trains: bool,
) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _CompiledStep.apply(
        hidden, target, present, bounds, ignore_index, reduction, dtype, trains, *weights
    )
    return found


_LIBRARY.define(f"nll({_BATCH}, ScalarType dtype, bool trains) -> (Tensor, Tensor)")
_LIBRARY.impl("nll", _nll, "CompositeImplicitAutograd")
nll = torch.ops.zipfmax.nll.default
"""(output, loss), differentiable, one operator to whoever traces it and the three above to who compiles it.

With `trains` the gradients of a reduced loss are computed in the forward pass.
"""


def _scaled(known: Sequence[Tensor], grad_loss: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of hidden and of the weights, from those of loss / factor."""
    scale = grad_loss.float() if factor is None else grad_loss.float() * factor
    of_hidden, of_weights = ((scale * tensor).to(tensor.dtype) for tensor in known)
    return of_hidden, of_weights


def _is_zero(grad_output: Tensor) -> bool:
    """Whether this gradient of `output` is what a compiled graph hands over where nothing used output.

    It is read from the device, which waits for the forward pass; a second pass would take longer. In a CUDA
    graph nothing can be read, and the answer is no.
    """
    if grad_output.is_cuda and torch.cuda.is_current_stream_capturing():
        warnings.warn(
            "a captured graph returns `output` of AdaptiveLogSoftmaxWithLoss beside `loss`: its backward is handed a "
            "gradient of output, zeros where nothing used it, and computes the step a second time, which makes a "
            "training step up to twice as slow. If only the loss is differentiated, make the layer with "
            "gradients='loss'; if output is, with gradients='output'",
            stacklevel=2,
        )
        return False
    if grad_output.is_cuda:
        # The step is then computed a second time only while a graph is captured, where this thread could no longer
        # make the handle of the vendor's products.
        torch.cuda.current_blas_handle()
    return not bool(grad_output.any())


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
    return torch.empty_like(hidden), [torch.empty_like(weight) for weight in weights]


def _log_prob_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, weights, present, bounds = inputs
    ctx.save_for_backward(hidden, *weights)
    ctx.present, ctx.bounds = present, bounds


def _log_prob_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    hidden, *weights = ctx.saved_tensors
    if is_differentiated(grad):
        gradient, *plain = eager.log_prob_gradients(
            (0, *ctx.bounds), unpack(weights, ctx.present), hidden, grad
        )
        return gradient, eager.zeros_for_absent(weights, plain), None, None
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
