"""Sampled softmax, which many recommenders train with: the label's logit against those of drawn classes.

A step draws `m` classes with replacement, shared by all rows, from the log-uniform distribution of classes
ordered by frequency (as TensorFlow's `log_uniform_candidate_sampler`):

    q(c) = log((c + 2) / (c + 1)) / log(V + 1),   c = 0, ..., V - 1.

With o = W h, the loss of a row with label y is -log(exp(o_y) / Z), where

    Z = exp(o_y) + sum over drawn c != y of exp(o_c - log(m q(c))).

Subtracting log(m q(c)) makes the expectation of Z the denominator of full softmax, and a drawn class that is
the label is left out (Jean et al. 2015; Blanc & Rendle 2018, equation 2). The loss is still biased, since the
logarithm of Z is not linear, and its gradients are noisy: a baseline for time, never for results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax_reference.contestants.fused import LossOnly
from zipfmax_reference.contestants.implementation import GradientSupport
from zipfmax_reference.contestants.settings import Loss, Setting
from zipfmax_reference.runs.case import Case

CANDIDATES = 8192
"""Classes that a step draws: what Jozefowicz et al. 2016 trained the One Billion Word models with."""


class Sampled(LossOnly):
    """Sampled softmax with log-uniform candidates; the gradient of its weight is a sparse tensor."""

    name = "sampled"
    gradients = GradientSupport(
        False, f"estimates the loss from {CANDIDATES:,} drawn classes of the vocabulary"
    )

    def needs(self, case: Case) -> str | None:
        """A vocabulary that is larger than what is drawn from it."""
        if case.n_classes <= CANDIDATES:
            return f"of {case.n_classes:,} classes there are none to leave out: it draws {CANDIDATES:,}"
        return None

    def settings(self, case: Case) -> Sequence[Setting]:
        """The number of candidates."""
        return [Setting(f"{CANDIDATES:,} log-uniform candidates a step", lambda: loss(CANDIDATES))]


def loss(n_candidates: int) -> Loss:
    """The loss with fresh candidates at every call, from torch's generator of the weight's device."""

    def sampled(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
        candidates = draw_candidates(len(weight), n_candidates, weight.device)
        log_counts = log_expected_counts(candidates, len(weight), n_candidates)
        return sampled_softmax(hidden, weight, target, candidates, log_counts)

    return sampled


def sampled_softmax(
    hidden: Tensor, weight: Tensor, target: Tensor, candidates: Tensor, log_counts: Tensor
) -> Tensor:
    """Mean loss [] over given candidates.

    With every class as a candidate once, and `log_counts` of 0, it is the loss of full softmax.

    Args:
        hidden: [N, d].
        weight: [V, d].
        target: labels [N].
        candidates: drawn classes [m]; a class may be there several times.
        log_counts: logarithm of how often each candidate is expected among the drawn, [m].
    """
    label_logits = (hidden * F.embedding(target, weight, sparse=True)).sum(dim=1, keepdim=True)
    logits = hidden @ F.embedding(candidates, weight, sparse=True).T - log_counts.to(hidden.dtype)
    logits = logits.masked_fill(candidates == target[:, None], float("-inf"))
    every = torch.cat([label_logits, logits], dim=1)
    return F.cross_entropy(every, torch.zeros_like(target))


def draw_candidates(n_classes: int, n_candidates: int, device: torch.device) -> Tensor:
    """Classes [n_candidates] from the log-uniform distribution, with replacement."""
    # In float64: between neighbouring float32 numbers lie several classes of a large vocabulary.
    uniform = torch.rand(n_candidates, dtype=torch.float64, device=device)
    return (uniform * math.log(n_classes + 1)).exp().long().sub_(1).clamp_(max=n_classes - 1)


def log_expected_counts(classes: Tensor, n_classes: int, n_candidates: int) -> Tensor:
    """log(m q(c)) of each class, in float32: how often m draws are expected to give it."""
    probability = torch.log1p(1 / (classes.float() + 1)) / math.log(n_classes + 1)
    return (n_candidates * probability).log()
