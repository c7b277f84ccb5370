"""log p of targets over ranks by the GPU kernels: three stages, and the ranks' sums under the last of them.

The forward gathers once, 4 float32 numbers a row. The backward takes the partial gradients of what all ranks
share first, begins to sum them, and takes those of the rank's own classes meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from zipfmax.parallel.collectives import gather, start_sum
from zipfmax.parallel.functions import differentiated_once, sum_together
from zipfmax.parallel.shard import Shard
from zipfmax.weights import Weights

if TYPE_CHECKING:
    from zipfmax.backends.triton.sharded import ShardedStep


@dataclass(frozen=True)
class _Job:
    shard: Shard
    weights: Weights
    """Tells which tensor is which."""
    ignore_index: int | None
    gradients: bool


def log_p_of_targets(
    shard: Shard, weights: Weights, hidden: Tensor, target: Tensor, ignore_index: int | None
) -> Tensor:
    """[N] float32, 0 in rows to ignore; differentiable once. N is at least 1.

    Raises:
        RuntimeError: a target outside [0, n_classes), asynchronously on a GPU.
    """
    tensors = weights.tensors()
    gradients = torch.is_grad_enabled() and any(t.requires_grad for t in (hidden, *tensors))
    job = _Job(shard, weights, ignore_index, gradients)
    return cast(Tensor, _LogP.apply(job, hidden, target, *tensors))  # type: ignore[no-untyped-call]


class _LogP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, job: _Job, hidden: Tensor, target: Tensor, *tensors: Tensor) -> Tensor:
        from zipfmax.backends.triton.sharded import ShardedStep

        shard = job.shard
        bounds = shard.layout.bounds[1:]
        firsts = [shard.head.start, *(span.start for span in shard.tails)]
        weights = job.weights.with_tensors(tensors)
        step = ShardedStep(hidden, target, weights, bounds, firsts, job.ignore_index, gradients=job.gradients)
        everyone = gather(torch.stack(step.statistics()), shard.group)
        head_sum, tail_sum = (everyone[:, place].logsumexp(dim=0) for place in (0, 2))
        head_logit, tail_logit = (everyone[:, place].sum(dim=0) for place in (1, 3))
        log_p = head_logit - head_sum
        log_p = torch.where(target >= bounds[0], log_p + (tail_logit - tail_sum), log_p)
        if job.ignore_index is not None:
            log_p = torch.where(target == job.ignore_index, 0, log_p)
        ctx.save_for_backward(hidden, *tensors)
        ctx.job, ctx.step, ctx.sums = job, step, (head_sum, tail_sum)
        return log_p

    @staticmethod
    @differentiated_once
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        job: _Job = ctx.job
        step: ShardedStep = ctx.step
        shard, narrow = job.shard, job.weights.head.dtype == torch.float16
        weight, largest = -gradient, None
        if narrow:  # gradients of a mean would vanish before a loss scale multiplies them
            largest = weight.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
            weight = weight / largest
        of_hidden, of_projections = step.input_gradients(ctx.sums[0], ctx.sums[1], weight.contiguous())
        pending = []
        if ctx.needs_input_grad[1] and not shard.rows_sharded:
            pending.append(start_sum(of_hidden, shard.group))
        summed, begun = sum_together(of_projections, shard)
        of_head, of_outputs = step.weight_gradients()
        for work in (*pending, *begun):
            work.wait()
        projections, outputs = iter(summed), iter(of_outputs)
        found: list[Tensor | None] = list(of_head)
        for tail in job.weights.tails:
            of_projection, of_output = next(projections), next(outputs)
            found += [of_projection, of_output]
            found += [next(projections)] if tail.projection_bias is not None else []
            found += [next(outputs)] if tail.output_bias is not None else []
        if largest is not None:
            of_hidden = of_hidden * largest.to(of_hidden.dtype)
            found = [None if g is None else g * largest.to(g.dtype) for g in found]
        return None, of_hidden, None, *found
