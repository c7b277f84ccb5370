"""Inputs for the kernels' tests, and the comparison with the eager backend in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zipfmax.backends import eager, triton
from zipfmax.clusters import ClusterLayout
from zipfmax.weights import TailWeights, Weights


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


def check(
    layout: ClusterLayout,
    weights: Weights,
    hidden: Tensor,
    target: Tensor,
    differentiate: Differentiate = loss_only,
    **options: object,
) -> None:
    """Compare with the definition in float64: within 2 (error of eager in this dtype + eps max|truth|)."""
    ours = run(triton, layout, weights, hidden, target, differentiate, **options)
    truth = run(
        eager, layout, mapped(weights, Tensor.double), hidden.double(), target, differentiate, **options
    )
    usual = run(eager, layout, weights, hidden, target, differentiate, **options)
    for name, expected in truth.items():
        within_contract(name, ours[name], expected, usual[name])


def within_contract(name: str, ours: Tensor, truth: Tensor, usual: Tensor) -> None:
    """The numeric contract on the largest and on the mean square error."""
    assert ours.shape == truth.shape, name
    assert torch.equal(ours.isnan(), truth.isnan()), f"{name}: NaN in other places than the definition's"
    finite = ~truth.isnan()
    eps = torch.finfo(ours.dtype).eps
    ours, truth, usual = (t.double()[finite] for t in (ours, truth, usual))
    if not truth.numel():
        return
    for norm in (lambda t: t.abs().max(), lambda t: t.square().mean().sqrt()):
        error, allowed = norm(ours - truth), 2 * (norm(usual - truth) + eps * truth.abs().max())
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"
