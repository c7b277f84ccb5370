"""The whole computation as a list of launches: no autograd, and no host read of device data.

Everything here takes shapes, strides and plain numbers from the host and leaves the data on the device, so a
step can be captured in a CUDA graph. What depends on these alone, a `Plan`, is made once and kept: a step
then
allocates, fills in addresses and launches. `operators` wraps it for torch.

The launches of a training step whose logits fit the workspace, for any number of tails: prepare, logits,
head,
two products, project, forward, combine, both gradients of the projections, weight gradients, loss; backward
adds one. The passes forward and weight gradients are two launches where their tiles differ in warps or
stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zipfmax.backends.triton.captured import Lease, graphs
from zipfmax.backends.triton.head import Head
from zipfmax.backends.triton.head_logits import WORKSPACE_BYTES, padded_size_of
from zipfmax.backends.triton.launch import Memory, raw_stream
from zipfmax.backends.triton.loss import Loss
from zipfmax.backends.triton.projection import Project, ProjectionGradients
from zipfmax.backends.triton.routing import Prepare, capacity, check_totals
from zipfmax.backends.triton.runtime import padded_width, round_up
from zipfmax.backends.triton.tail import Tail
from zipfmax.backends.triton.tail_backward import WeightGradient
from zipfmax.backends.triton.tail_combine import Combine
from zipfmax.backends.triton.tail_forward import GRADIENT, LSE, Forward
from zipfmax.weights import TailWeights, Weights

# Elements that the gradients in one allocation are aligned to: what the vendor's products and vectorised
# optimisers want.
_ALIGNMENT = 64


class Shapes(NamedTuple):
    """All that a plan depends on."""

    n_rows: int
    d: int
    stride: int
    """Elements between the rows of the hidden states."""
    dtype: torch.dtype
    device: torch.device
    aligned: bool
    """Every tensor of the user's begins at a multiple of 16 bytes."""
    bounds: tuple[int, ...]
    """(cutoffs..., n_classes)"""
    k_sizes: tuple[int, ...]
    present: tuple[int, ...]
    """Which biases are there: the head's, then (projection, output) a tail, 0 or 1."""
    ignore_index: int | None
    reduction: str
    has_weight: bool
    """Rows have a factor each; nothing but gradients is wanted then."""
    want: tuple[bool, bool] | None
    """Gradients of (the input, the weights); None for the forward pass only."""
    result_dtype: torch.dtype
    """Of output and loss."""
    precision: str
    """Of float32 products."""
    workspace_bytes: int


class Result(NamedTuple):
    """What a step computed; None where it was not wanted."""

    output: Tensor
    """[N], of the result's dtype: log-probability of each target, 0 in rows that do not count."""
    loss: Tensor
    """The loss."""
    factor: Tensor | None
    """[] float32: the gradients are those of loss / factor; None for 1."""
    hidden: Tensor | None
    """Gradient of the input, [N, d]."""
    weights: Tensor | None
    """Gradients of all weights in one allocation."""
    places: Gradients
    """Where each of them lies there."""
    lease: Lease | None = None
    """Not None where factor and gradients lie in a graph's memory: they hold while this object is referenced."""

    def copied(self) -> Result:
        """The same with factor and gradients in memory of their own."""
        factor, hidden, weights = (
            None if tensor is None else tensor.clone() for tensor in (self.factor, self.hidden, self.weights)
        )
        return self._replace(factor=factor, hidden=hidden, weights=weights, lease=None)


class Gradients:
    """Where each weight's gradient lies in their one allocation, in the order of `Weights.tensors`.

    The head's has room for `padded_size_of` its rows.
    """

    def __init__(self, d: int, bounds: Sequence[int], k_sizes: Sequence[int], present: Sequence[int]) -> None:
        head_size = bounds[0] + len(k_sizes)
        shapes: list[tuple[int, ...]] = [(head_size, d)]
        if present[0]:
            shapes.append((head_size,))
        for i, k_size in enumerate(k_sizes):
            size = bounds[i + 1] - bounds[i]
            shapes += [(k_size, d), (size, k_size)]
            shapes += [(k_size,)] * present[1 + 2 * i] + [(size,)] * present[2 + 2 * i]
        self.padded_head = (padded_size_of(head_size), d)
        self.places: list[tuple[tuple[int, ...], tuple[int, ...], int]] = []
        """Shape, strides and first element of each."""
        self.size = 0
        for i, shape in enumerate(shapes):
            self.places.append((shape, (shape[1], 1) if len(shape) == 2 else (1,), self.size))
            taken = self.padded_head if i == 0 else shape
            self.size += round_up(taken[0] * (taken[1] if len(taken) == 2 else 1), _ALIGNMENT)

    def split(self, flat: Tensor) -> list[Tensor]:
        """The gradients: views of `flat`."""
        return [flat.as_strided(*place) for place in self.places]


class StepPlan:
    """A step's launches with their grids and constants, and where its memory lies."""

    def __init__(self, shapes: Shapes) -> None:
        s = self._shapes = shapes
        bounds, want, device, dtype = s.bounds, s.want, s.device, s.dtype
        scale = 1.0 / s.n_rows if s.reduction == "mean" and not s.has_weight else 1.0
        n_clusters = len(s.k_sizes)
        head_size = bounds[0] + n_clusters
        padded_size = padded_size_of(head_size)
        on_gpu = device.type == "cuda"
        self._asserts = not on_gpu
        self._pads = padded_size > head_size
        self._copies = s.ignore_index is not None
        stride = s.d if self._copies else s.stride
        self._padded_shape = (padded_size, s.d)
        self.gradients = Gradients(s.d, bounds, s.k_sizes, s.present)
        # A cluster of one class is certain: it adds nothing to the output.
        tails = [
            Tail(
                c,
                k_size,
                padded_width(k_size),
                bounds[c + 1] - bounds[c],
                bool(s.present[1 + 2 * c]),
                bool(s.present[2 + 2 * c]),
            )
            for c, k_size in enumerate(s.k_sizes)
        ]
        self._certain = [tail for tail in tails if tail.n_classes == 1]
        self._tails = tails = [tail for tail in tails if tail.n_classes > 1]
        self._places = list(zip(*(_places_of_tail(s.present, tail.cluster) for tail in tails), strict=True))
        self._prepare = Prepare(
            s.n_rows,
            bounds,
            s.ignore_index,
            head_size=head_size,
            padded_size=padded_size,
            has_bias=bool(s.present[0]),
            d=s.d,
            stride=s.stride,
            copy_hidden=self._copies,
            asserts=on_gpu,
        )
        self._head = Head(
            s.n_rows,
            s.d,
            head_size,
            padded_size,
            dtype,
            device,
            bounds,
            s.ignore_index,
            has_bias=bool(s.present[0]),
            has_weight=s.has_weight,
            want=want,
            scale=scale,
            workspace_bytes=s.workspace_bytes,
        )
        launches = [*self._prepare.launches, *self._head.launches]
        self._want = want or (False, False)
        if tails:
            self._project = Project(tails, s.n_rows, s.d, stride, dtype, device)
            self._forward = Forward(tails, s.n_rows, dtype, device, LSE if want is None else GRADIENT)
            self._combine = Combine(tails, self._forward, s.n_rows, dtype, want is not None, s.has_weight)
            launches += [self._project.launch, *self._forward.launches, self._combine.launch]
            if want is not None:
                self._projection_gradients = ProjectionGradients(
                    tails, s.n_rows, s.d, stride, dtype, device, want, scale
                )
                launches.append(self._projection_gradients.launch)
            if self._want[1]:
                self._weight_gradient = WeightGradient(tails, dtype, device, s.has_weight, scale)
                launches += self._weight_gradient.launches
        if not s.has_weight:
            self._loss = Loss(s.n_rows, s.reduction, s.ignore_index is not None, s.result_dtype)
            launches.append(self._loss.launch)
        self._launches = launches
        self._ready = False

        slots = capacity(s.n_rows, n_clusters)
        self._memory = memory = Memory()
        memory.add(torch.int32, *self._prepare.counts_shape)
        memory.add(torch.int32, slots)
        memory.add(torch.int32, slots)
        memory.add(torch.int32, n_clusters)
        memory.add(torch.int32, n_clusters)
        memory.add(torch.int32, 2)
        memory.add(torch.float32, s.n_rows)
        memory.add(torch.float32, slots)
        memory.add(torch.float32, slots)
        for i, tail in enumerate(tails):
            memory.add(dtype, slots, tail.width)
            memory.add(dtype, *((slots, tail.width) if want is not None else (0,)))
            for piece, shape in self._forward.partials[i]:
                memory.add(piece, *shape)

    @property
    def held_bytes(self) -> int:
        """What a step allocates, results and a copy of its batch included, in bytes."""
        s = self._shapes
        elements = s.n_rows * s.d * (2 + self._copies) + self.gradients.size
        elements += self._padded_shape[0] * s.d * self._pads
        return elements * s.dtype.itemsize + 8 * s.n_rows + self._head.temporary_bytes + self._memory.n_bytes

    def run(
        self, hidden: Tensor, target: Tensor, weights: Sequence[Tensor], row_weight: Tensor | None
    ) -> Result:
        """One step on tensors of the plan's shapes, contiguous but for the stride of hidden's rows."""
        s = self._shapes
        device, dtype = s.device, s.dtype
        stream = raw_stream(device) if self._ready else None
        by_address = stream is not None
        buffer = self._memory.allocate(device)
        pieces: list[Any] = self._memory.addresses(buffer) if by_address else self._memory.tensors(buffer)
        counts, row, local, start, rows, totals, output32, base, inverse, *of_tails = pieces

        def ref(tensor: Tensor) -> Any:
            return tensor.data_ptr() if by_address else tensor

        x, labels = ref(hidden), ref(target)
        factor = None
        output = loss = buffer
        if not s.has_weight:
            output = torch.empty(s.n_rows, dtype=s.result_dtype, device=device)
            loss = torch.empty(
                output.shape if s.reduction == "none" else (), dtype=s.result_dtype, device=device
            )
            if s.result_dtype == torch.float32:
                output32 = ref(output)
            if s.reduction == "mean" and s.ignore_index is not None:
                factor = torch.empty((), dtype=torch.float32, device=device)
        want_hidden, want_weights = self._want
        hidden_gradient = torch.empty((s.n_rows, s.d), dtype=dtype, device=device) if want_hidden else None
        flat = torch.empty(self.gradients.size, dtype=dtype, device=device) if want_weights else None

        head, head_bias = weights[0], weights[1] if s.present[0] else None
        if self._pads:
            padded = torch.empty(self._padded_shape, dtype=dtype, device=device)
            padded_bias = None if head_bias is None else padded.new_empty(padded.shape[0])
        kept = torch.empty((s.n_rows, s.d), dtype=dtype, device=device) if self._copies else hidden
        head_ref = ref(head)
        self._prepare(
            stream,
            labels,
            counts,
            row,
            local,
            start,
            rows,
            totals,
            head_ref,
            head_ref if head_bias is None else ref(head_bias),
            ref(padded) if self._pads else head_ref,
            ref(padded_bias) if self._pads and padded_bias is not None else head_ref,
            x,
            ref(kept) if self._copies else x,
        )
        if self._asserts:
            check_totals(totals, s.bounds)
        if self._pads:
            head, head_bias = padded, padded_bias
        x = ref(kept)

        places: list[Any] = []
        head_gradient = head_bias_gradient = None
        if flat is not None:
            if by_address:
                begin, size = flat.data_ptr(), dtype.itemsize
                places = [begin + place[2] * size for place in self.gradients.places]
            else:
                places = self.gradients.split(flat)
            shape = self.gradients.padded_head
            head_gradient = flat.as_strided(shape, (shape[1], 1), 0)
            head_bias_gradient = places[1] if s.present[0] else None
        weight_ref = output32 if row_weight is None else ref(row_weight)
        sums = head_bias_gradient
        if head_bias_gradient is not None and not self._head.single:
            sums_tensor = torch.empty(self._padded_shape[0], dtype=torch.float32, device=device)
            sums = ref(sums_tensor)
        self._head(
            stream,
            kept,
            head,
            head_bias,
            labels,
            output32,
            weight_ref,
            hidden_gradient,
            head_gradient,
            sums,
        )
        if sums is not head_bias_gradient:
            assert flat is not None
            flat.as_strided(*self.gradients.places[1]).copy_(sums_tensor[: weights[0].shape[0]])
        if self._tails:
            self._run_tails(
                stream, ref, weights, x, hidden_gradient, places,
                row, local, start, rows, output32, base, inverse, weight_ref, of_tails,
            )  # fmt: skip
        if self._certain and flat is not None:
            self._run_certain(kept, target, self.gradients.split(flat))
        if not s.has_weight:
            self._loss(
                stream, output32, ref(output), ref(loss), output32 if factor is None else ref(factor), totals
            )
        if not self._ready and s.aligned and device.type == "cuda":
            self._ready = all(launch.ready for launch in self._launches)
        return Result(output, loss, factor, hidden_gradient, flat, self.gradients)

    def _run_tails(
        self, stream: int | None, ref: Any, weights: Sequence[Tensor], x: Any, hidden_gradient: Tensor | None,
        places: list[Any], row: Any, local: Any, start: Any, rows: Any, output: Any, base: Any, inverse: Any,
        row_weight: Any, pieces: list[Any],
    ) -> None:  # fmt: skip
        """The phases of all tails but the certain ones."""
        h, dh, peak, total, extra = (tuple(pieces[i::5]) for i in range(5))
        w1, w2, b1, b2 = self._of_tails([ref(tensor) for tensor in weights], x)
        self._project(stream, x, w1, b1, h, row, start, rows)
        self._forward(stream, h, w2, b2, start, rows, peak, total, extra)
        self._combine(
            stream,
            peak,
            total,
            extra,
            h,
            w2,
            b2,
            row,
            local,
            start,
            rows,
            row_weight,
            output,
            base,
            inverse,
            dh,
        )
        want_hidden, want_weights = self._want
        if not want_hidden and not want_weights:
            return
        dw1 = dw2 = db1 = db2 = dh
        if want_weights:
            dw1, dw2, db1, db2 = self._of_tails(places, x)
        dx = x if hidden_gradient is None else ref(hidden_gradient)
        self._projection_gradients(stream, dh, x, w1, dx, dw1, db1, row, start, rows)
        if want_weights:
            self._weight_gradient(
                stream, h, w2, b2, base, inverse, row, local, start, rows, row_weight, dw2, db2
            )

    def _of_tails(self, each: Sequence[Any], stand_in: Any) -> list[tuple[Any, ...]]:
        """Projections, outputs, their biases, of all tails but the certain, out of one thing a weight."""
        return [
            tuple([stand_in if place < 0 else each[place] for place in places]) for places in self._places
        ]

    def _run_certain(self, hidden: Tensor, target: Tensor, gradients: list[Tensor]) -> None:
        """Gradients of tails of one class: zero, but NaN if a row of it is not finite, as 0 * inf is."""
        for tail in self._certain:
            zero: Tensor | int = 0
            if tail.k_size:
                member = target == self._shapes.bounds[tail.cluster]
                zero = torch.where(member.unsqueeze(1), hidden, 0).mul_(0).sum()
            for place in _places_of_tail(self._shapes.present, tail.cluster):
                if place >= 0:
                    gradients[place].zero_().add_(zero)


def _places_of_tail(present: Sequence[int], cluster: int) -> tuple[int, int, int, int]:
    """Where a tail's projection, output and their biases are in `Weights.tensors`; -1 for one not there."""
    place = 1 + present[0] + 2 * cluster + sum(present[1 : 1 + 2 * cluster])
    has_projection_bias, has_output_bias = present[1 + 2 * cluster : 3 + 2 * cluster]
    return (
        place,
        place + 1,
        place + 2 if has_projection_bias else -1,
        place + 2 + has_projection_bias if has_output_bias else -1,
    )


_plans: dict[Shapes, StepPlan] = {}
_MOST_PLANS = 512


def plan_for(shapes: Shapes) -> StepPlan:
    """The plan of these shapes. Kept on GPUs: where nothing is compiled, it costs little."""
    if shapes.device.type != "cuda":
        return StepPlan(shapes)
    plan = _plans.get(shapes)
    if plan is None:
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        plan = _plans[shapes] = StepPlan(shapes)
    return plan


def forget_plans() -> None:
    """Make every plan again at its next step: after tiles were overridden."""
    _plans.clear()


def nll_step(
    hidden: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    present: Sequence[int],
    bounds: Sequence[int],
    ignore_index: int | None,
    *,
    reduction: str = "sum",
    row_weight: Tensor | None = None,
    want: tuple[bool, bool] | None = None,
    result_dtype: torch.dtype = torch.float32,
    workspace_bytes: int = WORKSPACE_BYTES,
    capture: bool = False,
) -> Result:
    """Log-probability of each target, the loss and, with `want`, the gradients of loss / factor.

    Args:
        hidden: [N, d]; target: [N] int64; both on one device with the weights; N at least 1.
        weights, present: as `operators.pack` makes them.
        bounds: (cutoffs..., n_classes).
        ignore_index: rows with this target get output 0 and take no part in any gradient.
        reduction: "mean", "sum" or "none". For "mean" 1/N is applied to float32 sums before they are
            rounded; what is left where rows are ignored, N / counted, is the factor.
        row_weight: [N] float32: the gradients are then those of -sum of row_weight * output, and neither
            output nor loss is written.
        want: whether the gradients of (the input, the weights) are wanted; None for the forward pass only.
        result_dtype: of output and loss.
        workspace_bytes: bound on the head's logits; at least one row of them exists.
        capture: the step may come from a graph, and the result then has a lease; see `captured`.
    """
    hidden = rows_of_unit_stride(hidden)
    target = target.contiguous()
    if not all(weight.is_contiguous() for weight in weights):
        weights = [weight.contiguous() for weight in weights]
    device, dtype = hidden.device, hidden.dtype
    aligned = False
    if device.type == "cuda":
        aligned = not (hidden.data_ptr() | target.data_ptr()) & 15
        aligned = aligned and not any(tensor.data_ptr() & 15 for tensor in weights)
    shapes = Shapes(
        hidden.shape[0],
        hidden.shape[1],
        hidden.stride(0),
        dtype,
        device,
        aligned,
        tuple(bounds),
        _k_sizes(weights, present),
        tuple(present),
        ignore_index,
        reduction,
        row_weight is not None,
        want,
        result_dtype,
        torch.get_float32_matmul_precision() if dtype == torch.float32 else "",
        workspace_bytes,
    )
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return _run(shapes, hidden, target, weights, row_weight, capture)
    return _run(shapes, hidden, target, weights, row_weight, capture)


def _run(
    shapes: Shapes,
    hidden: Tensor,
    target: Tensor,
    weights: Sequence[Tensor],
    row_weight: Tensor | None,
    capture: bool,
) -> Result:
    """The step on the current device: replayed where it may be and was captured, else launched."""
    step = graphs.find(shapes, plan_for, hidden, target, weights) if capture else None
    if step is not None:
        return step.run(hidden, target)
    return plan_for(shapes).run(hidden, target, weights, row_weight)


def _k_sizes(weights: Sequence[Tensor], present: Sequence[int]) -> tuple[int, ...]:
    """Projection size of each tail."""
    place = 1 + present[0]
    sizes = []
    for c in range(1, len(present), 2):
        sizes.append(weights[place].shape[0])
        place += 2 + present[c] + present[c + 1]
    return tuple(sizes)


def gradients_of(
    hidden: Tensor, weights: Sequence[Tensor], present: Sequence[int], bounds: Sequence[int]
) -> Gradients:
    """Where each weight's gradient lies in their one allocation."""
    return Gradients(hidden.shape[1], bounds, _k_sizes(weights, present), present)


def rows_of_unit_stride(hidden: Tensor) -> Tensor:
    """hidden, copied only if its columns are not adjacent."""
    return hidden if hidden.stride(1) == 1 or hidden.shape[1] <= 1 else hidden.contiguous()


def contiguous(weights: Weights) -> Weights:
    """The weights, themselves if all are contiguous, else with copies of those that are not."""
    if all(tensor.is_contiguous() for tensor in weights.tensors()):
        return weights

    def each(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.contiguous()

    tails = tuple(
        TailWeights(
            t.projection.contiguous(), t.output.contiguous(), each(t.projection_bias), each(t.output_bias)
        )
        for t in weights.tails
    )
    return Weights(weights.head.contiguous(), each(weights.head_bias), tails)
