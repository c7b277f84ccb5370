"""The dynamic program against exhaustive search, and the monotonicity that it rests on."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from zipfmax.partition import ClusterCost, best_partitions

seconds = st.floats(0, 10).map(lambda value: round(value, 6))
surcharges = st.lists(st.tuples(st.floats(-20, 20), seconds), max_size=2).map(tuple)
tail_costs = st.lists(
    st.builds(ClusterCost, *[seconds] * 5, surcharges, surcharges, surcharges),
    min_size=1,
    max_size=4,
)


@st.composite
def problems(draw):
    """Candidates with gaps, falling counts with ties and zeros, and any non-negative costs."""
    gaps = draw(st.lists(st.integers(1, 5), min_size=2, max_size=10))
    rows_a_class = sorted(draw(st.lists(seconds, min_size=len(gaps), max_size=len(gaps))), reverse=True)
    rows = np.multiply(gaps, rows_a_class)
    head = draw(st.lists(seconds, min_size=len(gaps), max_size=len(gaps)))
    return np.cumsum(gaps), np.cumsum(rows), np.array(head), draw(seconds), draw(tail_costs)


def cost_of(chosen, candidates, rows_below, head_cost, slot_cost, tails):
    ends = (*chosen, len(candidates) - 1)
    cost = head_cost[chosen[0]] + slot_cost * len(chosen)
    for tail, start, stop in zip(tails, ends, ends[1:], strict=False):
        classes = float(candidates[stop] - candidates[start])
        rows = rows_below[stop] - rows_below[start]
        cost += tail.constant + tail.per_class * classes + (tail.per_row + tail.per_logit * classes) * rows
        cost += tail.per_root_logit * (classes * rows) ** 0.5
        cost += sum(price * max(0.0, classes - beyond) for beyond, price in tail.far_classes)
        cost += sum(price * rows * max(0.0, classes - beyond) for beyond, price in tail.long_rows)
        cost += sum(price * max(0.0, classes * rows - beyond) for beyond, price in tail.far_logits)
    return cost


@given(problems())
def test_the_program_finds_the_cost_of_exhaustive_search_for_every_number_of_tails(problem):
    candidates, _, _, _, tails = problem
    found = best_partitions(*problem)
    assert len(found) == min(len(tails), len(candidates) - 1)
    for n_tails, partition in enumerate(found, start=1):
        choices = combinations(range(len(candidates) - 1), n_tails)
        cheapest = min(cost_of(chosen, *problem) for chosen in choices)
        assert_allclose(partition.cost_s, cheapest, rtol=1e-12, atol=1e-12)


@given(problems())
def test_costs_of_falling_counts_satisfy_the_quadrangle_inequality(problem):
    candidates, rows_below, _, _, tails = problem

    def cost(tail, start, stop):
        classes = np.array(float(candidates[stop] - candidates[start]))
        return float(tail(classes, rows_below[stop] - rows_below[start]))

    for a, b, c, d in combinations(range(len(candidates)), 4):
        for tail in tails:
            crossed, nested = cost(tail, a, c) + cost(tail, b, d), cost(tail, a, d) + cost(tail, b, c)
            assert crossed <= nested + 1e-9 * (1 + nested)


@given(problems())
def test_the_cutoffs_that_are_returned_cost_what_is_said(problem):
    candidates = problem[0].tolist()
    for partition in best_partitions(*problem):
        chosen = tuple(candidates.index(cutoff) for cutoff in partition.cutoffs)
        assert list(chosen) == sorted(set(chosen))
        assert_allclose(partition.cost_s, cost_of(chosen, *problem), rtol=1e-12, atol=1e-12)


def test_a_forbidden_shortlist_is_never_taken():
    candidates, rows = np.arange(1, 9), np.linspace(1, 2, 8)
    head = np.where(np.arange(8) == 4, 100.0, np.inf)
    partitions = best_partitions(candidates, rows, head, 0.0, [ClusterCost(0, 1, 1, 1)] * 3)
    assert [partition.cutoffs[0] for partition in partitions] == [5, 5, 5]


def test_one_candidate_is_refused():
    with pytest.raises(ValueError, match="at least one candidate"):
        best_partitions(np.array([7]), np.array([1.0]), np.array([0.0]), 0.0, [ClusterCost(0, 0, 0, 0)])
