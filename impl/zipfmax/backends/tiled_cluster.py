"""The softmax of one linear layer, a few rows at a time, in a workspace of bounded size.

With logits z = x W^T + b, p = softmax(z) and target t of a row,

    log p_t,   and for an upstream gradient g of log p_t:   dz = g (onehot(t) - p),
    dx = dz W,   dW = dz^T x,   db = sum of dz over the rows.

A block of rows whose logits fit the workspace is done in one go: logits, softmax in place, and both gradient
products from the same tile while it is in cache. Where a row's logits are too long for that, the block passes
over tiles of the classes twice, first for the log-sum-exp and then for the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zipfmax.backends.tiled_products import add_product, has_faster_linear, linear, onednn_serves
from zipfmax.backends.tiled_workspace import empty, workspace

MIN_BLOCK_ROWS = 32
"""Below this a block's products are limited by reading the weights: tile the classes instead."""
MAX_BLOCK_ROWS = 1024
"""Rows of a block whose classes are tiled."""
MAX_ROUNDED_SUMS = 16
"""Blocks summed in a reduced dtype before the sum is moved to float32."""

MAX_SUMMED_CLASSES = 65_536
"""Classes summed in one product for dx. The sum holds the target's large term early on, and millions of small
ones added to it one by one would each lose most of their digits."""

_LOG2_E = 1 / math.log(2)
# Sums of exponentials in between are exact without a maximum taken off the logits first: no term is infinite,
# and those that vanish are less than 1e-18 of the sum each.
_LEAST_SUM, _LARGEST_SUM = 1e-20, 1e30


@dataclass(frozen=True)
class Tiles:
    """How a job of `n_rows` x `n_classes` logits is cut."""

    rows: int
    """Rows of a block."""
    classes: int
    """Classes of a tile; n_classes when a block is done in one go."""

    @classmethod
    def plan(cls, n_rows: int, n_classes: int, workspace_bytes: int, dtype: torch.dtype) -> Tiles:
        """The largest blocks that the workspace holds, of about equal size."""
        n_rows, capacity = max(1, n_rows), max(1, workspace_bytes // _bytes_per_logit(dtype))
        if capacity // n_classes >= min(n_rows, MIN_BLOCK_ROWS):
            return cls(_even(n_rows, capacity // n_classes), n_classes)
        rows = _even(n_rows, min(MAX_BLOCK_ROWS, max(1, math.isqrt(capacity))))
        return cls(rows, _even(n_classes, max(1, capacity // rows)))


def _even(total: int, largest: int) -> int:
    """Size of a part when `total` is cut into as few parts of at most `largest` as can be, evenly."""
    return math.ceil(total / math.ceil(total / largest))


def spans(total: int, size: int) -> Iterator[slice]:
    """Consecutive parts of `size`; the last may be shorter."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of maxima, sums and logarithms: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def _bytes_per_logit(dtype: torch.dtype) -> int:
    statistics = statistics_dtype(dtype)
    return statistics.itemsize + (dtype.itemsize if dtype != statistics else 0)


class TiledWeightGradient:
    """A sum of products of blocks, written straight into the tensor that autograd will hand out.

    In a reduced dtype each added block rounds the sum once; after `MAX_ROUNDED_SUMS` blocks it is moved to
    a float32 total, so that a long batch loses no more than a short one.
    """

    def __init__(self, like: Tensor) -> None:
        self._sum = empty(tuple(like.shape), like.dtype, like.device)
        self._total: Tensor | None = None
        self._reduced = like.dtype != statistics_dtype(like.dtype)
        self._blocks = 0

    def start_block(self) -> None:
        """Announce the next block: `add` and `add_product` may then be called once for each slice."""
        if self._reduced and self._blocks == MAX_ROUNDED_SUMS:
            self._flush()
        self._blocks += 1

    def add_product(self, left: Tensor, right: Tensor, alpha: float, start: int = 0) -> None:
        """Add alpha * left @ right to the rows from `start`."""
        out = self._sum[start : start + left.shape[0]]
        add_product(out, left, right, alpha=alpha, beta=int(self._blocks > 1))

    def add(self, term: Tensor, start: int = 0) -> None:
        """Add a vector to the elements from `start`."""
        out = self._sum[start : start + term.shape[0]]
        if self._blocks > 1:
            out.add_(term)
        else:
            out.copy_(term)

    def result(self) -> Tensor:
        """The gradient; zeros where no block was added."""
        if self._total is not None:
            self._flush()
            self._sum.copy_(self._total)
        elif self._blocks == 0:
            self._sum.zero_()
        return self._sum

    def _flush(self) -> None:
        if self._total is None:
            self._total = self._sum.to(statistics_dtype(self._sum.dtype))
        else:
            self._total.add_(self._sum)
        self._blocks = 0


def result_of(gradient: TiledWeightGradient | None) -> Tensor | None:
    """The gradient that was summed, or None where none was wanted."""
    return None if gradient is None else gradient.result()


class ClusterSoftmax:
    """log p of targets under softmax(x W^T + b), and gradients on the way, block after block of rows.

    Args:
        weight: [V, K].
        bias: [V] or None.
        n_rows: how many rows will come.
        workspace_bytes: size of the logits' buffer, for all rows and classes together.
        wants_input, wants_weight, wants_bias: which gradients to take.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        n_rows: int,
        workspace_bytes: int,
        *,
        wants_input: bool = False,
        wants_weight: bool = False,
        wants_bias: bool = False,
    ) -> None:
        self.weight, self.bias = weight, bias
        self.n_classes = weight.shape[0]
        self.statistics_dtype = statistics_dtype(weight.dtype)
        if onednn_serves(weight):  # its tiles are new tensors, beside which parts of gradients are held
            workspace_bytes = workspace_bytes * 3 // 4
        self.tiles = Tiles.plan(n_rows, self.n_classes, workspace_bytes, weight.dtype)
        self.wants_input = wants_input
        self.weight_gradient = TiledWeightGradient(weight) if wants_weight else None
        self.bias_gradient = TiledWeightGradient(bias) if wants_bias and bias is not None else None
        self._buffer: Tensor | None = None
        self._moderate_logits = True

    def blocks(self, n_rows: int) -> Iterator[slice]:
        """Which rows to call this with at a time."""
        return spans(n_rows, self.tiles.rows)

    def __call__(
        self, x: Tensor, target: Tensor, scale: float | Tensor | None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """One block.

        Args:
            x: [n, K], n at most `tiles.rows`.
            target: [n], classes of this cluster.
            scale: gradient of the loss by each log p: one for all rows, or [n]; None takes no gradients.
            out: [n, K] to write the gradient of x to.

        Returns:
            log p [n] in the statistics' dtype, and the gradient of x where it is wanted.
        """
        for gradient in (self.weight_gradient, self.bias_gradient):
            if gradient is not None and scale is not None:
                gradient.start_block()
        if self.tiles.classes >= self.n_classes:
            return self._whole_rows(x, target.unsqueeze(1), scale, out)
        log_p, log_sum_exp = self._log_p_by_tiles(x, target)
        if scale is None:
            return log_p, None
        return log_p, self._gradients_by_tiles(x, target, log_sum_exp, scale, out)

    def logits(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Classes and their logits [n, classes] of one block, tile after tile.

        In the statistics' dtype; the caller may write to them, and has them until it asks for the next.
        """
        for classes in spans(self.n_classes, self.tiles.classes):
            yield classes, self._logits(x, classes.start, classes.stop)

    def log_probabilities(self, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Classes and their log-probabilities [n, classes] of one block, as `logits` gives the logits.

        Where the workspace holds whole rows their product is taken once; else twice, first for the log-sum-exp.
        """
        if self.tiles.classes >= self.n_classes:
            z = self._logits(x, 0, self.n_classes)
            torch.log_softmax(z, dim=1, out=z)
            yield slice(0, self.n_classes), z
            return
        log_sum_exp = self.log_sum_exp(x)
        for classes, z in self.logits(x):
            yield classes, z.sub_(log_sum_exp)

    def log_sum_exp(self, x: Tensor) -> Tensor:
        """log of the sum of exp(logits) over all classes, [n, 1], of one block."""
        total = torch.full((x.shape[0], 1), -torch.inf, dtype=self.statistics_dtype, device=x.device)
        for _, z in self.logits(x):
            total = torch.logaddexp(total, _log_sum_exp_(z))
            del z
        return total

    def statistics(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """log-sum-exp over all classes and the target's logit, each [n, 1], of one block.

        The logit is 0 for a target that is none of the classes.
        """
        total = torch.full((x.shape[0], 1), -torch.inf, dtype=self.statistics_dtype, device=x.device)
        picked = torch.zeros_like(total)
        for classes, z in self.logits(x):
            rows = _rows_in(target, classes)
            picked[rows] = z[rows, target[rows] - classes.start].unsqueeze(1)
            total = torch.logaddexp(total, _log_sum_exp_(z))
            del z  # before the next tile is made
        return total, picked

    def add_statistics_gradients(
        self,
        x: Tensor,
        target: Tensor,
        log_sum_exp: Tensor,
        grads: tuple[Tensor, Tensor],
        out: Tensor | None,
    ) -> None:
        """Gradients of one block of `statistics`, given log-sum-exp [n, 1]; that of x to `out`.

        `grads` are those of the log-sum-exp and of the target's logit, [n] each.
        """
        for gradient in (self.weight_gradient, self.bias_gradient):
            if gradient is not None:
                gradient.start_block()
        of_sum, of_logit = grads
        finite = log_sum_exp.clamp(min=torch.finfo(log_sum_exp.dtype).min)  # logits of -inf have no gradient
        for classes, z in self.logits(x):
            p = z.sub_(finite).mul_(_LOG2_E).exp2_().mul_(of_sum.unsqueeze(1))
            rows = _rows_in(target, classes)
            p[rows, target[rows] - classes.start] += of_logit[rows]
            self._gradients(p, x, classes.start, -1.0, out, beta=int(classes.start > 0))
            del p, z

    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients by weight and bias over all blocks; None for what is not wanted."""
        return result_of(self.weight_gradient), result_of(self.bias_gradient)

    def _whole_rows(
        self, x: Tensor, target: Tensor, scale: float | Tensor | None, out: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        made = self._probabilities(x, target, normalised=scale is not None) if self._moderate_logits else None
        if made is None:
            self._moderate_logits = False  # the next block's are likely to be as large
            p = self._logits(x, 0, self.n_classes)
            torch.log_softmax(p, dim=1, out=p)
            log_p = p.gather(1, target)
            if scale is not None:
                p.mul_(_LOG2_E).exp2_()
        else:
            p, log_p = made
        if scale is None:
            return log_p.squeeze(1), None
        p.scatter_(1, target, log_p.expm1())
        return log_p.squeeze(1), self._gradients(p, x, 0, scale, out, beta=0)

    def _probabilities(self, x: Tensor, target: Tensor, *, normalised: bool) -> tuple[Tensor, Tensor] | None:
        """Probabilities [n, V], or a multiple of each row's, and log p of the targets [n, 1].

        Takes no maximum off the logits; None where that matters.
        """
        p = self._logits(x, 0, self.n_classes, factor=_LOG2_E)
        log2_p = p.gather(1, target)
        total = p.exp2_().sum(dim=1, keepdim=True)
        if not bool(((total > _LEAST_SUM) & (total < _LARGEST_SUM)).all()):
            return None
        p_target = p.gather(1, target).div_(total)
        log_p = log2_p.sub_(total.log2()).div_(_LOG2_E)
        log_p = torch.where(p_target > 0.5, p_target.log(), log_p)  # which is exact for a class alone
        return p.div_(total) if normalised else p, log_p

    def _log_p_by_tiles(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """log p of the targets, [n], and log-sum-exp of all classes, [n, 1]."""
        log_sum_exp, picked = self.statistics(x, target)
        return (picked - log_sum_exp).squeeze(1), log_sum_exp

    def _gradients_by_tiles(
        self, x: Tensor, target: Tensor, log_sum_exp: Tensor, scale: float | Tensor, out: Tensor | None
    ) -> Tensor | None:
        gradient = out
        for classes, z in self.logits(x):
            p = z.sub_(log_sum_exp).mul_(_LOG2_E).exp2_()
            rows = _rows_in(target, classes)
            p[rows, target[rows] - classes.start] -= 1
            gradient = self._gradients(p, x, classes.start, scale, gradient, beta=int(classes.start > 0))
            del p, z
        return gradient

    def _logits(self, x: Tensor, start: int, stop: int, factor: float = 1.0) -> Tensor:
        """Logits of the classes from start to stop times a factor, in the statistics' dtype.

        A view of the workspace, or a tile of its own.
        """
        weight, bias = self.weight[start:stop], None if self.bias is None else self.bias[start:stop]
        if has_faster_linear(x, stop - start):
            logits = linear(x, weight, bias)
            return logits if factor == 1 else logits.mul_(factor)
        logits = self._tile(0, x.dtype, x.shape[0], stop - start)
        late = factor if x.dtype == torch.float16 else 1.0  # whose range has nothing to spare
        early = factor / late
        added, beta = (logits, 0.0) if bias is None else (bias, early)
        torch.addmm(added, x, weight.t(), beta=beta, alpha=early, out=logits)
        if self.statistics_dtype != x.dtype:
            logits = self._tile(1, self.statistics_dtype, *logits.shape).copy_(logits)
        return logits if late == 1 else logits.mul_(late)

    def _gradients(
        self, p: Tensor, x: Tensor, start: int, scale: float | Tensor, out: Tensor | None, beta: int
    ) -> Tensor | None:
        """Gradients from p - onehot, a tile of the classes from `start`. dz = -scale (p - onehot)."""
        if isinstance(scale, Tensor):
            p.mul_(scale.unsqueeze(1))
            alpha = -1.0
        else:
            alpha = -scale
        if self.bias_gradient is not None:
            self.bias_gradient.add(p.sum(dim=0).mul_(alpha), start)
        dz = p if p.dtype == x.dtype else self._tile(0, x.dtype, *p.shape).copy_(p)
        if self.weight_gradient is not None:
            self.weight_gradient.add_product(dz.t(), x, alpha, start)
        if not self.wants_input:
            return None
        if out is None:
            out = torch.empty_like(x)
        weight = self.weight[start : start + p.shape[1]]
        if p.shape[1] <= MAX_SUMMED_CLASSES or dz.dtype != self.statistics_dtype:
            add_product(out, dz, weight, alpha=alpha, beta=beta)
            return out
        if not beta:
            out.zero_()
        for classes in spans(p.shape[1], MAX_SUMMED_CLASSES):
            out.add_(linear(dz[:, classes], weight[classes].t()), alpha=alpha)
        return out

    def _tile(self, which: int, dtype: torch.dtype, n_rows: int, n_classes: int) -> Tensor:
        """A view of the workspace: tile 0 lies behind tile 1, which is the wider of the two."""
        n_logits = self.tiles.rows * self.tiles.classes
        if self._buffer is None:
            self._buffer = workspace(n_logits * _bytes_per_logit(self.weight.dtype), self.weight.device)
        offset = 0 if which else (_bytes_per_logit(dtype) - dtype.itemsize) * n_logits
        n_bytes = n_rows * n_classes * dtype.itemsize
        tile: Tensor = self._buffer[offset : offset + n_bytes].view(dtype).view(n_rows, n_classes)
        return tile


def _rows_in(target: Tensor, classes: slice) -> Tensor:
    rows: Tensor = ((target >= classes.start) & (target < classes.stop)).nonzero().squeeze(1)
    return rows


def _log_sum_exp_(z: Tensor) -> Tensor:
    """Log-sum-exp of each row, [n, 1]; destroys z. A row of only -inf gives -inf."""
    highest = z.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(z.dtype).min)
    z.sub_(highest).mul_(_LOG2_E).exp2_()
    return z.sum(dim=1, keepdim=True).log_().add_(highest)
