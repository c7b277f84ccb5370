"""The cases that a choice of axes spans."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipfmax.clusters import ClusterLayout
from zipfmax.errors import UsageError
from zipfmax_bench import presets
from zipfmax_bench.prediction import product_flops


def test_the_quick_preset_spans_what_it_promises():
    cases = presets.cases(presets.axes("quick"))
    assert len({case.id for case in cases}) == len(cases) == 2 * 3 * 2 + 2 + 2
    assert {case.n_classes for case in cases} == {10_000, 50_000, 267_735}
    assert {case.labels for case in cases} == {"zipf:0.5", "zipf:1.0", "zipf:1.5"}
    assert {case.cutoffs for case in cases if case.n_classes == 267_735} == {(20_000, 60_000)}
    sizes = {(c.n_classes, c.batch_size) for c in cases if c.labels == "zipf:1.0" and c.task == "train"}
    assert {batch for n_classes, batch in sizes if n_classes == 50_000} == {256, 512, 1024}


def test_a_presets_smaller_sweeps_follow_what_is_chosen_and_yield_where_it_is_their_own_axis():
    def batches(**chosen):
        return {case.batch_size for case in presets.cases(presets.axes("quick", **chosen))}

    assert batches(dtypes=("bfloat16",)) == {256, 512, 1024}
    assert {c.dtype for c in presets.cases(presets.axes("quick", dtypes=("bfloat16",)))} == {"bfloat16"}
    assert batches(batch=(32,)) == {32}
    assert batches(labels=("uniform",)) == {256}


def test_cases_that_share_weights_follow_each_other_cheapest_first():
    cases = presets.cases(presets.axes("quick"))
    shapes = [(case.n_classes, case.batch_size, case.task) for case in cases]
    assert shapes == sorted(shapes, key=shapes.index)
    for shape in set(shapes):
        costs = [product_flops("adaptive", c) for c in cases if (c.n_classes, c.batch_size, c.task) == shape]
        assert costs == sorted(costs)


def test_a_partition_goes_with_each_vocabulary_it_fits_and_the_others_get_a_customary_one():
    axes = presets.axes(
        "quick", classes=(100, 5000), cutoffs=((1000, 2000),), labels=("uniform",), tasks=("train",)
    )
    assert [(c.n_classes, c.cutoffs) for c in presets.cases(axes)] == [(100, (7, 25)), (5000, (1000, 2000))]


def test_vocabularies_of_ones_own_do_not_inherit_the_presets_partitions():
    axes = presets.axes("wikitext103", classes=(300_000,))
    assert {c.cutoffs for c in presets.cases(axes)} == {presets.customary_cutoffs(300_000)}


def test_the_spread_of_logits_is_an_axis_that_the_gpu_preset_takes_at_1_and_4():
    assert {case.logit_std for case in presets.cases(presets.axes("gpu"))} == {1.0, 4.0}
    assert {case.logit_std for case in presets.cases(presets.axes("gpu", logit_std=(0.5,)))} == {0.5}
    assert {case.logit_std for case in presets.cases(presets.axes("quick"))} == {None}
    with pytest.raises(UsageError, match="logit_std should be a positive number, got 0"):
        presets.cases(presets.axes("quick", logit_std=(0.0,)))


def test_a_label_given_twice_is_measured_once():
    axes = presets.axes("quick", classes=(100,), labels=("uniform", "uniform"), tasks=("train",))
    assert len(presets.cases(axes)) == 1


@given(st.integers(3, 2_000_000))
def test_customary_cutoffs_partition_every_vocabulary(n_classes):
    ClusterLayout(8, n_classes, presets.customary_cutoffs(n_classes))


def test_two_classes_cannot_be_partitioned_in_three():
    with pytest.raises(UsageError, match="at least 3"):
        presets.customary_cutoffs(2)
