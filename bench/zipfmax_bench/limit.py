"""What the bare matrix products of a case cost: the floor that efficiency (limit / measured) refers to.

Three products for training (logits, gradient of the input, gradient of the weight) and one for a forward, of
the head, of each projection and of each tail's output, at the rows that the loaded batch really gives each
cluster; plus one exponential a logit. In the case's dtype, by torch, into memory that is at hand and warm, with
rows where `torch.mm` is the fastest; where oneDNN's product or one in float32 is faster (see
`zipfmax.backends.tiled_products`), it takes that one's place.
Nothing is gathered, reduced or normalised.

The limit is a measurement like any other: it takes its turn among the implementations, in its own process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipfmax.backends.tiled_products import add_product, has_faster_linear, linear, product_dtype, row_pitch
from zipfmax.backends.tiled_tiles import MIN_BLOCK_ROWS
from zipfmax.clusters import ClusterLayout
from zipfmax_reference.contestants.implementation import Family
from zipfmax_reference.contestants.torch_nn import missing_device, torch_dtype
from zipfmax_reference.runs.arrays import Array, Inputs, Labels, Results
from zipfmax_reference.runs.case import Case

# Of a buffer that stays in a CPU's cache, 4 MiB in float32, and is still long for a GPU's launch.
_CHUNK_ELEMENTS = 2**20
# Of a new tensor of logits: larger ones are given back to the system each time, and their pages cost more
# than the product.
_TILE_BYTES = 24 * 2**20


class Product(NamedTuple):
    """One linear layer applied to some rows; `part` 0 is the head, i + 1 is tail i."""

    part: int
    rows: int
    inputs: int
    outputs: int
    makes_logits: bool


def products(layout: ClusterLayout, rows: Labels) -> list[Product]:
    """The linear layers that a batch goes through: head, then projection and output of each tail in use.

    Args:
        layout: the partition.
        rows: [1 + n_clusters] rows of the shortlist and of each tail; the head sees them all.
    """
    d = layout.in_features
    found = [Product(0, int(rows.sum()), d, layout.head_size, True)]
    for tail, n in zip(layout, rows[1:].tolist(), strict=True):
        if n:
            found.append(Product(1 + tail.index, n, d, tail.projection_size, False))
            found.append(Product(1 + tail.index, n, tail.projection_size, tail.size, True))
    return found


class Limit:
    """The bare products as an implementation. Its results are none: it computes no softmax."""

    name = "limit"
    family: Family = "adaptive"

    def unsupported_reason(self, case: Case) -> str | None:
        """Products are counted for `forward` and `train` only: the other tasks' depend on the values."""
        if case.task not in ("forward", "train"):
            return f"the limit is defined for the tasks forward and train, not for {case.task}"
        return missing_device(case)

    def build(self, case: Case, inputs: Inputs) -> LimitRunner:
        """Buffers of the case's shapes."""
        return LimitRunner(case, inputs)


class LimitRunner:
    """The products of the loaded batch's shapes."""

    captured_for_each_batch = True
    """Its shapes are the batch's, so a CUDA graph of it holds for one batch only."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self._case = case
        dtype = product_dtype(torch.empty(0, dtype=torch_dtype(case), device=case.device))
        self._options: dict[str, Any] = {"dtype": dtype, "device": case.device}
        self._generator = torch.Generator(case.device).manual_seed(case.seed)
        self._weights: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._logits = torch.empty(0, **self._options)
        self._exponentials = torch.empty(_CHUNK_ELEMENTS, **self._options)
        self.load(inputs.hidden, inputs.target)

    def load(self, hidden: Array, target: Labels) -> None:
        """Take the batch's occupancy, and draw operands for it.

        Their numbers are normal, because products with infinities or denormals can be slower than the ones
        that are meant.
        """
        layout = self._case.layout
        rows = np.bincount(layout.parts(target), minlength=1 + layout.n_clusters)
        self._products = products(layout, rows)
        empty = self._logits[:0]
        largest = max(product.rows * row_pitch(product.outputs, empty) for product in self._products)
        # A GPU's allocator has memory at hand anyway, and a buffer kept would be missing to other workers.
        if self._logits.device.type == "cpu" and self._logits.numel() < largest:
            self._logits = torch.empty(0, **self._options)  # frees the smaller one first
            self._logits = torch.empty(largest, **self._options)
        self._inputs = [self._normal(product.rows, product.inputs) for product in self._products]
        self._input_gradients = [torch.empty_like(x) for x in self._inputs]
        for product in self._products:
            shape = (product.outputs, product.inputs)
            if shape not in self._weights:
                weight = self._normal(*shape).mul_(max(product.inputs, 1) ** -0.5)
                self._weights[shape] = weight, torch.empty_like(weight)
        self.run()  # touches every page

    def run(self) -> None:
        """Do the products once."""
        self._run(range(len(self._products)))

    def parts(self) -> list[Callable[[], None]]:
        """`run` in pieces: the head's products, then those of each tail that the batch uses."""
        positions = range(len(self._products))
        pieces = groupby(positions, key=lambda position: self._products[position].part)
        return [partial(self._run, list(piece)) for _, piece in pieces]

    def _run(self, positions: Sequence[int]) -> None:
        for position in positions:
            product, x = self._products[position], self._inputs[position]
            weight, grad_weight = self._weights[product.outputs, product.inputs]
            grad_x = self._input_gradients[position]
            block = max(1, product.rows)
            if has_faster_linear(x, product.outputs):
                block = max(MIN_BLOCK_ROWS, _TILE_BYTES // (product.outputs * x.element_size()))
            for start in range(0, product.rows, block):
                rows = slice(start, start + block)
                z = self._product(x[rows], weight)
                if product.makes_logits:
                    logits = z.as_strided((z.numel(),), (1,))  # as many numbers as there are logits
                    for chunk in torch.split(logits, _CHUNK_ELEMENTS):
                        torch.exp2(chunk, out=self._exponentials[: chunk.numel()])
                if self._case.task == "train":
                    add_product(grad_x[rows], z, weight, alpha=1.0, beta=0)
                    add_product(grad_weight, z.t(), x[rows], alpha=1.0, beta=int(start > 0))

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x times weight transposed: into the warm buffer, or a tile of its own from the faster library."""
        if has_faster_linear(x, weight.shape[0]):
            return linear(x, weight)
        if x.device.type != "cpu":
            return torch.mm(x, weight.t())
        pitch = row_pitch(weight.shape[0], x)
        z = self._logits[: x.shape[0] * pitch].view(x.shape[0], pitch)[:, : weight.shape[0]]
        return torch.mm(x, weight.t(), out=z)

    def results(self) -> Results:
        """Nothing."""
        return {}

    def mismatches(self) -> dict[str, str]:
        """Nothing to compare."""
        return {}

    def _normal(self, *shape: int) -> Tensor:
        made = torch.randn(shape, generator=self._generator, device=self._case.device)
        return made.to(self._options["dtype"])
