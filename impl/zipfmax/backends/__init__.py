"""The backends: the same functions in each, chosen by name or by what the input needs.

`eager` is the specification: plain differentiable torch operations. The others compute the same function.
A backend is a module; `Backend` is what it must hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from zipfmax.backends.context import is_traced, plain_operations_only
from zipfmax.backends.tiled_products import product_dtype
from zipfmax.clusters import ClusterLayout
from zipfmax.errors import unknown
from zipfmax.gradients import Upstream
from zipfmax.submodules import computes_itself
from zipfmax.weights import Weights

# Fastest first: `auto` takes the first one that does not refuse the input.
BACKENDS = ("triton", "tiled", "eager")

REDUCTIONS = ("mean", "sum", "none")

# Logits on a CPU up to which the plain operations are at least as fast as tiles: of a loss or of all classes'
# log-probabilities, and of the most probable class. Measured with 2,000 to 200,000 classes, d 64 to 768. The times of
# a loss meet between 0.6 and 2 million logits on an Intel Xeon and on an AMD EPYC of the Zen 5 generation, and on one
# of the Zen 3 generation at 0.5 million in training steps with one thread and at a million in forwards with two; of
# log_prob between 0.5 and 2 million in float32, in bfloat16 they are within a tenth of each other; of predict from 4
# million in float32 and from 1 to 4 million in bfloat16. Fewer than the tiled workspace holds.
SMALL_LOSS, SMALL_CLASSES = 2**20, 2**22
# That many times fewer where a 16-bit product is slow and tiles take it in float32: there the times of a loss meet
# between 5,000 logits (d 768) and 25,000 (d 64).
_SLOW_16_BITS = 2**6


class Backend(Protocol):
    """What a backend module holds. N rows, d = in_features; hidden and weights share one floating dtype."""

    @property
    def scores(self) -> Callable[..., Any] | None:
        """Gives the log-sum-exps that `zipfmax.losses` asks for, where only the backend can: over several processes.

        None for the others, whose scores `losses` computes from the weights.
        """

    def refusal(self, hidden: Tensor, weights: Weights) -> str | None:
        """Why this backend cannot serve the input, or None where it can. Never reads device data."""

    def nll(
        self,
        layout: ClusterLayout,
        weights: Weights,
        hidden: Tensor,
        target: Tensor,
        *,
        ignore_index: int | None = None,
        reduction: str = "mean",
        dtype: torch.dtype | None = None,
        upstream: Upstream | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each row's target, and the loss. Both differentiable.

        Args:
            layout: the partition.
            weights: as the layout shapes them.
            hidden: [N, d].
            target: [N], int64, in [0, n_classes) or equal to ignore_index.
            ignore_index: rows with this target get output 0 and no gradient, and are not counted.
            reduction: "mean" over the counted rows (NaN where there are none), "sum" or "none".
            dtype: of the results, hidden's where it is None. Both are rounded to it once, at the end.
            upstream: which result the backward is expected to start from; a backend that need not know
                ignores it. Where its `output_needs_gradient` is False, the caller detaches `output`.

        Returns:
            output [N], log p(target | hidden); loss, a scalar, or [N] for "none".

        Raises:
            RuntimeError: a target outside [0, n_classes), with torch.nn's text (asynchronously on a GPU).
        """

    def log_prob(self, layout: ClusterLayout, weights: Weights, hidden: Tensor) -> Tensor:
        """Log-probabilities of all classes, [N, n_classes], differentiable."""

    def predict(self, layout: ClusterLayout, weights: Weights, hidden: Tensor) -> Tensor:
        """Most probable class of each row, [N] int64."""


def load(name: str) -> Backend:
    """The backend of that name.

    Raises:
        ValueError: unknown name.
    """
    # Import statements, one by one: torch.compile traces those, and Triton is touched only where asked for.
    if name == "triton":
        from zipfmax.backends import triton

        return cast(Backend, triton)
    if name == "tiled":
        from zipfmax.backends import tiled

        return cast(Backend, tiled)
    if name == "eager":
        from zipfmax.backends import eager

        return cast(Backend, eager)
    raise ValueError(unknown("backend", name, ("auto", *BACKENDS)))


def _unusual_tensors(hidden: Tensor, weights: Weights) -> str | None:
    """What of the tensors only plain operations serve, or None."""
    if computes_itself(hidden):
        return f"an input of type {type(hidden).__name__}"
    if torch.compiler.is_compiling():  # which knows no inference mode
        return None
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and weights.head.is_inference():
        return "weights that were made in inference mode"
    return None


def _is_small(hidden: Tensor, weights: Weights, target: Tensor | None, distribution: bool) -> bool:
    """Whether a call on a CPU computes so few logits that plain operations are the fastest."""
    if hidden.device.type != "cpu" or is_traced(hidden):
        return False
    slower = _SLOW_16_BITS if product_dtype(hidden) != hidden.dtype else 1
    small_loss, small_classes = SMALL_LOSS // slower, SMALL_CLASSES // slower
    rows, head_size = hidden.shape[0], weights.head.shape[0]
    sizes = [tail.output.shape[0] for tail in weights.tails]
    most = rows * (head_size + sum(sizes))
    if target is None:
        return most <= (small_loss if distribution else small_classes)
    if most <= small_loss or rows * head_size > small_loss:
        return most <= small_loss
    # Of the shortlist and of each tail.
    ends = torch.tensor([head_size - len(sizes), *sizes], device=hidden.device).cumsum(0)
    parts = torch.bucketize(target.contiguous(), ends, right=True)
    members = torch.bincount(parts, minlength=len(ends))[1 : len(ends)]
    return rows * head_size + int((members * torch.tensor(sizes, device=hidden.device)).sum()) <= small_loss


def select(
    name: str, hidden: Tensor, weights: Weights, target: Tensor | None = None, distribution: bool = False
) -> Backend:
    """The backend that serves this call: the named one, or for "auto" the fastest that can.

    Args:
        name: "auto" or one of `BACKENDS`.
        hidden: [N, d].
        weights: of the layer.
        target: [N] where the loss is asked for; None for all classes.
        distribution: whether the log-probabilities of all classes are asked for, not only the best class.

    Raises:
        ValueError: unknown name.
        RuntimeError: a named backend that cannot serve the call, with its reason.
    """
    unusual = plain_operations_only() or _unusual_tensors(hidden, weights)
    if name == "auto":
        if unusual is not None or _is_small(hidden, weights, target, distribution):
            return load("eager")
        for candidate in BACKENDS:
            backend = load(candidate)
            if backend.refusal(hidden, weights) is None:
                return backend
    backend = load(name if name != "auto" else "eager")
    if unusual is not None and name != "eager":
        if unusual == "torch.export":
            return load("eager")  # an exported program runs where zipfmax's operators may be missing
        raise RuntimeError(
            f"backend {name!r} cannot serve this call: it is under {unusual}; backend='eager' serves it, "
            "and backend='auto' takes that here"
        )
    reason = backend.refusal(hidden, weights)
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot serve this input: {reason}")
    return backend
