"""The plan: its arithmetic, its bounds, and what it refuses."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.clusters import ClusterLayout
from zipfmax.cost_model import CostModel, PartCost
from zipfmax.planner import candidate_cutoffs, plan_cutoffs

MODEL = CostModel(
    head=PartCost(1e-4, 3e-11, 4e-10, 3e-10, 0.0, 0.0, 3e-7, (1e-10, 0.0), (5e-10,)),
    tail=PartCost(2e-4, 2e-11, 4e-10, 5e-10, 1e-9, 2e-10, 5e-7, (3e-10, 2e-10), (6e-10,)),
    full=PartCost(1e-4, 3e-11, 1e-10, 0.0, 0.0, 0.0, 2e-7, (0.0, 0.0), (7e-10,)),
)


def zipf(n_classes, exponent=1.0):
    return 1.0 / np.arange(1, n_classes + 1) ** exponent


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=3, max_size=11).filter(any), st.integers(1, 4), st.integers(1, 3000)
)
def test_the_plan_costs_no_more_than_any_other_partition(counts, clusters, batch_size):
    clusters = min(clusters, len(counts) - 1)
    plan = plan_cutoffs(counts, 64, batch_size, clusters=clusters, min_projection=0, model=MODEL)
    ranked = np.sort(np.array(counts, dtype=float))[::-1]
    for cutoffs in combinations(range(1, len(counts)), clusters):
        layout = ClusterLayout(64, len(counts), cutoffs)
        rows = layout.occupancy(ranked) * batch_size
        assert plan.predicted_s <= MODEL.adaptive_s(layout, rows.tolist()) * (1 + 1e-12)


def test_the_order_of_the_counts_does_not_matter():
    counts = np.random.default_rng(0).permutation(zipf(5000))
    shuffled = plan_cutoffs(counts, 256, 512, model=MODEL)
    assert shuffled.cutoffs == plan_cutoffs(zipf(5000), 256, 512, model=MODEL).cutoffs


def test_auto_takes_the_cheapest_number_of_clusters():
    plan = plan_cutoffs(zipf(50_000), 4096, 512, model=MODEL)
    costs = {len(cutoffs): cost for cutoffs, cost in plan.by_clusters}
    assert sorted(costs) == [1, 2, 3, 4, 5, 6]
    assert plan.predicted_s == min(costs.values())
    for clusters, cost in costs.items():
        alone = plan_cutoffs(zipf(50_000), 4096, 512, clusters=clusters, model=MODEL)
        assert_allclose(alone.predicted_s, cost, rtol=1e-12)


def test_no_neighbour_of_the_plan_is_cheaper():
    plan = plan_cutoffs(zipf(50_000), 512, 2048, model=MODEL)
    assert len(plan.neighbours) >= 2 * plan.layout.n_clusters - 1
    assert all(cost >= plan.predicted_s for _, cost in plan.neighbours)


def test_a_tiny_vocabulary_is_told_to_use_full_softmax():
    assert plan_cutoffs(np.ones(50), 64, 32, model=MODEL).full_is_better
    assert not plan_cutoffs(zipf(100_000), 512, 2048, model=MODEL).full_is_better


def test_a_parameter_budget_is_kept_and_costs_time():
    free = plan_cutoffs(zipf(20_000), 512, 2048, clusters=2, model=MODEL)
    budget = free.parameters - 1000
    bounded = plan_cutoffs(zipf(20_000), 512, 2048, clusters=2, max_parameters=budget, model=MODEL)
    assert bounded.parameters <= budget
    assert free.predicted_s < bounded.predicted_s < 1.5 * free.predicted_s


@pytest.mark.parametrize("share", [0.95, 0.7])
def test_a_parameter_budget_is_used_up_whatever_the_number_of_tails(share):
    free = plan_cutoffs(zipf(20_000), 512, 2048, model=MODEL)
    budget = int(share * free.parameters)
    bounded = plan_cutoffs(zipf(20_000), 512, 2048, max_parameters=budget, model=MODEL)
    assert 0.98 * budget < bounded.parameters <= budget


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6))
def test_no_layout_within_a_budget_is_both_smaller_and_faster_than_the_plan(seed):
    counts = np.sort(np.random.default_rng(seed).pareto(1.0, 12))[::-1]
    layouts = [ClusterLayout(64, 12, cutoffs) for cutoffs in combinations(range(1, 12), 2)]
    sizes = sorted(layout.parameter_count() for layout in layouts)
    budget = sizes[len(sizes) // 2]
    plan = plan_cutoffs(counts, 64, 2048, clusters=2, max_parameters=budget, model=MODEL)
    assert plan.parameters <= budget
    for layout in layouts:
        if layout.parameter_count() <= plan.parameters:
            rows = layout.occupancy(counts) * 2048
            assert plan.predicted_s <= MODEL.adaptive_s(layout, rows.tolist()) * (1 + 1e-12)


def test_a_share_that_only_the_last_cutoffs_keep_is_kept_within_a_budget_too():
    counts = zipf(60_000)
    share = 1 - 2.5 * counts[-1] / counts.sum()  # the last two candidates alone
    plan = plan_cutoffs(
        counts, 64, 512, clusters=1, min_shortlist_share=share, max_parameters=10**9, model=MODEL
    )
    assert plan.occupancy[0] >= share
    with pytest.raises(ValueError, match="max_parameters = 5 allows no plan"):
        plan_cutoffs(counts, 64, 512, clusters=1, min_shortlist_share=share, max_parameters=5, model=MODEL)


def test_cutoffs_are_multiples_where_asked():
    plan = plan_cutoffs(zipf(20_000), 512, 2048, multiple=128, model=MODEL)
    assert all(cutoff % 128 == 0 for cutoff in plan.cutoffs)


def test_the_shortlist_holds_the_share_that_is_asked_for():
    plan = plan_cutoffs(zipf(20_000), 512, 2048, min_shortlist_share=0.8, model=MODEL)
    assert plan.occupancy[0] >= 0.8
    assert plan_cutoffs(zipf(20_000), 512, 2048, model=MODEL).occupancy[0] < 0.8


def test_a_smallest_projection_bounds_the_clusters():
    plan = plan_cutoffs(zipf(20_000), 512, 2048, min_projection=32, model=MODEL)
    assert [len(cutoffs) for cutoffs, _ in plan.by_clusters] == [1, 2]  # projections 128 and 32


def test_unseen_labels_are_counted_and_rank_last():
    plan = plan_cutoffs([0, 5, 0, 9, 1, 0], 64, 32, clusters=1, model=MODEL)
    assert plan.unseen == 3
    assert_allclose(sum(plan.occupancy), 1.0)


def test_ten_million_classes_are_searched_over_a_grid_finer_than_a_hundredth_of_a_percent():
    candidates = candidate_cutoffs(10_000_000)
    assert candidates[-1] == 10_000_000
    assert (np.diff(candidates[:65_536]) == 1).all()
    assert (np.diff(candidates[:-1]) / candidates[:-2]).max() == 1.0  # from 1 to 2
    assert (np.diff(candidates[65_535:]) / candidates[65_535:-1]).max() < 1e-4


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([1, -2, 3], {}, "should not be negative, got -2"),
        ([1, float("nan"), 3], {}, "should be finite, got nan"),
        ([4], {}, "at least two classes"),
        ([0, 0, 0], {}, "all counts are 0"),
        ([[1, 2], [3, 4]], {}, "one dimension"),
        ([3, 2, 1], {"clusters": 0}, "number from 1 to 6"),
        ([3, 2, 1], {"clusters": 3}, "no cutoffs satisfy the bounds"),
        ([3, 2, 1], {"clusters": 5}, "min_projection = 1 allows 3 of 5 clusters"),
        ([3, 2, 1], {"multiple": 3}, "no multiple of 3 lies below"),
        ([3, 2, 1], {"multiple": 0}, "positive integer"),
        ([3, 2, 1], {"max_parameters": 5}, "max_parameters = 5 allows no plan"),
        ([3, 2, 1], {"min_projection": 100}, "min_projection = 100 allows 0"),
        ([3, 2, 1], {"min_shortlist_share": 0.99}, "no cutoffs satisfy .* min_shortlist_share = 0.99"),
        ([3, 2, 1], {"min_shortlist_share": 1.5}, "at least 0 and below 1, got 1.5"),
        ([3, 2, 1], {"batch_size": 0}, "batch_size should be a positive integer, got 0"),
    ],
)
def test_what_allows_no_plan_is_said_in_one_line(counts, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        plan_cutoffs(counts, **{"in_features": 64, "batch_size": 32, "model": MODEL} | options)
    assert "\n" not in str(caught.value)


def test_a_layer_from_counts_has_the_plan_and_keeps_the_users_labels():
    counts = np.random.default_rng(1).permutation(zipf(300))
    layer = AdaptiveLogSoftmaxWithLoss.from_counts(
        64, counts, 2048, clusters=1, plan={"model": MODEL}, reduction="sum"
    )
    plan = plan_cutoffs(counts, 64, 2048, clusters=1, model=MODEL)
    assert tuple(layer.cutoffs) == (*plan.cutoffs, 300)
    assert layer.reduction == "sum"
    frequent = counts.argsort()[::-1][: plan.cutoffs[0]]
    hidden = torch.randn(2, 64)
    expected = layer.head(hidden).log_softmax(1)[:, : len(frequent)]
    assert_allclose(
        layer.log_prob(hidden).detach()[:, frequent.copy()], expected.detach(), rtol=1e-5, atol=1e-6
    )


def test_a_layer_from_counts_that_descend_needs_no_ranks():
    layer = AdaptiveLogSoftmaxWithLoss.from_counts(64, zipf(300), 256, plan={"model": MODEL})
    assert layer.label_ranks is None
