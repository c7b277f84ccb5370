"""The plan: its arithmetic, its bounds, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from zipfmax.cost_model import CostModel, PartCost
from zipfmax.planner import plan_cutoffs

MODEL = CostModel(
    head=PartCost(1e-4, 3e-11, 4e-10, 3e-10, 0.0, 0.0, 3e-7, (1e-10, 0.0), (5e-10,)),
    tail=PartCost(2e-4, 2e-11, 4e-10, 5e-10, 1e-9, 2e-10, 5e-7, (3e-10, 2e-10), (6e-10,)),
    full=PartCost(1e-4, 3e-11, 1e-10, 0.0, 0.0, 0.0, 2e-7, (0.0, 0.0), (7e-10,)),
)


def zipf(n_classes, exponent=1.0):
    return 1.0 / np.arange(1, n_classes + 1) ** exponent


def test_the_order_of_the_counts_does_not_matter():
    counts = np.random.default_rng(0).permutation(zipf(5000))
    shuffled = plan_cutoffs(counts, 256, 512, model=MODEL)
    assert shuffled.cutoffs == plan_cutoffs(zipf(5000), 256, 512, model=MODEL).cutoffs


def test_a_model_without_error_plans_the_cheapest_of_any_number_of_clusters():
    plan = plan_cutoffs(zipf(50_000), 4096, 512, model=MODEL)
    costs = {len(cutoffs): cost for cutoffs, cost in plan.by_clusters}
    assert sorted(costs) == [1, 2, 3, 4, 5, 6]
    assert plan.predicted_s == min(costs.values())
    for clusters, cost in costs.items():
        alone = plan_cutoffs(zipf(50_000), 4096, 512, clusters=clusters, model=MODEL)
        assert_allclose(alone.predicted_s, cost, rtol=1e-12)


@pytest.mark.parametrize(("error", "given_up"), [(0.04, 0.08), (0.5, 0.1)])
def test_times_within_the_models_error_are_not_told_apart(error, given_up):
    exact = plan_cutoffs(zipf(50_000), 512, 1024, model=MODEL)
    plan = plan_cutoffs(zipf(50_000), 512, 1024, model=replace(MODEL, error=error))
    limit = (1 + given_up) * exact.predicted_s
    assert exact.predicted_s < plan.predicted_s <= limit
    fewest = min(len(cutoffs) for cutoffs, cost in exact.by_clusters if cost <= limit)
    assert plan.layout.n_clusters == fewest
    assert plan.layout == plan.search.preferred(limit)


def scaled(model, factor):
    """A model whose head is that much cheaper or dearer."""
    return replace(model, head=PartCost.of(factor * model.head.coefficients()))


def test_a_priors_plan_stands_until_the_model_is_surer_than_both_errors():
    prior = replace(MODEL, error=0.05)
    standing = plan_cutoffs(zipf(50_000), 512, 1024, model=prior)

    def overruled(factor):
        model = replace(scaled(MODEL, factor), error=0.05)
        plan = plan_cutoffs(zipf(50_000), 512, 1024, model=model, prior=prior)
        assert plan_cutoffs(zipf(50_000), 512, 1024, model=model).cutoffs != standing.cutoffs
        excess = plan.search.cost_s(standing.layout) / plan.search.least_s() - 1
        assert (plan.cutoffs != standing.cutoffs) == (excess > 0.2)
        return excess > 0.2

    assert not overruled(0.5)
    assert not overruled(1.5)
    assert overruled(8.0)


def test_a_prior_plans_within_the_same_bounds():
    model = replace(MODEL, error=0.9)
    bounds = {"max_parameters": 4_000_000, "clusters": 2, "multiple": 100}
    plan = plan_cutoffs(zipf(50_000), 512, 1024, model=model, prior=MODEL, **bounds)
    assert plan.cutoffs == plan_cutoffs(zipf(50_000), 512, 1024, model=MODEL, **bounds).cutoffs
    assert plan.parameters <= 4_000_000


def test_a_tiny_vocabulary_is_told_to_use_full_softmax():
    assert plan_cutoffs(np.ones(50), 64, 32, model=MODEL).full_is_better
    assert not plan_cutoffs(zipf(100_000), 512, 2048, model=MODEL).full_is_better


def test_cutoffs_are_multiples_where_asked_and_of_a_tile_otherwise():
    for options, multiple in (({"multiple": 100}, 100), ({}, 16)):
        plan = plan_cutoffs(zipf(20_000), 512, 2048, model=MODEL, **options)
        assert all(cutoff % multiple == 0 for cutoff in plan.cutoffs)


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
        ([3, 2, 1], {"model": None, "device": "meta"}, "no cost model of a meta device is bundled"),
        ([3, 2, 1], {"clusters": 5}, r"at least 1 \(min_projection\) allow 3 of 5 clusters"),
        ([3, 2, 1], {"multiple": 3}, "no multiple of 3 lies below"),
        ([3, 2, 1], {"multiple": 0}, "positive integer"),
        ([3, 2, 1], {"max_parameters": 5}, "max_parameters = 5 allows no plan"),
        ([3, 2, 1], {"min_projection": 0}, "min_projection should be a positive integer, got 0"),
        ([3, 2, 1], {"div_value": 1e9}, "leaves nothing of in_features"),
        ([3, 2, 1], {"task": "predict"}, "unknown task 'predict'"),
        ([3, 2, 1], {"min_projection": 100}, r"at least 100 \(min_projection\) allow 0"),
        ([3, 2, 1], {"min_shortlist_share": 0.99}, "no cutoffs satisfy .* min_shortlist_share = 0.99"),
        ([3, 2, 1], {"min_shortlist_share": 1.5}, "at least 0 and below 1, got 1.5"),
        ([3, 2, 1], {"batch_size": 0}, "batch_size should be a positive integer, got 0"),
    ],
)
def test_what_allows_no_plan_is_said_in_one_line(counts, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        plan_cutoffs(counts, **{"in_features": 64, "batch_size": 32, "model": MODEL} | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn, "float32"])
def test_a_dtype_that_no_layer_trains_in_is_refused(dtype):
    with pytest.raises(TypeError, match=r"one of torch.float32, torch.bfloat16, .*, got"):
        plan_cutoffs([3, 2, 1], 64, 32, dtype=dtype, model=MODEL)
