"""A layer that is spread over ranks: its parameters are DTensors, its calls are the ones it had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, distribute_tensor
from torch.distributed.tensor import Shard as Sharded
from torch.nn.modules.adaptive import _ASMoutput

from zipfmax import backends
from zipfmax.backends import Backend
from zipfmax.backends.context import is_traced, plain_operations_only
from zipfmax.decoding import TopK
from zipfmax.fx import refuse_proxy
from zipfmax.inputs import Operands, check_input, check_out, operands
from zipfmax.module import AdaptiveLogSoftmaxWithLoss
from zipfmax.parallel import decoding
from zipfmax.parallel.agreement import agree, description
from zipfmax.parallel.backend import ShardedBackend
from zipfmax.parallel.functions import rows_of_all
from zipfmax.parallel.shard import Shard, refusal, spans
from zipfmax.submodules import Called, Replaced, plain_weights
from zipfmax.weights import Weights

_BY_CLASS, _BY_ROW = Sharded(0), Sharded(0)


def shard_vocabulary(
    layer: AdaptiveLogSoftmaxWithLoss,
    mesh_or_group: DeviceMesh | dist.ProcessGroup,
    *,
    input_layouts: Placement | None = None,
) -> AdaptiveLogSoftmaxWithLoss:
    """Split the vocabulary of a layer over the ranks of a group, in place. Collective.

    Head and every tail are split by classes, so that each rank has the same work whatever the labels; the
    projections are replicated. The parameters become DTensors on the mesh with rank 0's values. The layer is
    then called as before, by every rank alike: with the same hidden states and the same labels, which are
    labels of the whole vocabulary. Every rank gets the whole result, and the whole gradient of the hidden
    states. Rows of `sample` are the same on every rank, whatever the states of their generators.

    A call of the layer costs one gather of statistics, 2 numbers a row for the head and 2 for the target's
    tail, and its backward one sum of the hidden states' gradient and one of all projections'. `log_prob`
    gathers all logits; `predict`, `topk` and `sample` gather twice at most.

    Args:
        layer: on the device of the mesh, or on "meta".
        mesh_or_group: a mesh of one dimension, such as mesh["tp"], or a process group.
        input_layouts: `Replicate()`, the default, where every rank has all rows; `Shard(0)` where each has
            its part of dimension 0, split as torch.chunk does, as sequence parallelism leaves it. Labels and
            results are of all rows either way.

    Returns:
        the layer.

    Raises:
        ValueError: on every rank, where one of them is given a group of fewer than 2 ranks, a cluster with
            fewer classes than there are ranks, a layer that is not a plain one, or where they disagree.
        TypeError: on every rank, for another kind of layer or layout.
    """
    mesh = _mesh(mesh_or_group, layer)
    group = mesh.get_group()
    rows_sharded = input_layouts == _BY_ROW
    mine: dict[str, str] | Exception
    try:
        if input_layouts not in (None, Replicate(), _BY_ROW):
            raise TypeError(f"input_layouts should be Replicate() or Shard(0), but found {input_layouts}")
        _check(layer, mesh)
        mine = description(layer, input_layouts="Shard(0)" if rows_sharded else "Replicate()")
    except (TypeError, ValueError) as error:
        mine = error
    agree(mine, group)
    for name, parameter in list(layer.named_parameters()):
        owner = layer.get_submodule(name.rpartition(".")[0])
        whole = distribute_tensor(parameter.detach(), mesh, [_placement(name)])
        owner.register_parameter(
            name.rpartition(".")[2], nn.Parameter(whole, requires_grad=parameter.requires_grad)
        )
    layer._shard = Shard(layer.layout, group, mesh.get_local_rank(), mesh.size(), rows_sharded)  # type: ignore[assignment]
    cls = type(layer)
    layer.__class__ = type(f"Sharded{cls.__name__}", (_ShardedLayer, cls), {})
    return layer


def _placement(name: str) -> Placement:
    """Of a parameter: all are split by classes, but for the projections, "tail.*.0.*"."""
    parts = name.split(".")
    return Replicate() if parts[0] == "tail" and parts[2] == "0" else _BY_CLASS


def _mesh(mesh_or_group: DeviceMesh | dist.ProcessGroup, layer: nn.Module) -> DeviceMesh:
    if isinstance(mesh_or_group, DeviceMesh):
        if mesh_or_group.ndim != 1:
            raise ValueError(
                f"a vocabulary is split over a mesh of one dimension, but found {mesh_or_group.ndim}; "
                "take one of them by its name, as in mesh['tp']"
            )
        return mesh_or_group
    if not isinstance(mesh_or_group, dist.ProcessGroup):
        raise TypeError(f"expected a DeviceMesh or a process group, but found {type(mesh_or_group).__name__}")
    device_types = {parameter.device.type for parameter in layer.parameters()} - {"meta"}
    kind = next(iter(device_types), "cuda" if torch.cuda.is_available() else "cpu")
    return DeviceMesh.from_group(mesh_or_group, kind)


def _check(layer: AdaptiveLogSoftmaxWithLoss, mesh: DeviceMesh) -> None:
    if not isinstance(layer, AdaptiveLogSoftmaxWithLoss):
        raise TypeError(f"expected zipfmax.AdaptiveLogSoftmaxWithLoss, but found {type(layer).__name__}")
    if isinstance(layer, _ShardedLayer):
        raise ValueError("the layer's vocabulary is split already")
    read = plain_weights(layer, layer.layout)
    if isinstance(read, Replaced):
        raise ValueError(f"only plain weights can be split, but submodule {read.name!r} {read.why}")
    device = read.head.device.type
    if device not in (mesh.device_type, "meta"):
        raise ValueError(f"the layer is on {device}, but the mesh is of {mesh.device_type}")
    reason = refusal(layer.layout, mesh.size())
    if reason is not None:
        raise ValueError(reason)


if TYPE_CHECKING:
    _Base = AdaptiveLogSoftmaxWithLoss
else:
    _Base = object


class _ShardedLayer(_Base):
    """What a sharded layer does differently; mixed into the class that the layer had."""

    _shard: Shard

    def weights(self) -> Weights:
        """This rank's own part of the parameters: views, not copies.

        Raises:
            RuntimeError: a submodule is no longer what was split, or another wrapper holds its parameters.
        """
        read = plain_weights(self, self.layout, (DTensor,))
        if isinstance(read, Replaced):
            raise RuntimeError(
                f"a sharded layer computes with plain weights only, but {read.name!r} {read.why}"
            )
        return read.map(_local)

    def forward(self, input_: Tensor, target_: Tensor) -> _ASMoutput:
        """As before; with `Shard(0)` inputs of this rank's rows, and targets of all."""
        if isinstance(target_, DTensor):
            target_ = target_.full_tensor()
        return super().forward(self._rows(input_, target_.shape), target_)

    def log_prob(self, input: Tensor, out: Tensor | None = None) -> Tensor:
        """As before, of all rows and classes; `out` saves no memory here."""
        input = self._rows(input)
        if out is not None:
            shape = (*input.shape[:-1], self.n_classes)
            check_out(input, self.parameters(), out, shape, self._operands(input).dtype)
        found = super().log_prob(input)
        return found if out is None else out.copy_(found)

    def predict(self, input: Tensor) -> Tensor:
        """As before, of all rows."""
        return super().predict(self._rows(input))

    def topk(self, input: Tensor, k: int) -> TopK:
        """As before, of all rows."""
        input = self._rows(input)
        hidden, weights, dtype, context = self._operands(input)
        with context:
            values, indices = decoding.topk(self._shard, cast(Weights, weights), hidden, k)
        shape = (*input.shape[:-1], k)
        return TopK(values.reshape(shape).to(dtype), self._labels(indices).reshape(shape))

    def sample(self, input: Tensor, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """As before, of all rows, the same on every rank; see `zipfmax.parallel.decoding.sample`."""
        input = self._rows(input)
        hidden, weights, _, context = self._operands(input)
        with context:
            drawn = decoding.sample(self._shard, cast(Weights, weights), hidden, n, generator)
        return self._labels(drawn).reshape(*input.shape[:-1], n)

    def to_torch(self) -> nn.AdaptiveLogSoftmaxWithLoss:
        """torch.nn's layer with the whole weights, on every rank. Collective."""
        whole = AdaptiveLogSoftmaxWithLoss(
            self.in_features,
            self.n_classes,
            self.layout.cutoffs,
            self.div_value,
            self.head.bias is not None,
            tail_bias=self.tail_bias,
            projection_bias=self.projection_bias,
            projection_sizes=self.layout.projection_sizes,
            label_ranks=self.label_ranks,
            device="meta",
        )
        for name, parameter in self.named_parameters():
            owner, _, leaf = name.rpartition(".")
            tensor = cast(DTensor, parameter.detach()).full_tensor()
            whole.get_submodule(owner).register_parameter(
                leaf, nn.Parameter(tensor, requires_grad=parameter.requires_grad)
            )
        return whole.train(self.training).to_torch()

    def reset_parameters(self) -> None:
        """Draw every weight again; the replicated ones are rank 0's. Collective."""
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if _placement(name) == Replicate():
                local = cast(DTensor, parameter.detach()).to_local()
                dist.broadcast(local, group=self._shard.group, group_src=0)

    def extra_repr(self) -> str:
        """What distinguishes this layer when printed."""
        return f"{super().extra_repr()}, rank={self._shard.rank} of {self._shard.world}"

    def _rows(self, input: Tensor, target_shape: torch.Size | None = None) -> Tensor:
        """All rows, as a plain tensor, from what the layer was given."""
        refuse_proxy(input)
        shard = self._shard
        wanted = _BY_ROW if shard.rows_sharded else Replicate()
        n_rows = None
        if isinstance(input, DTensor):
            n_rows = input.shape[0] if input.dim() else None
            mesh = cast(DTensor, self.head.weight).device_mesh
            input = input.redistribute(mesh, [wanted]).to_local(grad_placements=[wanted])
        if not shard.rows_sharded:
            return input
        if input.dim() < 2:
            raise RuntimeError(
                f"rows that are split over ranks should be at least 2-D, found {input.dim()}-D"
            )
        if target_shape:
            n_rows = target_shape[0]
        if n_rows is None:
            n_rows = input.shape[0] * shard.world
        mine = spans(n_rows, shard.world)[shard.rank]
        if input.shape[0] != mine.size:
            raise RuntimeError(
                f"rank {shard.rank} of {shard.world} should be given rows {mine.start} to {mine.stop} of "
                f"{n_rows}, but found {input.shape[0]}"
            )
        return rows_of_all(shard, input, n_rows)

    def _operands(self, input: Tensor) -> Operands:
        around = plain_operations_only() or ("a tracer" if is_traced(input) else None)
        if around is not None:
            raise RuntimeError(f"a sharded layer cannot be called under {around}: ranks meet in its calls")
        weights = self.weights()
        check_input(input, weights.head)
        return operands(input, weights)

    def _backend_for(self, hidden: Tensor, scorer: Weights | Called, *more: Any, **options: Any) -> Backend:
        inner = backends.select(self.backend, hidden, cast(Weights, scorer))  # of this rank's classes
        return cast(Backend, ShardedBackend(self._shard, inner))


def _local(parameter: Tensor) -> Tensor:
    """This rank's part of a parameter, differentiable."""
    whole = cast(DTensor, parameter)
    if whole.device_mesh.ndim != 1:
        raise RuntimeError(
            "the parameters are sharded over a second dimension too, as FSDP leaves them between calls; for "
            "other methods than forward see torch.distributed.fsdp.register_fsdp_forward_method"
        )
    local: Any = whole.to_local(grad_placements=whole.placements)
    return cast(Tensor, local)
