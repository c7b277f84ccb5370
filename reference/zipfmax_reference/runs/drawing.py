"""What a case is computed on: weights, hidden states and labels, drawn from its seed.

Logits come out with the standard deviation that the case names, `logit_std`, or by default of about 2: then
no class is out of sight and no error hides behind a distribution that is nearly one-hot or nearly uniform.
The head of a layer as initialised has about 0.6, and trained language models about 4.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from zipfmax_reference.runs.arrays import Array, Inputs, Labels
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.labels import Stream, distribution, draw, generator

LOGIT_SCALE = 2.0
BIAS_SCALE = 0.5
BIAS_SHARE = BIAS_SCALE / LOGIT_SCALE
"""The head bias's standard deviation in a case with a `logit_std`, as a share of it."""
FULL_WEIGHT = "full.weight"
AIM = 30.0
"""Length that is added to an "aimed" row."""

_FULL_STREAM = 1_000_000  # keeps the full softmax's matrix clear of the adaptive layer's streams


def draw_inputs(case: Case, full: bool = False) -> Inputs:
    """Weights and batch of a case. The same case gives the same bits.

    Args:
        case: what to draw for.
        full: draw `full.weight` [n_classes, in_features] for full softmax too, which may be large.

    Raises:
        UsageError: labels that the case names cannot be had.
    """
    hidden, target = draw_batch(case, round=0)
    weights = draw_weights(case)
    if full:
        weights[FULL_WEIGHT] = draw_full_weight(case)
    return Inputs(hidden, target, weights)


def draw_batch(case: Case, round: int) -> tuple[Array, Labels]:
    """Hidden states [N, d] and labels [N], fresh for each round; round 0 is the one of `draw_inputs`."""
    shape = (case.batch_size, case.in_features)
    target = draw_target(case, round)
    rng = generator(case.seed, Stream.HIDDEN, round)
    kind, _, argument = case.hidden.partition(":")
    if kind == "expanded":
        return np.broadcast_to(_normal(rng, (1, case.in_features), 1.0, case.dtype), shape), target
    hidden = _normal(rng, shape, float(argument) if kind == "scale" else 1.0, case.dtype)
    if kind == "aimed":
        return _aimed(case, hidden, target), target
    if kind == "nan-rows":
        hidden[poisoned_rows(case), rng.integers(case.in_features)] = np.nan
    if kind == "inf-rows":
        hidden[poisoned_rows(case), rng.integers(case.in_features)] = np.inf
    return hidden, target


def _aimed(case: Case, hidden: Array, target: Labels) -> Array:
    """Each row, tilted by what adds most to the logits of its label and of that one's cluster."""
    weights, layout = draw_weights(case), case.layout
    towards = np.zeros(hidden.shape)
    for row, label in enumerate(target):
        tail = next((tail for tail in layout if tail.start <= label < tail.stop), None)
        towards[row] = weights["head.weight"][label if tail is None else tail.slot]
        if tail is not None:
            output = weights[f"tail.{tail.index}.1.weight"][label - tail.start]
            towards[row] += output @ weights[f"tail.{tail.index}.0.weight"]
    towards *= AIM / np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-9)
    return _held(hidden + towards, case.dtype)


def draw_target(case: Case, round: int) -> Labels:
    """The labels of `draw_batch`."""
    probabilities = distribution(case.labels, case.n_classes)
    return draw(probabilities, case.batch_size, generator(case.seed, Stream.LABELS, round))


def poisoned_rows(case: Case) -> slice:
    """The rows that "nan-rows" and "inf-rows" spoil: every fourth, so that each has sound neighbours."""
    return slice(1, None, 4)


def draw_weights(case: Case) -> dict[str, Array]:
    """The adaptive layer's weights by torch.nn's parameter names; no head.bias where the case has none."""
    layout, d = case.layout, case.in_features
    head_scale, bias_scale = _head_scales(case)
    weights = {"head.weight": _weight(case, 0, (layout.head_size, d), head_scale)}
    if case.head_bias:
        weights["head.bias"] = _normal(
            generator(case.seed, Stream.WEIGHTS, 1), (layout.head_size,), bias_scale, case.dtype
        )
    for tail in layout:
        stream = 2 + 2 * tail.index
        width = tail.projection_size
        weights[f"tail.{tail.index}.0.weight"] = _weight(case, stream, (width, d), 1.0)
        weights[f"tail.{tail.index}.1.weight"] = _weight(case, stream + 1, (tail.size, width), _scale(case))
    return weights


def draw_full_weight(case: Case) -> Array:
    """The matrix of full softmax, [n_classes, in_features]; it has no bias."""
    return _weight(case, _FULL_STREAM, (case.n_classes, case.in_features), _scale(case))


def full_weight(case: Case, inputs: Inputs) -> Array:
    """The matrix of full softmax: the inputs' own where they hold one, else drawn from the case's seed."""
    return inputs.weights[FULL_WEIGHT] if FULL_WEIGHT in inputs.weights else draw_full_weight(case)


def _scale(case: Case) -> float:
    """Standard deviation of a row's logits, for a hidden state of unit variance."""
    return LOGIT_SCALE if case.logit_std is None else case.logit_std


def _head_scales(case: Case) -> tuple[float, float]:
    """Standard deviations of W h and of the bias, whose squares add up to that of the logits."""
    if case.logit_std is None:
        return LOGIT_SCALE, BIAS_SCALE  # what cases without a logit_std have always been drawn with
    if not case.head_bias:
        return case.logit_std, 0.0
    return case.logit_std * (1 - BIAS_SHARE**2) ** 0.5, case.logit_std * BIAS_SHARE


def _weight(case: Case, stream: int, shape: tuple[int, int], scale: float) -> Array:
    """[out, in], scaled so that inputs of unit variance give outputs of variance scale**2."""
    rng = generator(case.seed, Stream.WEIGHTS, stream)
    return _normal(rng, shape, scale / max(shape[1], 1) ** 0.5, case.dtype)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float, dtype: str) -> Array:
    """Normal values that `dtype` holds exactly, kept in float64 for float64 and in float32 for the others."""
    if dtype == "float64":
        exact: npt.NDArray[np.float64] = rng.standard_normal(shape)
        exact *= scale
        return exact
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.float32(scale)
    return _held(values, dtype)


def _held(values: Array, dtype: str) -> Array:
    """Values rounded to what `dtype` holds, as `_normal` keeps them."""
    if dtype == "float64":
        return values.astype(np.float64)
    single = values.astype(np.float32)
    return (
        single if dtype == "float32" else torch.from_numpy(single).to(getattr(torch, dtype)).float().numpy()
    )
