"""FLOPs of zipfmax's own operators, for torch's FLOP counter, which cannot look into them.

The formulas count the matrix products that the operators evaluate, at the rows that the target really sends
to each cluster, 2 for a multiply and add, as torch counts its own. Padding of narrow projections is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, NamedTuple, Self
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

_KERNELS = "zipfmax.backends.triton.step"


class Products(NamedTuple):
    """How often the product of each kind of layer is evaluated."""

    head: int
    projection: int
    output: int


FORWARD = Products(1, 1, 1)


def training(want_hidden: bool, want_weights: bool, extra: int = 0) -> Products:
    """Logits once and a product a gradient; `extra` more for the outputs of the tails."""
    linear = 1 + want_hidden + want_weights
    return Products(linear, linear, linear + extra)


def layer_flops(rows: Sequence[int], weights: Sequence[Tensor], products: Products) -> int:
    """FLOPs of a batch's products.

    Args:
        rows: that go through the head, then through each tail.
        weights: as `Weights.tensors` lists them; biases, which are vectors, cost no product.
        products: how often each is evaluated.
    """
    head, *tails = [weight.numel() for weight in weights if weight.dim() == 2]
    found = 2 * rows[0] * products.head * head
    for n, projection, output in zip(rows[1:], tails[::2], tails[1::2], strict=True):
        found += 2 * n * (products.projection * projection + products.output * output)
    return found


def rows_of(target: Tensor, bounds: Sequence[int]) -> list[int]:
    """Rows of the head, which are all, and of each tail; `bounds` are (cutoffs..., n_classes)."""
    stops = torch.tensor(bounds, device=target.device)
    parts = torch.bucketize(target, stops, right=True)
    return [len(target), *torch.bincount(parts, minlength=len(bounds) + 1)[1 : len(bounds)].tolist()]


def counted(run: Callable[[], None]) -> int:
    """FLOPs of one run by torch's counter."""
    register()
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _OneModule()  # type: ignore[assignment]
    with ExitStack() as stack:
        if _KERNELS in sys.modules:
            # Outside of a graph a training step launches its kernels past the dispatcher; as if it were
            # traced it goes through the operator that has a formula.
            stack.enter_context(mock.patch("zipfmax.backends.triton.is_traced", return_value=True))
        stack.enter_context(counter)
        run()
    return int(counter.get_total_flops())


class _OneModule:
    """In place of the counter's record of which module computes what: its hooks on the graph do not bear
    `torch.autograd.grad` within a forward, as fused losses call it.
    """

    parents: ClassVar[set[str]] = {"Global"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to undo."""


def register() -> None:
    """Tell torch's counter about zipfmax's operators that this process has loaded, and oneDNN's linear."""
    for name, formula in _FORMULAS.items():
        operator = getattr(torch.ops.zipfmax, name, None)
        if operator is not None and operator not in flop_registry:
            register_flop_formula(operator, get_raw=True)(formula)
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if linear is not None and linear not in flop_registry:
        register_flop_formula(linear, get_raw=True)(_linear)


def _linear(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * x.numel() * weight.shape[0]


def _nll(
    hidden: Tensor, target: Tensor, weights: list[Tensor], present: Any, bounds: list[int], *_: Any, **__: Any
) -> int:
    return layer_flops(rows_of(target, bounds), weights, FORWARD)


def _nll_gradients(
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    present: Any,
    bounds: list[int],
    *rest: Any,
    **_: Any,
) -> int:
    """A tail's gradient passes twice over its classes: for the mean row, then for the weight's gradient."""
    want_hidden, want_weights = rest[-2:]
    products = training(want_hidden, want_weights, extra=int(want_weights))
    if not want_hidden:  # the mean row is accumulated all the same
        products = products._replace(output=products.output + 1)
    return layer_flops(rows_of(target, bounds), weights, products)


def _log_prob(hidden: Tensor, weights: list[Tensor], present: Any, bounds: list[int], **_: Any) -> int:
    """A tail's logits are computed for the log-sum-exp and again where they are written."""
    return layer_flops([len(hidden)] * len(bounds), weights, Products(1, 1, 2))


def _log_prob_gradients(
    hidden: Tensor, weights: list[Tensor], present: Any, bounds: list[int], grad: Any, **_: Any
) -> int:
    return layer_flops([len(hidden)] * len(bounds), weights, training(True, True))


def _predict(hidden: Tensor, weights: list[Tensor], present: Any, bounds: list[int], **_: Any) -> int:
    """Only rows whose head prefers a cluster's slot go through the tails, and through all of them."""
    bias = weights[1] if present[0] else None
    best = torch.nn.functional.linear(hidden, weights[0], bias).argmax(dim=1)
    undecided = int((best >= bounds[0]).sum())
    return layer_flops([len(hidden), *[undecided] * (len(bounds) - 1)], weights, FORWARD)


def _tiled_log_p(
    hidden: Tensor, target: Tensor, weights: list[Tensor], biases: Any, bounds: list[int], *_: Any, **__: Any
) -> int:
    return layer_flops(rows_of(target, bounds[1:]), weights, FORWARD)


def _tiled_log_p_gradients(
    scale: Any,
    hidden: Tensor,
    target: Tensor,
    weights: list[Tensor],
    biases: Any,
    bounds: list[int],
    ignore_index: Any,
    workspace_bytes: Any,
    wanted: list[bool],
    **_: Any,
) -> int:
    return layer_flops(rows_of(target, bounds[1:]), weights, training(wanted[0], any(wanted[1:])))


_FORMULAS: Mapping[str, Callable[..., int]] = {
    "nll_forward": _nll,
    "nll_train": _nll_gradients,
    "nll_gradients": _nll_gradients,
    "log_prob": _log_prob,
    "log_prob_gradients": _log_prob_gradients,
    "predict": _predict,
    "tiled_log_p": _tiled_log_p,
    "tiled_log_p_gradients": _tiled_log_p_gradients,
}
