"""Inputs for the kernels' tests, and the comparison with the eager backend in float64."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor

from zipfmax.backends import eager, triton
from zipfmax.clusters import ClusterLayout
from zipfmax.weights import TailWeights, Weights

T = TypeVar("T")


def shapes(chosen: list[T], further: list[T]) -> list[T]:
    """What a test runs over: under the interpreter, which is slow, the further ones only if asked for."""
    every = torch.cuda.is_available() or os.environ.get("ZIPFMAX_KERNEL_TESTS") == "all"
    return chosen + further if every else chosen


def crossed(chosen: list[T], *axes: Sequence[object]) -> list[T]:
    """The same for points of a grid: under the interpreter the chosen ones, else all."""
    return shapes(chosen, [point for point in product(*axes) if point not in chosen])


def draw(
    layout: ClusterLayout,
    n_rows: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    biased: bool = False,
    seed: int = 0,
) -> tuple[Weights, Tensor, Tensor]:
    """Weights, hidden states and targets of the layout."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

    d = layout.in_features
    tails = tuple(
        TailWeights(
            normal(c.projection_size, d) / d**0.5,
            normal(c.size, c.projection_size) / max(1, c.projection_size) ** 0.5,
            normal(c.projection_size) if biased else None,
            normal(c.size) if biased else None,
        )
        for c in layout
    )
    weights = Weights(
        normal(layout.head_size, d) / d**0.5, normal(layout.head_size) if biased else None, tails
    )
    target = torch.randint(0, layout.n_classes, (n_rows,), generator=generator).to(device)
    return weights, normal(n_rows, d), target


def mapped(weights: Weights, function: Callable[[Tensor], Tensor]) -> Weights:
    """The weights with a function applied to each tensor."""

    def each(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else function(tensor)

    return Weights(
        function(weights.head),
        each(weights.head_bias),
        tuple(TailWeights(*(each(t) for t in tail)) for tail in weights.tails),
    )


Differentiate = Callable[[Tensor, Tensor], Tensor]


def loss_only(output: Tensor, loss: Tensor) -> Tensor:
    return loss.sum()


def run(
    backend: object,
    layout: ClusterLayout,
    weights: Weights,
    hidden: Tensor,
    target: Tensor,
    differentiate: Differentiate = loss_only,
    **options: object,
) -> dict[str, Tensor]:
    """Output, loss and every gradient; zeros where a gradient was left unset."""
    weights = mapped(weights, lambda t: t.detach().clone().requires_grad_())
    hidden = hidden.detach().clone().requires_grad_()
    output, loss = backend.nll(layout, weights, hidden, target, **options)  # type: ignore[attr-defined]
    differentiate(output, loss).backward()
    found = {"output": output.detach(), "loss": loss.detach()}
    for i, leaf in enumerate([hidden, *weights.tensors()]):
        found[f"gradient {i} {tuple(leaf.shape)}"] = (
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        )
    return found


EVALUATIONS = 6
"""Of eager on inputs moved by a rounding, before an error beyond its own counts."""


def check(
    layout: ClusterLayout,
    weights: Weights,
    hidden: Tensor,
    target: Tensor,
    differentiate: Differentiate = loss_only,
    **options: object,
) -> None:
    """Compare with the definition in float64: within 2 (error of eager in this dtype + eps max|truth|).

    One evaluation of eager may be lucky, above all in a sum of few terms. What does not hold at first is held
    against the largest of several errors, on inputs moved by up to one unit in the last place.
    """
    ours = run(triton, layout, weights, hidden, target, differentiate, **options)
    exact = mapped(weights, Tensor.double), hidden.double()
    truth = run(eager, layout, *exact, target, differentiate, **options)
    usual = [run(eager, layout, weights, hidden, target, differentiate, **options)]
    for name, expected in truth.items():
        while fault := beyond_contract(ours[name], expected, [each[name] for each in usual]):
            assert len(usual) <= EVALUATIONS, f"{name}: {fault}"
            moved = moved_by_a_rounding(weights, hidden, seed=len(usual))
            usual.append(run(eager, layout, *moved, target, differentiate, **options))


def moved_by_a_rounding(weights: Weights, hidden: Tensor, seed: int) -> tuple[Weights, Tensor]:
    """Both with each value moved by up to one unit in its last place, at random."""
    generator = torch.Generator(hidden.device).manual_seed(seed)

    def moved(values: Tensor) -> Tensor:
        drawn = torch.rand(values.shape, generator=generator, device=values.device, dtype=torch.float64)
        return (values.double() * (1 + torch.finfo(values.dtype).eps * (2 * drawn - 1))).to(values.dtype)

    return mapped(weights, moved), moved(hidden)


def within_contract(name: str, ours: Tensor, truth: Tensor, usual: Tensor) -> None:
    """The numeric contract on the largest and on the mean square error."""
    fault = beyond_contract(ours, truth, [usual])
    assert fault is None, f"{name}: {fault}"


def beyond_contract(ours: Tensor, truth: Tensor, usual: Sequence[Tensor]) -> str | None:
    """What breaks the numeric contract, or None; `usual` are results whose largest error is the measure."""
    if ours.shape != truth.shape:
        return f"shape {tuple(ours.shape)} in place of {tuple(truth.shape)}"
    if not torch.equal(ours.isnan(), truth.isnan()):
        return "NaN in other places than the definition's"
    finite = ~truth.isnan()
    eps = torch.finfo(ours.dtype).eps
    ours, truth = ours.double()[finite], truth.double()[finite]
    if not truth.numel():
        return None
    for norm in (lambda t: t.abs().max(), lambda t: t.square().mean().sqrt()):
        error = norm(ours - truth)
        allowed = 2 * (max(norm(t.double()[finite] - truth) for t in usual) + eps * truth.abs().max())
        if not error <= allowed:
            return f"error {error:.2e}, allowed {allowed:.2e}"
    return None
