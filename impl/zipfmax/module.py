"""The layer: torch.nn.AdaptiveLogSoftmaxWithLoss's constructor, results, errors and names, and more."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal, NamedTuple, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zipfmax import backends, decoding
from zipfmax.backends import Backend
from zipfmax.backends.targets import check_targets
from zipfmax.clusters import ClusterLayout
from zipfmax.decoding import TopK
from zipfmax.gradients import GRADIENTS, Gradients, Upstream, with_zeros_for_absent
from zipfmax.inputs import check_input, check_out, check_target, operands
from zipfmax.ranks import LabelRanks
from zipfmax.weights import TailWeights, Weights

Reduction = Literal["mean", "sum", "none"]
AbsentGrads = Literal["none", "zeros"]

# Stands for an ignore_index that is itself a label, where ranks take the labels' place.
_IGNORED_RANK = torch.iinfo(torch.int64).min


class ASMoutput(NamedTuple):
    """What the layer returns: the log-probability of each target, and the loss."""

    output: Tensor
    loss: Tensor


class AdaptiveLogSoftmaxWithLoss(nn.Module):
    """Adaptive softmax over a large, skewed label space (Grave et al. 2016).

    Drops in for `torch.nn.AdaptiveLogSoftmaxWithLoss`: same arguments, results, errors, parameter names and
    initialisation, so a torch checkpoint loads unchanged. The arguments after `dtype` are what it lacks.

    Args:
        in_features: width d of the hidden state.
        n_classes: number of labels; label 0 should be the most frequent, or else see `label_ranks`.
        cutoffs: label ranks at which a new cluster starts, increasing, without n_classes.
        div_value: tail i is computed from a projection of size floor(d / div_value**(i + 1)).
        head_bias: add a bias to the head.
        device, dtype: of the parameters.
        tail_bias: add a bias to every cluster's output.
        projection_bias: add a bias to every cluster's projection.
        projection_sizes: the projections' sizes, one a tail, instead of those that div_value gives.
        ignore_index: rows with this target get output 0 and no gradient, and are not counted in the mean.
        reduction: "mean" over the counted rows, "sum", or "none" for a loss shaped like the target. With no
            counted row, or no row at all, the mean is NaN and the sum 0, as in
            `torch.nn.functional.cross_entropy`; either way every gradient is zero.
        label_ranks: for labels that are not sorted by frequency. The layer keeps a copy in its state_dict;
            targets, columns of log_prob, predictions, topk and samples are then all the user's own labels.
        absent_grads: what the weights of a cluster without targets get: "none" leaves their gradient None, as
            torch.nn does; "zeros" gives them zeros, so that DistributedDataParallel needs no
            `find_unused_parameters`. Compiled graphs and GPU kernels, which never read the targets on the
            host, give zeros either way.
        backend: "auto" takes the fastest that can serve the input; a named one that cannot raises.
        gradients: what will be differentiated. "loss": the loss alone, so `output` is detached. "output": a
            loss of the user's built from `output`, so the forward takes no gradients of the layer's own
            loss (nothing else changes). "auto": as "loss", with `output` differentiable, until a backward
            starts from `output`, then as "output" until one starts from the loss alone.

    Shape:
        input [..., d] with target [...]: any leading shape, none included. output like target, loss a scalar
        or, for reduction "none", like target.

    Raises:
        ValueError: cutoffs that are no partition, div_value not positive, label_ranks of another number of
            labels, an unknown reduction, absent_grads, backend or gradients.
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
        tail_bias: bool = False,
        projection_bias: bool = False,
        projection_sizes: Sequence[int] = (),
        ignore_index: int | None = None,
        reduction: Reduction = "mean",
        label_ranks: LabelRanks | None = None,
        absent_grads: AbsentGrads = "none",
        backend: str = "auto",
        gradients: Gradients = "auto",
    ) -> None:
        super().__init__()
        self.layout = ClusterLayout(
            in_features, n_classes, tuple(cutoffs), div_value, tuple(projection_sizes)
        )
        if reduction not in backends.REDUCTIONS:
            raise ValueError(
                f"unknown reduction {reduction!r}; choose one of: {', '.join(backends.REDUCTIONS)}"
            )
        if absent_grads not in ("none", "zeros"):
            raise ValueError(f"unknown absent_grads {absent_grads!r}; choose one of: none, zeros")
        if gradients not in GRADIENTS:
            raise ValueError(f"unknown gradients {gradients!r}; choose one of: {', '.join(GRADIENTS)}")
        if label_ranks is not None and len(label_ranks) != n_classes:
            raise ValueError(f"label_ranks is of {len(label_ranks)} labels, but n_classes is {n_classes}")
        if backend != "auto":
            backends.load(backend)
        self.in_features = in_features
        self.n_classes = n_classes
        self.cutoffs = [*self.layout.cutoffs, n_classes]  # torch.nn keeps n_classes in this list
        self.div_value = div_value
        self.head_bias = head_bias
        self.tail_bias = tail_bias
        self.projection_bias = projection_bias
        self.shortlist_size = self.layout.shortlist_size
        self.n_clusters = self.layout.n_clusters
        self.head_size = self.layout.head_size
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.absent_grads: AbsentGrads = absent_grads
        self.backend = backend
        self._upstream = Upstream(gradients)

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        with _empty_weights():
            self.head = nn.Linear(in_features, self.head_size, bias=head_bias, **factory)
            self.tail = nn.ModuleList(
                nn.Sequential(
                    nn.Linear(in_features, cluster.projection_size, bias=projection_bias, **factory),
                    nn.Linear(cluster.projection_size, cluster.size, bias=tail_bias, **factory),
                )
                for cluster in self.layout
            )
        self.label_ranks = (
            deepcopy(label_ranks).to(self.head.weight.device) if label_ranks is not None else None
        )

    @classmethod
    def from_counts(
        cls,
        in_features: int,
        counts: Tensor | npt.ArrayLike,
        batch_size: int,
        div_value: float = 4.0,
        clusters: int | str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        plan: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """The layer for labels with these counts: cutoffs planned for this machine, labels in any order.

        Args:
            in_features: width d of the hidden state.
            counts: [n_classes] how often each label occurs; where they do not descend, the layer carries
                `LabelRanks` and so keeps the user's label ids.
            batch_size: rows of a training step.
            div_value, clusters: as `zipfmax.plan_cutoffs` takes them.
            device, dtype: of the parameters, and what the plan is for.
            plan: further arguments of `zipfmax.plan_cutoffs`, such as {"min_shortlist_share": 0.8}.
            options: further arguments of the layer, such as `ignore_index`.

        Raises:
            ValueError: counts or bounds that allow no plan.
        """
        from zipfmax.planner import plan_cutoffs  # planning measures the machine; the layer does not need it

        values = np.asarray(counts.cpu() if isinstance(counts, Tensor) else counts)
        planned = plan_cutoffs(
            values,
            in_features,
            batch_size,
            div_value,
            clusters,
            device=device or "cpu",
            dtype=dtype or torch.get_default_dtype(),
            **(plan or {}),
        )
        if "label_ranks" not in options and (np.diff(values.astype(np.float64)) > 0).any():
            options["label_ranks"] = LabelRanks.from_counts(values)
        return cls(
            in_features, len(values), planned.cutoffs, div_value, device=device, dtype=dtype, **options
        )

    def reset_parameters(self) -> None:
        """Draw every weight anew, as at construction."""
        with _empty_weights():
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
        """Log-probability of each target, and the loss.

        Args:
            input: [..., d], of the parameters' dtype. Under autocast, of any but float64: products are then
                taken in autocast's dtype, and output and loss are float32.
            target: [...], int64 or int32, in [0, n_classes) or equal to ignore_index.

        Raises:
            RuntimeError: shapes, dtypes or devices that do not match, or targets out of range; torch.nn's
                texts where it has one.
        """
        check_target(input, target)
        check_input(input, self.head.weight)
        weights = self.weights()
        if self.absent_grads == "zeros":
            weights = with_zeros_for_absent(weights)
        hidden, weights, dtype, autocast_off = operands(input, weights)
        ranks, ignore_index = self._ranks(target.reshape(-1).long())
        with autocast_off:
            output, loss = self._backend_for(hidden, weights).nll(
                self.layout,
                weights,
                hidden,
                ranks,
                ignore_index=ignore_index,
                reduction=self.reduction,
                dtype=dtype,
                upstream=self._upstream,
            )
        if not self._upstream.output_needs_gradient:
            output = output.detach()
        if self.reduction == "none":
            loss = loss.reshape(target.shape)
        return ASMoutput(output.reshape(target.shape), loss)

    def log_prob(self, input: Tensor, out: Tensor | None = None) -> Tensor:
        """Log-probabilities of all classes: [..., d] -> [..., n_classes].

        Args:
            input: as `forward` takes it.
            out: where to write them, contiguous, of the result's shape, dtype and device. Nothing else of
                that size is then held. As everywhere in torch, `out` goes with no gradient: call it under
                `torch.no_grad()`.
        """
        check_input(input, self.head.weight)
        hidden, weights, dtype, autocast_off = operands(input, self.weights())
        columns = None if self.label_ranks is None else self.label_ranks.rank_of_label
        shape = (*input.shape[:-1], self.n_classes)
        if out is not None:
            check_out(hidden, weights, out, shape, dtype)
            with autocast_off:
                decoding.log_prob_into(self.layout, weights, hidden, out.view(-1, self.n_classes), columns)
            return out
        with autocast_off:
            result = self._backend_for(hidden, weights).log_prob(self.layout, weights, hidden)
        return (result if columns is None else result.index_select(1, columns)).reshape(shape).to(dtype)

    def predict(self, input: Tensor) -> Tensor:
        """The most probable class: [..., d] -> [...], int64."""
        check_input(input, self.head.weight)
        hidden, weights, _, autocast_off = operands(input, self.weights())
        with autocast_off:
            best = self._backend_for(hidden, weights).predict(self.layout, weights, hidden)
        return self._labels(best).reshape(input.shape[:-1])

    def topk(self, input: Tensor, k: int) -> TopK:
        """The k most probable classes and their log-probabilities, descending: [..., d] -> two of [..., k].

        Exact, without the full distribution: a tail is computed only for rows where its slot in the head is
        more probable than the k-th class found so far.

        Raises:
            ValueError: k outside [0, n_classes].
        """
        check_input(input, self.head.weight)
        hidden, weights, dtype, autocast_off = operands(input, self.weights())
        with autocast_off:
            found, _ = decoding.topk(self.layout, weights, hidden, k)
        shape = (*input.shape[:-1], k)
        return TopK(found.values.reshape(shape).to(dtype), self._labels(found.indices).reshape(shape))

    def sample(self, input: Tensor, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """n classes drawn independently from each row's distribution: [..., d] -> [..., n], int64.

        First the head picks a class of the shortlist or a cluster, then the cluster picks a class: only the
        clusters that were picked are computed.

        Raises:
            ValueError: n smaller than 1.
        """
        check_input(input, self.head.weight)
        hidden, weights, _, autocast_off = operands(input, self.weights())
        with autocast_off:
            drawn = decoding.sample(self.layout, weights, hidden, n, generator)
        return self._labels(drawn).reshape(*input.shape[:-1], n)

    def to_torch(self) -> nn.AdaptiveLogSoftmaxWithLoss:
        """torch.nn's layer with a copy of these weights; see `zipfmax.converters.to_torch`.

        Raises:
            ValueError: the layer holds parameters that torch's cannot have.
        """
        from zipfmax.converters.torch_nn import to_torch

        return to_torch(self)

    def extra_repr(self) -> str:
        """What distinguishes this layer when printed."""
        return (
            f"in_features={self.in_features}, n_classes={self.n_classes}, "
            f"cutoffs={list(self.layout.cutoffs)}, div_value={self.div_value}, backend={self.backend!r}"
        )

    def _backend_for(self, hidden: Tensor, weights: Weights) -> Backend:
        # An exported program runs where zipfmax's operators may be missing: plain torch operations there.
        # The flag and not is_exporting(), which says yes under torch.compile too in torch 2.11.
        exporting = torch.compiler._is_exporting_flag
        return backends.select("eager" if exporting else self.backend, hidden, weights)

    def _ranks(self, labels: Tensor) -> tuple[Tensor, int | None]:
        """Frequency ranks of flat labels, and the rank that stands for ignore_index."""
        if self.label_ranks is None:
            return labels, self.ignore_index
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            check_targets(
                labels, self.n_classes, self.ignore_index
            )  # so that the error names labels, not ranks
        ranks = self.label_ranks.to_ranks(labels)
        if self.ignore_index is None or not 0 <= self.ignore_index < self.n_classes:
            return ranks, self.ignore_index
        return ranks.masked_fill(labels == self.ignore_index, _IGNORED_RANK), _IGNORED_RANK

    def _labels(self, ranks: Tensor) -> Tensor:
        return ranks if self.label_ranks is None else self.label_ranks.to_labels(ranks)


@contextmanager
def _empty_weights() -> Iterator[None]:
    """Initialise weights of size 0 without torch's warning: here they are meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors is a no-op")
        yield
