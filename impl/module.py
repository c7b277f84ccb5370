"""The layer: torch.nn.AdaptiveLogSoftmaxWithLoss's constructor, results, errors and state_dict names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from zipfmax import backends
from zipfmax.clusters import ClusterLayout
from zipfmax.weights import TailWeights, Weights


class ASMoutput(NamedTuple):
    """What the layer returns: the log-probability of each target, and the loss."""

    output: Tensor
    loss: Tensor


class AdaptiveLogSoftmaxWithLoss(nn.Module):
    """Adaptive softmax over a large, skewed label space (Grave et al. 2016).

    Drops in for `torch.nn.AdaptiveLogSoftmaxWithLoss`: same arguments, results, errors, parameter names and
    initialisation, so a torch checkpoint loads unchanged.

    Args:
        in_features: width d of the hidden state.
        n_classes: number of labels; label 0 should be the most frequent.
        cutoffs: label ranks at which a new cluster starts, increasing, without n_classes.
        div_value: tail i is computed from a projection of size floor(d / div_value**(i + 1)).
        head_bias: add a bias to the head.
        device, dtype: of the parameters.
        backend: "auto" takes the fastest that can serve the input; a named one that cannot raises.

    Shape:
        input [N, d] with target [N], or [d] with a scalar target; output like target, loss a scalar.

    Raises:
        ValueError: cutoffs that are no partition, div_value not positive, unknown backend.
    """

    cutoffs: list[int]

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        head_bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.layout = ClusterLayout(in_features, n_classes, tuple(cutoffs), div_value)
        self.in_features = in_features
        self.n_classes = n_classes
        self.cutoffs = [*self.layout.cutoffs, n_classes]  # torch.nn keeps n_classes in this list
        self.div_value = div_value
        self.head_bias = head_bias
        self.shortlist_size = self.layout.shortlist_size
        self.n_clusters = self.layout.n_clusters
        self.head_size = self.layout.head_size
        if backend != "auto":
            backends.load(backend)
        self.backend = backend

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.head = nn.Linear(in_features, self.head_size, bias=head_bias, **factory)
        self.tail = nn.ModuleList(
            nn.Sequential(
                nn.Linear(in_features, cluster.projection_size, bias=False, **factory),
                nn.Linear(cluster.projection_size, cluster.size, bias=False, **factory),
            )
            for cluster in self.layout
        )

    def reset_parameters(self) -> None:
        """Draw every weight anew, as at construction."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def weights(self) -> Weights:
        """The parameters as the backends take them: views, not copies."""
        tails = []
        for pair in self.tail:
            projection, output = (cast(nn.Linear, linear) for linear in cast(nn.Sequential, pair))
            tails.append(TailWeights(projection.weight, output.weight, projection.bias, output.bias))
        return Weights(self.head.weight, self.head.bias, tuple(tails))

    def forward(self, input: Tensor, target: Tensor) -> ASMoutput:
        """Log-probability of each target and the mean negative log-likelihood.

        Args:
            input: [N, d] or [d].
            target: [N] or scalar, int64, in [0, n_classes).

        Raises:
            RuntimeError: shapes that do not match, or targets out of range; torch.nn's texts.
        """
        _check_shapes(input, target)
        hidden, flat_target = input.reshape(-1, input.shape[-1]), target.reshape(-1)
        weights = self.weights()
        backend = backends.select(self.backend, hidden, weights)
        output, loss = backend.nll(self.layout, weights, hidden, flat_target)
        return ASMoutput(output.reshape(target.shape), loss)

    def log_prob(self, input: Tensor) -> Tensor:
        """Log-probabilities of all classes: [N, d] -> [N, n_classes]."""
        weights = self.weights()
        return backends.select(self.backend, input, weights).log_prob(self.layout, weights, input)

    def predict(self, input: Tensor) -> Tensor:
        """The most probable class: [N, d] -> [N], int64."""
        weights = self.weights()
        return backends.select(self.backend, input, weights).predict(self.layout, weights, input)

    def extra_repr(self) -> str:
        """What distinguishes this layer when printed."""
        return (
            f"in_features={self.in_features}, n_classes={self.n_classes}, "
            f"cutoffs={list(self.layout.cutoffs)}, div_value={self.div_value}, backend={self.backend!r}"
        )


def _check_shapes(input: Tensor, target: Tensor) -> None:
    if target.dim() == 1:
        if input.size(0) != target.size(0):
            raise RuntimeError("Input and target should have the same size in the batch dimension.")
        if input.dim() != 2:
            raise RuntimeError(
                f"1D target tensor expects 2D input tensors, but found inputs with size {input.size()}"
            )
    elif target.dim() == 0:
        if input.dim() != 1:
            raise RuntimeError(
                f"0D target tensor expects 1D input tensors, but found inputs with size {input.size()}"
            )
    else:
        raise RuntimeError("0D or 1D target tensor expected, multi-target not supported")
