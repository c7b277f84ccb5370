"""Sampled softmax against its formula in NumPy: values, the case of all classes, what its draws expect."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from zipfmax_reference.contestants import registry
from zipfmax_reference.contestants.sampled import (
    CANDIDATES,
    draw_candidates,
    log_expected_counts,
    sampled_softmax,
)
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import FULL_WEIGHT, draw_inputs
from zipfmax_reference.truth import definition

SHAPE = V, D, N = 41, 6, 9


@pytest.fixture
def batch():
    rng = np.random.default_rng(5)
    return rng.standard_normal((N, D)), rng.standard_normal((V, D)), rng.integers(V, size=N)


def by_formula(hidden, weight, target, candidates, log_counts):
    """Loss and gradients in NumPy, row by row and candidate by candidate."""
    loss, grad_hidden, grad_weight = 0.0, np.zeros_like(hidden), np.zeros_like(weight)
    for h, y, row in zip(hidden, target, range(len(target)), strict=True):
        classes = [y, *(c for c in candidates if c != y)]
        corrections = [0.0, *(q for c, q in zip(candidates, log_counts, strict=True) if c != y)]
        terms = np.exp(np.array([h @ weight[c] for c in classes]) - corrections)
        loss -= math.log(terms[0] / terms.sum()) / len(target)
        slopes = terms / terms.sum() / len(target)
        slopes[0] -= 1 / len(target)
        for c, slope in zip(classes, slopes, strict=True):
            grad_hidden[row] += slope * weight[c]
            grad_weight[c] += slope * h
    return loss, grad_hidden, grad_weight


def by_torch(hidden, weight, target, candidates, log_counts, dtype=torch.float64):
    h, w = (torch.from_numpy(values).to(dtype).requires_grad_() for values in (hidden, weight))
    y, drawn = torch.from_numpy(target), torch.from_numpy(np.asarray(candidates))
    loss = sampled_softmax(h, w, y, drawn, torch.from_numpy(np.asarray(log_counts)))
    loss.backward()
    assert w.grad.is_sparse
    return loss.item(), h.grad.numpy(), w.grad.to_dense().numpy()


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_and_gradients_are_those_of_the_formula(batch, dtype, rel):
    hidden, weight, target = batch
    rng = np.random.default_rng(6)
    candidates = rng.integers(V, size=25)  # some twice, and some that are labels
    assert len(set(candidates)) < 25
    assert set(candidates) & set(target)
    log_counts = rng.standard_normal(25)
    expected = by_formula(hidden, weight, target, candidates, log_counts)
    for value, truth in zip(
        by_torch(hidden, weight, target, candidates, log_counts, dtype), expected, strict=True
    ):
        assert value == pytest.approx(truth, rel=rel, abs=rel)


def test_with_every_class_as_a_candidate_it_is_full_softmax(batch):
    hidden, weight, target = batch
    truth = definition.full(weight, hidden, target)
    loss, grad_hidden, grad_weight = by_torch(hidden, weight, target, np.arange(V), np.zeros(V))
    assert loss == pytest.approx(float(truth["loss"]), rel=1e-12)
    assert grad_hidden == pytest.approx(truth["grad.input"], rel=1e-10, abs=1e-14)
    assert grad_weight == pytest.approx(truth["grad.full.weight"], rel=1e-10, abs=1e-14)


def test_a_drawn_label_changes_nothing(batch):
    """Accidental hits are removed: a row whose label was drawn is as if it had not been."""
    hidden, weight, target = batch
    hidden, target = hidden[:1], target[:1]
    others = np.array([c for c in range(0, V, 3) if c != target[0]])
    counts = np.zeros(len(others) + 2)
    without = by_torch(hidden, weight, target, others, counts[2:])
    with_hits = by_torch(hidden, weight, target, [target[0], *others, target[0]], counts)
    for one, other in zip(without, with_hits, strict=True):
        assert one == pytest.approx(other, rel=1e-12, abs=1e-15)


def test_the_expected_denominator_is_that_of_full_softmax(batch):
    """E[Z] = sum of exp(o): log(m q) is what makes it so, with no term for a label that was drawn."""
    hidden, weight, target = batch
    m = 7
    q = np.diff(np.log(np.arange(1, V + 2))) / math.log(V + 1)
    log_counts = log_expected_counts(torch.arange(V), V, m).double().numpy()
    for h, y in zip(hidden, target, strict=True):
        terms = np.exp(weight @ h)
        drawn = np.exp(weight @ h - log_counts)
        drawn[y] = 0
        assert terms[y] + m * (q @ drawn) == pytest.approx(terms.sum(), rel=1e-5)


def test_expected_counts_sum_to_the_number_of_draws():
    for n_classes in (2, 41, 267_735):
        counts = log_expected_counts(torch.arange(n_classes), n_classes, 100).double().exp()
        assert counts.sum().item() == pytest.approx(100, rel=1e-4)


def test_draws_follow_the_log_uniform_distribution():
    torch.manual_seed(0)
    n_draws = 200_000
    drawn = draw_candidates(V, n_draws, torch.device("cpu"))
    assert drawn.min() == 0
    assert drawn.max() == V - 1
    seen = torch.bincount(drawn, minlength=V).numpy()
    expected = log_expected_counts(torch.arange(V), V, n_draws).exp().numpy()
    assert (np.abs(seen - expected) < 5 * np.sqrt(expected)).all()


def test_rare_classes_of_a_large_vocabulary_are_all_drawn():
    """Drawn in float32, most of the last classes would never be."""
    torch.manual_seed(0)
    n_classes = 50_000_000
    drawn = draw_candidates(n_classes, 400_000, torch.device("cpu"))
    last = drawn[drawn > n_classes // 2]
    assert len(last.unique()) > 0.99 * len(last)
    assert torch.equal(
        torch.bincount(last % 8, minlength=8) > len(last) / 16, torch.ones(8, dtype=torch.bool)
    )


def test_the_contestant_draws_anew_at_every_step_and_says_that_it_is_inexact():
    case = Case(CANDIDATES + 999, 8, 33, (100,), dtype="float32")
    inputs = draw_inputs(case, full=True)
    sampled = registry.implementation("sampled")
    runner = sampled.build(case, inputs)
    assert runner.settings == "8,192 log-uniform candidates a step"
    torch.manual_seed(1)
    losses = []
    for _ in range(2):
        runner.run()
        losses.append(float(runner.results()["loss"]))
    assert losses[0] != losses[1]
    truth = float(definition.evaluate(case, inputs, "full")["loss"])
    assert losses[0] == pytest.approx(truth, rel=0.2)
    gradient = runner.results()[f"grad.{FULL_WEIGHT}"]
    assert gradient.shape == (case.n_classes, 8)
    assert 0 < (gradient != 0).any(axis=1).sum() < case.n_classes
    assert not sampled.gradients.exact
    assert "estimates" in sampled.gradients.why


def test_a_vocabulary_with_nothing_to_sample_from_is_refused():
    case = Case(CANDIDATES, 8, 33, (100,))
    sampled = registry.implementation("sampled")
    assert "8,192" in sampled.unsupported_reason(case)
    assert sampled.unsupported_reason(replace(case, n_classes=CANDIDATES + 1)) is None
    assert "only the loss" in sampled.unsupported_reason(
        replace(case, n_classes=CANDIDATES + 1, task="predict")
    )
