"""The GPU backend: adaptive softmax in Triton kernels, for CUDA and ROCm.

One training step without a host read of device data, without tail logits in memory, and with a number of
launches that the layout fixes. `step` lists the launches, `operators` makes them PyTorch operators, and each
kernel's file opens with what it computes. Gradients of clusters without targets are zeros here (torch.nn and
the eager backend leave them None): that a cluster is absent is known on the device only. A target out of
range is reported by a device-side assertion.

Nothing here imports Triton before the first call, because Triton reads TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zipfmax.backends.context import is_traced
from zipfmax.backends.triton.availability import unavailable
from zipfmax.clusters import ClusterLayout
from zipfmax.gradients import Upstream
from zipfmax.weights import Weights

scores = None
"""As `Backend` has it: computed by `zipfmax.losses`."""


def refusal(hidden: Tensor, weights: Weights) -> str | None:
    """Why the kernels cannot serve this input, or None where they can."""
    return unavailable(hidden)


def nll(
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
    """Log-probability of each row's target, and the loss; see `Backend.nll`.

    Differentiating only the loss is the fast way; differentiating `output`, or a loss with reduction "none",
    computes the forward pass twice. Second derivatives and batched gradients are computed by the eager backend.

    Raises:
        RuntimeError: a target outside [0, n_classes), asynchronously on a GPU.
    """
    from zipfmax.backends.triton import operators

    dtype = dtype or hidden.dtype
    upstream = upstream or Upstream()
    tensors, present = operators.pack(weights)
    bounds = list(layout.bounds[1:])
    batch = (hidden, target, tensors, present, bounds, ignore_index, reduction, dtype)
    if not is_traced(hidden):
        if torch.is_grad_enabled() and (
            hidden.requires_grad or any(tensor.requires_grad for tensor in tensors)
        ):
            output, loss = operators.TrainStep.apply(
                hidden, target, present, bounds, ignore_index, reduction, dtype, upstream, *tensors
            )
            return output, loss
        with torch.no_grad():
            # A dispatch mode, such as torch's FLOP counter, sees operators and no launches.
            if torch._C._len_torch_dispatch_stack():
                output, loss = operators.nll_forward(*batch)
                return output, loss
            return operators.forward(*batch)
    differentiated = hidden.requires_grad or any(tensor.requires_grad for tensor in tensors)
    trains = torch.is_grad_enabled() and differentiated and reduction != "none" and not upstream.from_output
    output, loss = operators.nll(*batch, trains)
    return output, loss


def log_prob(layout: ClusterLayout, weights: Weights, hidden: Tensor) -> Tensor:
    """Log-probabilities of all classes, [N, n_classes]; see `Backend.log_prob`."""
    from zipfmax.backends.triton import operators

    tensors, present = operators.pack(weights)
    log_prob: Tensor = operators.log_prob(hidden, tensors, present, list(layout.bounds[1:]))
    return log_prob


def predict(layout: ClusterLayout, weights: Weights, hidden: Tensor) -> Tensor:
    """Most probable class of each row, [N] int64; see `Backend.predict`."""
    from zipfmax.backends.triton import operators

    tensors, present = operators.pack(weights)
    predict: Tensor = operators.predict(hidden, tensors, present, list(layout.bounds[1:]))
    return predict
