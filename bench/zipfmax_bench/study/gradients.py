"""What a layer's gradients are off by in place: on a trained model and a batch of real text, by frequency.

An optimizer like Adam divides each weight's gradient by its size, so that a loss curve does not show a gradient
of the wrong scale, nor, in a short run, one that rare words are left out of. Here the gradient of each class's
weights is compared with that of the same function in wider arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax_bench.study.outputs import Adaptive, FullOutput, Output

ROWS = 512
"""Of a chunk of the reference of full softmax."""

Parts = list[tuple[int, Tensor]]
"""Gradients [rows, width] of the weights of classes that follow each other, each with the first class."""


def errors_by_band(output: Output, hidden: Tensor, target: Tensor, edges: list[int]) -> list[float | None]:
    """Relative error of the gradient of the classes' own weights, between each two edges.

    It is the norm of the difference over the norm of the reference's gradient; None where that is 0. The
    reference is float64 on a CPU and float32 on a GPU, of full softmax or of plain operations.

    Args:
        output: the layer, with the weights that it has learned; it is left without gradients.
        hidden: [N, d] hidden states.
        target: [N] labels.
        edges: [bands + 1] ranks, among them every cutoff of the layer.
    """
    output.zero_grad()
    output(hidden.detach().requires_grad_(), target).backward()
    with torch.no_grad():
        found = _of_classes(output)
        expected = _reference(output, hidden.detach(), target)
        errors = [_error(found, expected, start, stop) for start, stop in pairwise(edges)]
    output.zero_grad()
    return errors


def _of_classes(output: Output) -> Parts:
    if isinstance(output, FullOutput):
        return [(0, _gradient(output.weight))]
    layer = cast(nn.AdaptiveLogSoftmaxWithLoss, cast(Adaptive, output).layer)
    return list(_of_clusters(layer))


def _of_clusters(layer: nn.AdaptiveLogSoftmaxWithLoss) -> Iterator[tuple[int, Tensor]]:
    yield 0, _gradient(layer.head.weight)[: layer.shortlist_size]
    for start, tail in zip(layer.cutoffs, layer.tail.children(), strict=False):
        yield start, _gradient(list(tail.parameters())[1])


def _gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _reference(output: Output, hidden: Tensor, target: Tensor) -> Parts:
    dtype = torch.float64 if hidden.device.type == "cpu" else torch.float32
    with torch.autocast(hidden.device.type, enabled=False):
        if isinstance(output, FullOutput):
            return [(0, _full_gradient(output.weight.to(dtype), hidden.to(dtype), target))]
        theirs = cast(nn.AdaptiveLogSoftmaxWithLoss, cast(Adaptive, output).layer)
        sizes = [next(tail.parameters()).shape[0] for tail in theirs.tail.children()]
        layer = AdaptiveLogSoftmaxWithLoss(
            theirs.in_features,
            theirs.n_classes,
            theirs.cutoffs[:-1],
            theirs.div_value,
            device=hidden.device,
            dtype=dtype,
            projection_sizes=sizes,
            backend="eager",
        )
        layer.load_state_dict(theirs.state_dict())
        with torch.enable_grad():
            layer(hidden.to(dtype), target).loss.backward()
        return list(_of_clusters(layer))


def _full_gradient(weight: Tensor, hidden: Tensor, target: Tensor) -> Tensor:
    """(softmax - one-hot) of every row against the hidden states, [V, d], chunk by chunk of rows."""
    gradient = torch.zeros_like(weight)
    for at in range(0, len(target), ROWS):
        rows, labels = hidden[at : at + ROWS], target[at : at + ROWS]
        probabilities = F.softmax(rows @ weight.T, dim=1)
        probabilities[torch.arange(len(labels), device=labels.device), labels] -= 1
        gradient.addmm_(probabilities.T, rows, alpha=1 / len(target))
    return gradient


def _error(found: Parts, expected: Parts, start: int, stop: int) -> float | None:
    for (first, own), (_, theirs) in zip(found, expected, strict=True):
        if first <= start and stop <= first + len(own):
            rows = slice(start - first, stop - first)
            size = float(theirs[rows].double().norm())
            return float((own[rows].double() - theirs[rows].double()).norm()) / size if size else None
    return None
