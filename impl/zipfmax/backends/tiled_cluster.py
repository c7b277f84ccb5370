"""The softmax of one linear layer, a few rows at a time, in a workspace of bounded size.

With logits z = x W^T + b, p = softmax(z) and target t of a row,

    log p_t,   and for an upstream gradient g of log p_t:   dz = g (onehot(t) - p),
    dx = dz W,   dW = dz^T x,   db = sum of dz over the rows.

A block of rows whose logits fit the workspace is done in one go: logits, exponentials e in place, and both
gradient products from the same tile while it is in cache. With S the sum of a row's exponentials but the
target's, and s that of all, nothing of the tile's size is divided:

    -log p_t = log(1 + S / e_t),   f = -g / s,   e_t := -S:   dx = f (e W),   dW = e^T (f x),   db = e^T f

Where a row's logits are too long for that, the block passes over tiles of the classes twice, first for the
log-sum-exp and then for the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from zipfmax.backends.tiled_gradient import TiledWeightGradient, result_of, statistics_dtype
from zipfmax.backends.tiled_products import (
    add_product,
    has_faster_linear,
    linear,
    onednn_serves,
    product_dtype,
    row_pitch,
    write_logits,
)
from zipfmax.backends.tiled_tiles import Tiles, bytes_per_logit, spans
from zipfmax.backends.tiled_workspace import workspace

MAX_SUMMED_CLASSES = 65_536
"""Classes summed in one product for dx. The sum holds the target's large term early on, and millions of small
ones added to it one by one would each lose most of their digits."""

_LOG2_E = 1 / math.log(2)
# Sums of exponentials in between are exact without a maximum taken off the logits first: no term is infinite, and
# those that vanish are less than 1e-18 of the sum each.
_LEAST_SUM, _LARGEST_SUM = 1e-20, 1e25
_LEAST_OF_TARGET, _LARGEST_RATIO = 1e-37, 1e38  # float32 has the quotients of sums and targets in between
_SUMMED_NARROW = 128  # exponentials whose sum is rounded to 16 bits before float32 takes it up


class _Exponentials(NamedTuple):
    """Of the logits of a block of whole rows, or multiples of them by row."""

    e: Tensor
    """[n, V]; without meaning at the targets."""
    nll: Tensor
    """-log p of the targets, [n], in the statistics' dtype."""
    total: Tensor
    """Sum of each row, [n], in that dtype too."""
    of_target: Tensor
    """e minus the sum, at the targets: [n], in the dtype of e."""
    targets: tuple[Tensor, Tensor]
    """All elements of e in one row, and the numbers of the targets' among them, [n]."""


class ClusterSoftmax:
    """-log p of targets under softmax(x W^T + b), and gradients on the way, block after block of rows.

    Args:
        weight: [V, K].
        bias: [V] or None.
        n_rows: how many rows will come.
        workspace_bytes: size of the logits' buffer, for all rows and classes together.
        wants_input, wants_weight, wants_bias: which gradients to take.
        narrow: whether logits of whole rows may stay in bfloat16, as calls of this have use for; `logits` and
            what is built on them have not.
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
        narrow: bool = False,
    ) -> None:
        self.weight, self.bias = weight, bias
        self.n_classes = weight.shape[0]
        self.statistics_dtype = statistics_dtype(weight.dtype)
        self.product_dtype = product_dtype(weight)
        if onednn_serves(weight):  # its tiles are new tensors, beside which parts of gradients are held
            workspace_bytes = workspace_bytes * 3 // 4
        narrow = narrow and self.product_dtype == torch.bfloat16  # whose range is float32's
        self._pitch = row_pitch(self.n_classes, weight)
        self.tiles = Tiles.plan(
            n_rows, self.n_classes, workspace_bytes, self.product_dtype, narrow=narrow, pitch=self._pitch
        )
        self.narrow = narrow and self.tiles.classes == self.n_classes
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
            -log p [n] in the statistics' dtype, and the gradient of x where it is wanted.
        """
        for gradient in (self.weight_gradient, self.bias_gradient):
            if gradient is not None and scale is not None:
                gradient.start_block()
        if self.tiles.classes >= self.n_classes:
            return self._whole_rows(x, target, scale, out)
        log_sum_exp, picked = self.statistics(x, target)
        nll = (log_sum_exp - picked).squeeze(1)
        if scale is None:
            return nll, None
        return nll, self._gradients_by_tiles(x, target, log_sum_exp, scale, out)

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
        made = self._exponentials(x, target) if self._moderate_logits else None
        if made is None:
            self._moderate_logits = False  # the next block's are likely to be as large
            made = self._probabilities(x, target)
        e, nll, total, of_target, (elements, at) = made
        if scale is None:
            return nll, None
        elements.index_copy_(0, at, of_target)
        return nll, self._gradients_of_rows(e, x, total.reciprocal_().mul_(-scale).unsqueeze(1), out)

    def _exponentials(self, x: Tensor, target: Tensor) -> _Exponentials | None:
        """Takes no maximum off the logits; None where that matters."""
        e = self._logits(x, 0, self.n_classes, factor=_LOG2_E, narrow=self.narrow, pitch=self._pitch)
        elements, at = _elements(e, target)
        of_target = elements.index_select(0, at).to(self.statistics_dtype).exp2_()
        elements.index_fill_(0, at, -torch.inf)
        others = _row_sums(e.exp2_())
        total = others + of_target
        if not _is_moderate(total, of_target):
            return None
        nll = (others / of_target).log1p_()
        return _Exponentials(e, nll, total, others.neg_().to(e.dtype), (elements, at))

    def _probabilities(self, x: Tensor, target: Tensor) -> _Exponentials:
        """The same for logits of any size: e are probabilities, and their sum is 1."""
        p = self._logits(x, 0, self.n_classes, narrow=self.narrow)
        torch.log_softmax(p, dim=1, out=p)
        elements, at = _elements(p, target)
        log_p = elements.index_select(0, at)
        p.mul_(_LOG2_E).exp2_()
        nll = 0 - log_p.to(self.statistics_dtype)
        return _Exponentials(p, nll, torch.ones_like(nll), log_p.expm1_(), (elements, at))

    def _gradients_of_rows(self, e: Tensor, x: Tensor, factor: Tensor, out: Tensor | None) -> Tensor | None:
        """Gradients of whole rows from e with the target's element replaced, and f, `factor` [n, 1]."""
        if e.dtype != self.product_dtype:  # float16, whose range asks for values that are scaled
            return self._gradients(e.mul_(factor), x, 0, -1.0, out, beta=0)
        if self.bias_gradient is not None:
            self.bias_gradient.add(torch.mv(e.t(), factor.squeeze(1).to(e.dtype)))
        if self.weight_gradient is not None:
            self.weight_gradient.add_product(e.t(), (x * factor).to(e.dtype), 1.0)
        if not self.wants_input:
            return None
        if out is None:
            out = torch.empty_like(x)
        if e.dtype == x.dtype:
            self._add_input_gradient(out, e, 0, 1.0, beta=0)
            return out.mul_(factor)
        wide = e.new_empty(x.shape)
        self._add_input_gradient(wide, e, 0, 1.0, beta=0)
        return out.copy_(wide.mul_(factor))

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

    def _logits(
        self,
        x: Tensor,
        start: int,
        stop: int,
        factor: float = 1.0,
        *,
        narrow: bool = False,
        pitch: int | None = None,
    ) -> Tensor:
        """Logits of the classes from start to stop times a factor, in the statistics' dtype, or the products'.

        A view of the workspace with rows `pitch` apart, or a tile of its own.
        """
        weight, bias = self.weight, self.bias
        if stop - start < self.n_classes:
            weight, bias = weight[start:stop], None if bias is None else bias[start:stop]
        if has_faster_linear(x, stop - start):
            logits = linear(x, weight, bias)
            return logits if factor == 1 else logits.mul_(factor)
        product = self.product_dtype
        logits = self._tile(0, product, x.shape[0], stop - start, pitch)
        late = factor if product == torch.float16 else 1.0  # whose range has nothing to spare
        write_logits(logits, x.to(product), weight, bias, factor / late)
        if not narrow and self.statistics_dtype != product:
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
        product = self.product_dtype
        dz = p if p.dtype == product else self._tile(0, product, *p.shape).copy_(p)
        if self.weight_gradient is not None:
            self.weight_gradient.add_product(dz.t(), x.to(product), alpha, start)
        if not self.wants_input:
            return None
        if out is None:
            out = torch.empty_like(x)
        self._add_input_gradient(out, dz, start, alpha, beta)
        return out

    def _add_input_gradient(self, out: Tensor, dz: Tensor, start: int, alpha: float, beta: int) -> None:
        """out = beta out + alpha dz W, of the classes from `start`."""
        n_classes = dz.shape[1]
        weight = self.weight if n_classes == self.n_classes else self.weight[start : start + n_classes]
        if n_classes <= MAX_SUMMED_CLASSES or weight.dtype != self.statistics_dtype:
            add_product(out, dz, weight, alpha=alpha, beta=beta)
            return
        if not beta:
            out.zero_()
        for classes in spans(n_classes, MAX_SUMMED_CLASSES):
            out.add_(linear(dz[:, classes], weight[classes].t()), alpha=alpha)

    def _tile(
        self, which: int, dtype: torch.dtype, n_rows: int, n_classes: int, pitch: int | None = None
    ) -> Tensor:
        """A view of the workspace: tile 0 lies behind tile 1, which is the wider of the two."""
        is_whole = self.tiles.classes >= self.n_classes
        n_logits = self.tiles.rows * (self._pitch if is_whole else self.tiles.classes)
        each = self.product_dtype.itemsize if self.narrow else bytes_per_logit(self.product_dtype)
        if self._buffer is None:
            self._buffer = workspace(n_logits * each, self.weight.device)
        pitch = pitch or n_classes
        offset = 0 if which else (each - dtype.itemsize) * n_logits
        n_bytes = n_rows * pitch * dtype.itemsize
        tile = self._buffer[offset : offset + n_bytes].view(dtype).view(n_rows, pitch)
        return tile if pitch == n_classes else tile[:, :n_classes]


def _rows_in(target: Tensor, classes: slice) -> Tensor:
    rows: Tensor = ((target >= classes.start) & (target < classes.stop)).nonzero().squeeze(1)
    return rows


def _log_sum_exp_(z: Tensor) -> Tensor:
    """Log-sum-exp of each row, [n, 1]; destroys z. A row of only -inf gives -inf."""
    highest = z.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(z.dtype).min)
    z.sub_(highest).mul_(_LOG2_E).exp2_()
    return z.sum(dim=1, keepdim=True).log_().add_(highest)


def _is_moderate(total: Tensor, of_target: Tensor) -> bool:
    """Whether exponentials without a maximum taken off are exact, given their sums and those of the targets, [n]."""
    least, most = (bound.item() for bound in total.aminmax())  # NaN is in no range
    of_targets = max(_LEAST_OF_TARGET, most / _LARGEST_RATIO)
    return bool(least > _LEAST_SUM and most < _LARGEST_SUM and of_target.amin().item() > of_targets)


def _elements(tile: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """All elements of a tile [n, V] in one row, and the numbers of the targets' among them, [n].

    torch's scatter in bfloat16 converts the whole tile, at the price of its exponentials.
    """
    (n_rows, n_classes), pitch = tile.shape, tile.stride(0)
    first = torch.arange(0, n_rows * pitch, pitch, device=tile.device)
    return tile.as_strided(((n_rows - 1) * pitch + n_classes,), (1,)), first.add_(target)


def _row_sums(tile: Tensor) -> Tensor:
    """Sum of each row, [n], in the statistics' dtype.

    Of 16 bits a few at a time: torch.sum in another dtype would convert the tile first.
    """
    dtype = statistics_dtype(tile.dtype)
    if tile.dtype == dtype:
        return tile.sum(dim=1)
    even = tile.shape[1] // _SUMMED_NARROW * _SUMMED_NARROW
    total = tile[:, even:].sum(dim=1, dtype=dtype)
    if even:
        parts = tile[:, :even].view(tile.shape[0], -1, _SUMMED_NARROW)
        total += parts.sum(dim=2).sum(dim=1, dtype=dtype)
    return total
