"""The layer: torch.nn.AdaptiveLogSoftmaxWithLoss's constructor, results, errors and names, and more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from operator import index
from typing import Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.adaptive import _ASMoutput

from zipfmax import backends, decoding, export
from zipfmax.backends import Backend
from zipfmax.backends.context import cannot_read, plain_operations_only
from zipfmax.backends.targets import check_targets
from zipfmax.clusters import ClusterLayout
from zipfmax.decoding import TopK
from zipfmax.errors import unknown
from zipfmax.fx import is_proxy, leaf, refuse_proxy
from zipfmax.gradients import GRADIENTS, Gradients, Upstream, with_zeros_for_absent, zeros_besides
from zipfmax.inputs import (
    Operands,
    check_input,
    check_out,
    check_target,
    check_tensor,
    check_width,
    operands,
    operands_of_called,
)
from zipfmax.label_ranks import LabelRanks
from zipfmax.losses import LossTerms, check_terms, nll_with_terms
from zipfmax.submodules import Called, Replaced, announce, plain_weights
from zipfmax.weights import Weights

Reduction = Literal["mean", "sum", "none"]
AbsentGrads = Literal["none", "zeros"]

# Stands for an ignore_index that is itself a label, where ranks take the labels' place.
_IGNORED_RANK = torch.iinfo(torch.int64).min


ASMoutput = _ASMoutput
"""What the layer returns, torch's own named tuple: `output`, log p of each target, and `loss`."""


class AdaptiveLogSoftmaxWithLoss(nn.AdaptiveLogSoftmaxWithLoss):
    """Adaptive softmax over a large, skewed label space (Grave et al. 2016).

    Drops in for `torch.nn.AdaptiveLogSoftmaxWithLoss`: same arguments, results, errors, parameter names and
    initialisation, so a torch checkpoint loads unchanged. The arguments after `dtype` are what it lacks.

    It is a subclass of torch's layer, so that code which asks `isinstance` (initialisers, samplers of modules
    to quantise or to wrap) treats it as the one it replaces; it inherits no computation.

    Submodules count. While `head` and `tail` are what the constructor made, a backend reads their weights;
    where one is an adapter, a wrapper or another class, has a hook or a weight that is computed, the layer
    calls the submodules as torch.nn does, with one warning that names the first of them: plain torch
    operations then, whatever the device. A named backend other than "eager" raises instead.

    Args:
        in_features: width d of the hidden state.
        n_classes: number of labels; label 0 should be the most frequent, or else see `label_ranks`.
        cutoffs: label ranks at which a new cluster starts, increasing, without n_classes.
        div_value: tail i is computed from a projection of size floor(d / div_value**(i + 1)).
        head_bias: add a bias to the head.
        device: of the parameters.
        dtype: of the parameters.
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
        label_smoothing: as `torch.nn.functional.cross_entropy` takes it, uniform over all classes.
        weight: [n_classes] by label, as `cross_entropy` takes it; the mean then divides by the sum of the
            targets' weights. It is kept as the buffer `class_weight`; a checkpoint may lack it.
        z_loss: adds this factor times the squared log-sum-exps of the head and of the target's tail; see
            `zipfmax.losses` for the whole formula. `output` is log p of the target whatever is added.
        gradients: what will be differentiated. "loss": only the loss, so `output` is detached. "output": a
            loss of the user's built from `output`, so the forward takes no gradients of the layer's own
            loss (nothing else changes). "auto": as "loss", with `output` differentiable, until a backward
            starts from `output`, then as "output" until one starts from the loss only.

    Shape:
        input [..., d] with target [...]: any leading shape, none included. output like target, loss a scalar
        or, for reduction "none", like target.

    Raises:
        ValueError: cutoffs that are no partition, div_value not positive, label_ranks of another number of
            labels, an unknown reduction, absent_grads, backend or gradients; a label_smoothing, weight or
            z_loss that no loss can have.
        TypeError: an argument of another type, such as an ignore_index that is not an integer.
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
        label_smoothing: float = 0.0,
        weight: Tensor | None = None,
        z_loss: float = 0.0,
    ) -> None:
        nn.Module.__init__(self)  # torch's own would make the weights a second time
        self.layout = ClusterLayout(
            in_features,
            n_classes,
            cutoffs,  # type: ignore[arg-type]  # which makes tuples of both
            div_value,
            projection_sizes,  # type: ignore[arg-type]
        )
        if reduction not in backends.REDUCTIONS:
            raise ValueError(unknown("reduction", reduction, backends.REDUCTIONS))
        if absent_grads not in ("none", "zeros"):
            raise ValueError(unknown("absent_grads", absent_grads, ("none", "zeros")))
        if gradients not in GRADIENTS:
            raise ValueError(unknown("gradients", gradients, GRADIENTS))
        if label_ranks is not None and not isinstance(label_ranks, LabelRanks):
            raise TypeError(f"label_ranks should be LabelRanks, got {type(label_ranks).__name__}")
        if label_ranks is not None and len(label_ranks) != n_classes:
            raise ValueError(f"label_ranks is of {len(label_ranks)} labels, but n_classes is {n_classes}")
        if backend != "auto":
            backends.load(backend)
        if ignore_index is not None and not hasattr(ignore_index, "__index__"):
            raise TypeError(f"ignore_index should be an integer or None, got {ignore_index!r}")
        check_terms(n_classes, label_smoothing, z_loss, weight)
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
        self.ignore_index = None if ignore_index is None else index(ignore_index)
        self.reduction: Reduction = reduction
        self.absent_grads: AbsentGrads = absent_grads
        self.backend = backend
        self._upstream = Upstream(gradients)
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self._announced: set[str] = set()

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
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

        self.class_weight: Tensor | None
        self.register_buffer(
            "class_weight", None if weight is None else weight.detach().clone().to(self.head.weight.device)
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
        calibrate: bool = False,
        plan: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """The layer for labels with these counts: cutoffs planned, labels in any order.

        Plan once and paste the code that is logged: cutoffs shape the weights, and a later version may plan
        otherwise. Where torch's default process group is initialised, every rank has to call this, with the
        same counts; rank 0 plans for all.

        Args:
            in_features: width d of the hidden state.
            counts: [n_classes] how often each label occurs; where they do not descend, the layer carries
                `LabelRanks` and so keeps the user's label ids.
            batch_size: rows of a training step.
            div_value: as `zipfmax.plan_cutoffs` takes it.
            clusters: as `zipfmax.plan_cutoffs` takes it.
            device: of the parameters, and what the plan is for.
            dtype: of the parameters, and what the plan is for.
            calibrate: measure this machine for at most 45 s, once, in place of planning with a bundled model.
            plan: further arguments of `zipfmax.plan_cutoffs`, such as {"min_shortlist_share": 0.8}.
            options: further arguments of the layer, such as `ignore_index`.

        Raises:
            ValueError: counts or bounds that allow no plan; counts that differ between ranks.
            RuntimeError: rank 0 could not plan.
            ImportError, TimeoutError: as `zipfmax.plan_cutoffs`, where it measures.
        """
        from zipfmax.shared_plan import is_sorted, shared_cutoffs  # the layer needs no planner

        values = np.asarray(counts.cpu() if isinstance(counts, Tensor) else counts)
        cutoffs = shared_cutoffs(
            values,
            in_features,
            batch_size,
            div_value,
            clusters,
            device,
            dtype,
            plan={"calibrate": calibrate, **(plan or {})},
            options=options,
        )
        if "label_ranks" not in options and not is_sorted(values):
            options["label_ranks"] = LabelRanks.from_counts(values)
        return cls(in_features, len(values), cutoffs, div_value, device=device, dtype=dtype, **options)

    def reset_parameters(self) -> None:
        """Draw every weight again, as at construction."""
        # As torch.nn's layer: by the submodules' own methods, so that a replaced one does it its own way.
        self.head.reset_parameters()
        for pair in self.tail.children():
            for linear in (*pair.children(),)[:2]:
                cast(nn.Linear, linear).reset_parameters()

    def weights(self) -> Weights:
        """The parameters as the backends take them: views, not copies.

        Raises:
            RuntimeError: a submodule is no longer what the constructor made, so its weights do not say what
                it computes.
        """
        read = plain_weights(self, self.layout)
        if isinstance(read, Replaced):
            raise RuntimeError(
                f"the layer's weights do not say what it computes: submodule {read.name!r} {read.why}"
            )
        return read

    def forward(self, input_: Tensor, target_: Tensor) -> ASMoutput:
        """Log-probability of each target, and the loss.

        Args:
            input_: [..., d], of the parameters' dtype. Under autocast, of any but float64: products are then
                taken in autocast's dtype, and output and loss are float32.
            target_: [...], int64 or int32, in [0, n_classes) or equal to ignore_index.

        Raises:
            RuntimeError: shapes, dtypes or devices that do not match, or targets out of range, in torch.nn's
                words where it has some; a named backend that cannot serve the call, with the reason.
            TypeError: what is not a tensor.
        """
        if is_proxy(input_) or is_proxy(target_):
            return cast(ASMoutput, leaf(self, input_, target_))
        check_target(input_, target_)
        hidden, scorer, dtype, context = self._operands(input_)
        zeros = (
            self.absent_grads == "zeros" and plain_operations_only() is None
        )  # transforms give zeros anyway
        if zeros and isinstance(scorer, Weights):
            scorer = with_zeros_for_absent(scorer)
        ranks, ignore_index = self._ranks(target_.reshape(-1).long())
        with context:
            backend = self._backend_for(hidden, scorer, ranks)
            if self.class_weight is None and not (self.label_smoothing or self.z_loss):
                output, loss = backend.nll(
                    self.layout,
                    cast(Weights, scorer),
                    hidden,
                    ranks,
                    ignore_index=ignore_index,
                    reduction=self.reduction,
                    dtype=dtype,
                    upstream=self._upstream,
                )
            else:
                output, loss = nll_with_terms(
                    backend,
                    self.layout,
                    scorer,
                    hidden,
                    ranks,
                    self._loss_terms(),
                    ignore_index=ignore_index,
                    reduction=self.reduction,
                    dtype=dtype,
                )
        if zeros and isinstance(scorer, Called):
            output, loss = zeros_besides(output, loss, self.parameters())
        if not self._upstream.output_needs_gradient:
            output = output.detach()
        if self.reduction == "none":
            loss = loss.reshape(target_.shape)
        return ASMoutput(output.reshape(target_.shape), loss)

    def log_prob(self, input: Tensor, out: Tensor | None = None) -> Tensor:
        """Log-probabilities of all classes: [..., d] -> [..., n_classes].

        Args:
            input: as `forward` takes it.
            out: where to write them, contiguous, of the result's shape, dtype and device. Nothing else of
                that size is then held. As everywhere in torch, `out` goes with no gradient: call it under
                `torch.no_grad()`.
        """
        hidden, scorer, dtype, context = self._operands(input)
        columns = None if self.label_ranks is None else self.label_ranks.rank_of_label
        shape = (*input.shape[:-1], self.n_classes)
        if out is not None:
            check_out(hidden, self.parameters(), out, shape, dtype)
            with context:
                decoding.log_prob_into(self.layout, scorer, hidden, out.view(-1, self.n_classes), columns)
            return out
        with context:
            backend = self._backend_for(hidden, scorer, distribution=True)
            result = backend.log_prob(self.layout, cast(Weights, scorer), hidden)
        return (result if columns is None else result.index_select(1, columns)).reshape(shape).to(dtype)

    def predict(self, input: Tensor) -> Tensor:
        """The most probable class: [..., d] -> [...], int64."""
        hidden, scorer, _, context = self._operands(input)
        with context:
            best = self._backend_for(hidden, scorer).predict(self.layout, cast(Weights, scorer), hidden)
        best = self._labels(best)
        return best if input.dim() == 2 else best.reshape(input.shape[:-1])

    def topk(self, input: Tensor, k: int) -> TopK:
        """The k most probable classes and their log-probabilities, descending: [..., d] -> two of [..., k].

        Exact, without the full distribution: a tail is computed only for rows where its slot in the head is
        more probable than the k-th class found so far.

        Raises:
            ValueError: k outside [0, n_classes].
        """
        hidden, scorer, dtype, context = self._operands(input)
        with context:
            found, _ = decoding.topk(self.layout, scorer, hidden, k)
        shape = (*input.shape[:-1], k)
        return TopK(found.values.reshape(shape).to(dtype), self._labels(found.indices).reshape(shape))

    def sample(self, input: Tensor, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """n classes drawn independently from each row's distribution: [..., d] -> [..., n], int64.

        First the head picks a class of the shortlist or a cluster, then the cluster picks a class: only the
        clusters that were picked are computed.

        Raises:
            ValueError: n smaller than 1.
        """
        hidden, scorer, _, context = self._operands(input)
        with context:
            drawn = decoding.sample(self.layout, scorer, hidden, n, generator)
        return self._labels(drawn).reshape(*input.shape[:-1], n)

    def to_torch(self) -> nn.AdaptiveLogSoftmaxWithLoss:
        """torch.nn's layer with a copy of these weights; see `zipfmax.converters.to_torch`.

        Raises:
            ValueError: the layer holds parameters that torch's cannot have.
        """
        return export.to_torch(self)

    def extra_repr(self) -> str:
        """What distinguishes this layer when printed."""
        return (
            f"in_features={self.in_features}, n_classes={self.n_classes}, "
            f"cutoffs={list(self.layout.cutoffs)}, div_value={self.div_value}, backend={self.backend!r}"
        )

    def _operands(self, input: Tensor) -> Operands:
        """Rows and what scores them: the weights, or the submodules where those do not say it all."""
        refuse_proxy(input)
        check_tensor("input", input)
        read = plain_weights(self, self.layout)
        if not isinstance(read, Replaced):
            check_input(input, read.head)
            return operands(input, read)
        announce(read, self.backend, self._announced)
        check_width(input, self.in_features)
        return operands_of_called(input, Called(self, self.layout))

    def _backend_for(
        self,
        hidden: Tensor,
        scorer: Weights | Called,
        target: Tensor | None = None,
        distribution: bool = False,
    ) -> Backend:
        if isinstance(scorer, Called):
            return backends.load("eager")
        return backends.select(self.backend, hidden, scorer, target, distribution)

    def _loss_terms(self) -> LossTerms:
        weight = self.class_weight
        if weight is not None and self.label_ranks is not None:
            weight = weight.index_select(0, self.label_ranks.label_of_rank)
        return LossTerms(self.label_smoothing, self.z_loss, weight)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: Any, missing: list[str], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)
        if prefix + "class_weight" in missing:  # no weight of the model: torch's checkpoints have none
            missing.remove(prefix + "class_weight")

    def _ranks(self, labels: Tensor) -> tuple[Tensor, int | None]:
        """Frequency ranks of flat labels, and the rank that stands for ignore_index."""
        if self.label_ranks is None:
            return labels, self.ignore_index
        if labels.device.type == "cpu" and not (torch.compiler.is_compiling() or cannot_read(labels)):
            # Here, so that the error names labels, not ranks.
            check_targets(labels, self.n_classes, self.ignore_index)
        ranks = self.label_ranks.to_ranks(labels)
        if self.ignore_index is None or not 0 <= self.ignore_index < self.n_classes:
            return ranks, self.ignore_index
        return ranks.masked_fill(labels == self.ignore_index, _IGNORED_RANK), _IGNORED_RANK

    def _labels(self, ranks: Tensor) -> Tensor:
        return ranks if self.label_ranks is None else self.label_ranks.to_labels(ranks)
