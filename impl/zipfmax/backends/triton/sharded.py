"""A rank's part of a step whose classes are spread over ranks, in three stages with the ranks' meetings between.

    statistics        l and t of every row's head and tail, over this rank's classes
    (one gather)
    input_gradients   of the hidden states and of the projections: sums over ranks are wanted of both
    (two sums begin)
    weight_gradients  of this rank's classes, while the sums are under way

Nothing reads the device on the host, so the stages and the collectives can be captured in a CUDA graph.
Launches: routing, a product and a kernel a chunk of the head's rows, and 6 for each group of tails or tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zipfmax.backends.triton.head_logits import WORKSPACE_BYTES, Chunks
from zipfmax.backends.triton.projection import Project, ProjectionGradients
from zipfmax.backends.triton.routing import SLOT_TILE, route
from zipfmax.backends.triton.runtime import cdiv, padded_width, pointer, round_up
from zipfmax.backends.triton.sharded_kernels import (
    IGNORED,
    OTHERS,
    head_gradient_kernel,
    head_statistics_kernel,
    tail_gradient_kernel,
    tail_statistics_kernel,
)
from zipfmax.backends.triton.step import contiguous, rows_of_unit_stride
from zipfmax.backends.triton.tail import Tail
from zipfmax.backends.triton.tail_backward import WeightGradient
from zipfmax.backends.triton.tail_forward import GRADIENT, LSE, Forward
from zipfmax.backends.triton.tiles import combine_tile, head_tile
from zipfmax.weights import Weights


class Statistics(NamedTuple):
    """Of each row, [N] float32, over a rank's own classes."""

    head_sum: Tensor
    """log-sum-exp of the head's logits."""
    head_logit: Tensor
    """The target's in the head, 0 where another rank holds it."""
    tail_sum: Tensor
    """The same of the target's tail; -inf where it has none."""
    tail_logit: Tensor


class ShardedStep:
    """One batch on one rank.

    Args:
        hidden: [N, d], N at least 1.
        target: [N] int64, classes of the whole vocabulary.
        weights: the rank's own part.
        bounds: (cutoffs..., n_classes) of the whole.
        firsts: the rank's first row of the head, and first class of each tail, counted from the tail's first.
        ignore_index: rows with this target take no part.
        gradients: whether they will be asked for.
    """

    def __init__(
        self,
        hidden: Tensor,
        target: Tensor,
        weights: Weights,
        bounds: Sequence[int],
        firsts: Sequence[int],
        ignore_index: int | None,
        *,
        gradients: bool,
        workspace_bytes: int = WORKSPACE_BYTES,
    ) -> None:
        target = target.contiguous()
        counted = None if ignore_index is None else target != ignore_index
        if counted is not None:
            hidden = torch.where(counted.unsqueeze(1), hidden, 0)  # which may hold anything there
        self._hidden = rows_of_unit_stride(hidden)
        self._weights = contiguous(weights)
        self._gradients = gradients
        self._workspace_bytes = workspace_bytes
        self._routes = route(target, bounds, ignore_index)
        self._firsts = firsts[1:]
        slot = target
        for i, cutoff in enumerate(bounds[:-1]):
            slot = torch.where(target >= cutoff, bounds[0] + i, slot)
        slot = slot - firsts[0]
        own = (slot >= 0) & (slot < weights.head.shape[0])
        slot = torch.where(own, slot, OTHERS)
        if counted is not None:
            slot = torch.where(counted, slot, IGNORED)
        self._slot = slot.to(torch.int32)
        self._sizes = [tail.output.shape[0] for tail in weights.tails]
        self._tails = [
            Tail(
                i,
                tail.projection.shape[0],
                padded_width(tail.projection.shape[0]),
                size,
                tail.projection_bias is not None,
                tail.output_bias is not None,
            )
            for i, (tail, size) in enumerate(zip(self._weights.tails, self._sizes, strict=True))
            if size > 0
        ]

    def statistics(self) -> Statistics:
        """The first stage."""
        n_rows = self._hidden.shape[0]

        def rows(value: float) -> Tensor:
            return torch.full((n_rows,), value, dtype=torch.float32, device=self._hidden.device)

        found = Statistics(rows(-torch.inf), rows(0.0), rows(-torch.inf), rows(0.0))
        if self._weights.head.shape[0]:
            self._head = Chunks(
                self._hidden, self._weights.head, self._weights.head_bias, self._workspace_bytes
            )
            self._logits = None
            for part, logits in self._head:
                self._on_head(head_statistics_kernel, logits, part, found.head_sum, found.head_logit)
                self._logits = logits if len(self._head) == 1 and self._gradients else None
        if self._tails:
            self._statistics_of_tails(found)
        self._found = found
        return found

    def input_gradients(
        self, head_sum: Tensor, tail_sum: Tensor, weight: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The second stage: partial gradients of hidden [N, d], and of every projection and its bias.

        Args:
            head_sum, tail_sum: log-sum-exps over all ranks' classes, [N] float32.
            weight: [N] float32: what is differentiated is -(sum of weight times log p).
        """
        hidden, head = self._hidden, self._weights.head
        self._weight = weight
        gradient = torch.zeros_like(hidden, memory_format=torch.contiguous_format)
        self._of_head = [torch.zeros_like(head)]
        if self._weights.head_bias is not None:
            self._of_head.append(torch.zeros_like(self._weights.head_bias))
        if head.shape[0]:
            self._gradients_of_head(head_sum, gradient)
        of_projections: list[Tensor] = []
        for tail in self._weights.tails:
            of_projections.append(torch.zeros_like(tail.projection))
            if tail.projection_bias is not None:
                of_projections.append(torch.zeros_like(tail.projection_bias))
        if self._tails:
            self._gradients_of_tails(tail_sum, gradient, of_projections)
        return gradient, of_projections

    def weight_gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """The third stage: gradients of the head and its bias, and of every tail's output and its bias."""
        if self._dz is not None:
            rows = self._weights.head.shape[0]
            self._of_head[0] = (self._dz.t() @ self._hidden)[:rows]
            if self._weights.head_bias is not None:
                self._of_head[1] = self._dz.sum(dim=0, dtype=torch.float32)[:rows].to(self._dz.dtype)
        of_outputs: list[Tensor] = []
        outputs, biases = [], []
        for tail in self._weights.tails:
            outputs.append(torch.zeros_like(tail.output))
            of_outputs.append(outputs[-1])
            biases.append(None if tail.output_bias is None else torch.zeros_like(tail.output_bias))
            of_outputs += [bias for bias in biases[-1:] if bias is not None]
        if self._tails:
            routes = self._routes
            pass_ = WeightGradient(self._tails, self._hidden.dtype, self._hidden.device, True, 1.0)
            # Own targets differ from tail to tail, by where the rank's classes begin.
            pass_(
                None,
                self._h,
                [self._weights.tails[t.cluster].output for t in self._tails],
                [pointer(self._weights.tails[t.cluster].output_bias, self._hidden) for t in self._tails],
                self._base,
                self._inverse,
                routes.row,
                self._own,
                routes.start,
                routes.rows,
                self._weight,
                [outputs[t.cluster] for t in self._tails],
                [pointer(biases[t.cluster], self._hidden) for t in self._tails],
            )
        return self._of_head, of_outputs

    _dz: Tensor | None = None
    """The head's gradient by its logits, where the rows are one chunk."""

    def _on_head(self, kernel: Any, logits: Tensor, rows: slice, *by_row: Tensor) -> None:
        n_columns = self._weights.head.shape[0]
        tile = head_tile(logits.device, n_columns)
        kernel[(logits.shape[0],)](
            logits,
            self._slot[rows],
            *(tensor[rows] for tensor in by_row),
            n_columns,
            self._head.row_stride,
            **tile,
        )

    def _gradients_of_head(self, head_sum: Tensor, gradient: Tensor) -> None:
        single = len(self._head) == 1
        if single and self._logits is not None:
            chunks: Any = [(slice(0, self._hidden.shape[0]), self._logits)]
            self._logits = None  # they become gradients, once
        else:
            chunks = self._head
        total = bias = None
        for part, logits in chunks:
            self._on_head(head_gradient_kernel, logits, part, head_sum, self._weight)
            torch.mm(logits, self._head.head, out=gradient[part])
            if single:
                self._dz = logits
                continue
            product = logits.t().float() @ self._hidden[part].float()
            total = product if total is None else total.add_(product)
            sums = logits.sum(dim=0, dtype=torch.float32)
            bias = sums if bias is None else bias.add_(sums)
        if total is not None and bias is not None:
            rows = self._weights.head.shape[0]
            sums_of_both = [total, bias][: len(self._of_head)]
            self._of_head = [sums[:rows].to(self._hidden.dtype) for sums in sums_of_both]

    def _statistics_of_tails(self, found: Statistics) -> None:
        hidden, routes, tails = self._hidden, self._routes, self._tails
        n_rows, d = hidden.shape
        slots = routes.row.shape[0]
        mine = [self._weights.tails[tail.cluster] for tail in tails]

        def by_slot(tail: Tail, dtype: torch.dtype) -> Tensor:
            return torch.empty((slots, tail.width), dtype=dtype, device=hidden.device)

        self._h = [by_slot(tail, hidden.dtype) for tail in tails]
        Project(tails, n_rows, d, hidden.stride(0), hidden.dtype, hidden.device)(
            None,
            hidden,
            tuple(w.projection for w in mine),
            tuple(pointer(w.projection_bias, hidden) for w in mine),
            tuple(self._h),
            routes.row,
            routes.start,
            routes.rows,
        )
        mode = GRADIENT if self._gradients else LSE
        forward = Forward(tails, n_rows, hidden.dtype, hidden.device, mode)
        pieces = [
            [torch.empty(shape, dtype=dtype, device=hidden.device) for dtype, shape in forward.partials[i]]
            for i in range(len(tails))
        ]
        forward(
            None,
            self._h,
            [w.output for w in mine],
            [pointer(w.output_bias, hidden) for w in mine],
            routes.start,
            routes.rows,
            *zip(*pieces, strict=True),
        )
        self._own = torch.empty_like(routes.row)
        self._means = []
        for i, (tail, w) in enumerate(zip(tails, mine, strict=True)):
            tile = combine_tile(forward.tiles[i])
            mean = by_slot(tail, torch.float32) if self._gradients else hidden
            self._means.append(mean)
            tail_statistics_kernel[(cdiv(round_up(n_rows, SLOT_TILE), tile["BR"]),)](
                *pieces[i],
                self._h[i],
                w.output,
                pointer(w.output_bias, hidden),
                routes.row,
                routes.target,
                routes.start,
                routes.rows,
                found.tail_sum,
                found.tail_logit,
                self._own,
                mean,
                self._firsts[tail.cluster],
                tail.n_classes,
                forward.programs[i],
                HAS_BIAS=tail.has_output_bias,
                GRADIENT=self._gradients,
                CLUSTER=tail.cluster,
                K=tail.k_size,
                WIDTH=tail.width,
                SLOTS=SLOT_TILE,
                BM=tile["BM"],
                BN=tile["BN"],
                BK=tile["BK"],
                BR=tile["BR"],
                num_warps=tile["num_warps"],
            )

    def _gradients_of_tails(self, tail_sum: Tensor, gradient: Tensor, of_projections: list[Tensor]) -> None:
        hidden, routes, tails = self._hidden, self._routes, self._tails
        n_rows, d = hidden.shape
        self._base = torch.empty(routes.row.shape, dtype=torch.float32, device=hidden.device)
        self._inverse = torch.empty_like(self._base)
        dh = [torch.empty_like(h) for h in self._h]
        for i, tail in enumerate(tails):
            rows_at_a_time = 8
            tail_gradient_kernel[(cdiv(round_up(n_rows, SLOT_TILE), rows_at_a_time),)](
                self._means[i],
                self._weights.tails[tail.cluster].output,
                self._own,
                routes.row,
                routes.start,
                routes.rows,
                self._found.tail_sum,
                tail_sum,
                self._weight,
                self._base,
                self._inverse,
                dh[i],
                CLUSTER=tail.cluster,
                K=tail.k_size,
                WIDTH=tail.width,
                SLOTS=SLOT_TILE,
                BK=min(tail.width, 64),
                BR=rows_at_a_time,
            )
        places = iter(of_projections)
        pairs = [
            (next(places), None if tail.projection_bias is None else next(places))
            for tail in self._weights.tails
        ]
        mine = [pairs[tail.cluster] for tail in tails]
        want = (True, True)
        ProjectionGradients(tails, n_rows, d, hidden.stride(0), hidden.dtype, hidden.device, want, 1.0)(
            None,
            tuple(dh),
            hidden,
            tuple(self._weights.tails[tail.cluster].projection for tail in tails),
            gradient,
            tuple(of_weight for of_weight, _ in mine),
            tuple(pointer(of_bias, hidden) for _, of_bias in mine),
            routes.row,
            routes.start,
            routes.rows,
        )
