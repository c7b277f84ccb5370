"""The four differentiable functions in which ranks meet, and what their gradients are.

The loss is the same number on every rank, computed by each from the same gathered values, so its gradient is
too. What a rank computes from it by its own classes is a partial sum where it concerns what all ranks share,
the hidden states and the projections, and complete where it concerns its own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor

from zipfmax.parallel.collectives import gather, gather_rows, scatter_rows, start_sum
from zipfmax.parallel.shard import Shard


class _NoFurther(torch.autograd.Function):
    """A gradient itself, as a function of what it was computed from; to differentiate it raises."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *_: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError("a sharded layer can be differentiated once only: its gradients have no gradients")


def differentiated_once(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """A backward whose results refuse to be differentiated by the function's inputs, which it has to save.

    torch's `once_differentiable` refuses by incoming gradients only. To the inputs it leaves no way, and a second
    derivative would be wrong without a sign.
    """

    @wraps(backward)
    def once(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        with torch.no_grad():
            found = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return found
        of = (*ctx.saved_tensors, *gradients)
        made = (None if g is None else _NoFurther.apply(g, *of) for g in found)  # type: ignore[no-untyped-call]
        return tuple(made)

    return once


class _Shared(torch.autograd.Function):
    """What every rank holds and wants a gradient of, the hidden states first where they are among it.

    Backward sums the gradients: the hidden states' in one collective, all others' in one.
    """

    @staticmethod
    def forward(ctx: Any, shard: Shard, n_hidden: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.shard, ctx.n_hidden = shard, n_hidden
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        shard: Shard = ctx.shard
        of_hidden, others = list(gradients[: ctx.n_hidden]), gradients[ctx.n_hidden :]
        pending = []
        if of_hidden and of_hidden[0] is not None and not shard.rows_sharded:  # which `_Rows` sums
            of_hidden[0] = of_hidden[0].contiguous()
            pending.append(start_sum(of_hidden[0], shard.group))
        summed, flat = sum_together(others, shard)
        pending += flat
        for work in pending:
            work.wait()
        return None, None, *of_hidden, *summed


class _Rows(torch.autograd.Function):
    """All rows from a rank's own; backward sums the gradients of its own: a gather and a reduce-scatter."""

    @staticmethod
    def forward(ctx: Any, shard: Shard, rows: Tensor, n_rows: int) -> Tensor:
        ctx.shard = shard
        ctx.save_for_backward(rows)
        return gather_rows(rows, n_rows, shard.group)

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return None, scatter_rows(gradient.contiguous(), ctx.shard.group), None


class _Joined(torch.autograd.Function):
    """log-sum-exps over all classes from those over a rank's own, and sums over the ranks: one gather."""

    @staticmethod
    def forward(ctx: Any, shard: Shard, log_sum_exp: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
        n = log_sum_exp.shape[0]
        everyone = gather(torch.cat([log_sum_exp, terms]), shard.group)
        joined, summed = everyone[:, :n].logsumexp(dim=0), everyone[:, n:].sum(dim=0)
        ctx.save_for_backward(log_sum_exp, joined)
        return joined, summed

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, of_joined: Tensor, of_summed: Tensor) -> tuple[Any, ...]:
        log_sum_exp, joined = ctx.saved_tensors
        return None, of_joined * (log_sum_exp - joined).exp(), of_summed


class _Columns(torch.autograd.Function):
    """[N, columns of all ranks] from [N, columns], padded to one width: one gather. What follows is computed
    by every rank alike, so the gradient of a rank's own columns is complete."""

    @staticmethod
    def forward(ctx: Any, shard: Shard, columns: Tensor) -> Tensor:
        ctx.rank = shard.rank
        ctx.save_for_backward(columns)
        return gather(columns, shard.group).transpose(0, 1)

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return None, gradient[:, ctx.rank]


def sum_together(gradients: Sequence[Tensor | None], shard: Shard) -> tuple[list[Tensor | None], list[Any]]:
    """Begin to sum gradients over the ranks, all in one collective; their sums, and what to `wait()` for."""
    there = [gradient for gradient in gradients if gradient is not None]
    if not there:
        return list(gradients), []
    flat = torch.cat([gradient.reshape(-1) for gradient in there])
    parts = iter(torch.split(flat, [gradient.numel() for gradient in there]))
    summed = [None if g is None else next(parts).view_as(g) for g in gradients]
    return summed, [start_sum(flat, shard.group)]


def shared(shard: Shard, hidden: Tensor, tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Hidden states and weights that every rank holds, themselves."""
    wanted = [tensor for tensor in (hidden, *tensors) if tensor.requires_grad]
    if not wanted or not torch.is_grad_enabled():
        return hidden, tensors
    n_hidden = int(hidden.requires_grad)
    held = iter(_Shared.apply(shard, n_hidden, *wanted))  # type: ignore[no-untyped-call]
    first, *rest = (next(held) if tensor.requires_grad else tensor for tensor in (hidden, *tensors))
    return first, rest


def rows_of_all(shard: Shard, rows: Tensor, n_rows: int) -> Tensor:
    """[n_rows, *] from this rank's rows."""
    return cast(Tensor, _Rows.apply(shard, rows, n_rows))  # type: ignore[no-untyped-call]


def joined(shard: Shard, log_sum_exp: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of log-sum-exps over all classes, and of sums over the ranks."""
    found = _Joined.apply(shard, log_sum_exp, terms)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], found)


def columns_of_all(shard: Shard, columns: Tensor) -> Tensor:
    """[N, world, width] from [N, width]."""
    return cast(Tensor, _Columns.apply(shard, columns))  # type: ignore[no-untyped-call]
