from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipfmax.clusters import ClusterLayout
from zipfmax.errors import UsageError
from zipfmax_reference.runs import grid
from zipfmax_reference.runs.case import DTYPES, PROTOCOL
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.runs.grid import TASKS
from zipfmax_reference.runs.labels import distribution
from zipfmax_reference.truth.definition import adaptive_log_prob

QUICK, FULL = grid.grid("quick"), grid.grid("full")


@pytest.mark.parametrize(("cases", "least"), [(QUICK, 150), (FULL, 4000)], ids=["quick", "full"])
def test_a_grid_has_its_size_and_no_case_twice(cases, least):
    assert len(cases) >= least
    assert len({case.id for case in cases}) == len(cases)


def test_the_quick_grid_has_every_combination_that_it_names():
    usual = [c for c in QUICK if c.task != PROTOCOL and c.n_classes <= 2000 and c.batch_size <= 2000]
    of_all = [c for c in usual if c.in_features <= 64]
    found = {(c.cutoffs, c.div_value, c.head_bias, c.dtype, c.task) for c in of_all}
    axes = zip(*found, strict=True)
    assert len(found) == np.prod([len(set(axis)) for axis in axes])
    assert {c.div_value for c in QUICK} >= {1.0, 2.0, 4.0, 1.5}
    assert {c.dtype for c in QUICK} == {"float32", "float64"}
    assert any(t.projection_size == 0 for c in QUICK for t in c.layout)
    assert {c.labels for c in QUICK} >= {"uniform", "zipf:1.0", "wordfreq:en"}


def test_the_quick_grid_meets_many_classes_and_rows_in_every_task():
    large = [c for c in QUICK if c.n_classes > 4096 and c.batch_size > 256]
    assert {c.task for c in large} == set(TASKS)
    aimed = next(c for c in large if c.task == "predict")
    inputs = draw_inputs(aimed)
    log_prob = adaptive_log_prob(aimed.layout, inputs.weights, inputs.hidden)
    found = set(log_prob.argmax(axis=1))
    first_and_last = {0, 5020, *(c + by for c in aimed.cutoffs for by in (-1, 0))}
    assert found >= first_and_last
    assert set(inputs.target) >= first_and_last


def test_the_quick_grid_calls_a_layer_with_a_head_bias_and_one_without_and_of_one_tail():
    called = {(c.head_bias, c.layout.n_clusters) for c in QUICK if c.task == PROTOCOL}
    assert called >= {(True, 2), (False, 1), (True, 3)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_full_grid_meets_every_awkward_thing_in_every_dtype(dtype):
    cases = [case for case in FULL if case.dtype == dtype]
    assert {c.task for c in cases} == {*TASKS, PROTOCOL}
    assert {c.layout.n_clusters for c in cases} >= {1, 3, 4, 5, 6}
    assert any(tail.size == 1 for c in cases for tail in c.layout)
    assert any(c.cutoffs[-1] == c.n_classes - 1 for c in cases)
    assert any(tail.projection_size == 0 for c in cases for tail in c.layout)
    assert {c.div_value for c in cases} >= {1.0, 1.5, 2.0, 4.0, 8.0}
    assert {c.in_features for c in cases} >= {1, 13, 31}
    assert {c.batch_size for c in cases} >= {0, 1, 33, 1000}
    hidden = {c.hidden for c in cases}
    assert hidden >= {"scale:0.001", "scale:10000", "strided", "expanded", "nan-rows", "inf-rows"}
    labels = Counter(c.labels.partition(":")[0] for c in cases)
    assert labels.keys() >= {"zipf", "uniform", "wordfreq", "only"}
    assert {(c.head_bias, c.div_value) for c in cases} == set(
        product((False, True), {c.div_value for c in cases})
    )


@pytest.mark.parametrize("cases", [QUICK, FULL], ids=["quick", "full"])
def test_a_grid_calls_one_module_many_times_in_each_dtype(cases):
    assert {c.dtype for c in cases if c.task == PROTOCOL} == {c.dtype for c in cases}


def test_a_grid_is_the_same_every_time():
    assert [c.id for c in grid.grid("full")] == [c.id for c in FULL]
    # Pinned: a cell's id in a report of last year still names it.
    assert FULL[0].id == PINNED


def test_an_unknown_grid_is_refused():
    with pytest.raises(UsageError, match="quick, full"):
        grid.grid("huge")


def test_cells_are_chosen_by_a_part_of_their_id_or_by_wildcards():
    case = QUICK[17]
    assert grid.matching(QUICK, case.id) == [case]
    assert {c.task for c in grid.matching(QUICK, "predict-*-float64-*")} == {"predict"}
    assert all("div1.5" in c.id for c in grid.matching(QUICK, "div1.5"))
    with pytest.raises(UsageError, match="no cell"):
        grid.matching(QUICK, "V7-")


@given(st.data())
def test_awkward_labels_are_where_they_say(data):
    n_classes = data.draw(st.integers(2, 200))
    cutoffs = tuple(sorted(data.draw(st.sets(st.integers(1, n_classes - 1), min_size=1, max_size=5))))
    layout = ClusterLayout(8, n_classes, cutoffs)

    def chosen(labels):
        return set(np.flatnonzero(distribution(labels, n_classes)))

    beside = chosen(grid.beside_cutoffs(layout))
    assert {*cutoffs, *(c - 1 for c in cutoffs), 0, n_classes - 1} <= beside
    assert chosen(grid.one_cluster(layout)) == set(range(cutoffs[-1], n_classes))
    assert chosen(grid.shortlist_alone(layout)) == set(range(cutoffs[0]))
    (label,) = chosen(grid.one_label(layout))
    assert layout.parts(np.array([label])) == 1


PINNED = "forward-V2-d2-N2-c1-div1-nobias-float64-cpu-only:1-1-seed0"


@pytest.mark.parametrize(
    ("pattern", "hint"), [("log_prib", "'log_prob'"), ("V60-flot32", "did you mean 'float32'"), ("zzz", None)]
)
def test_a_pattern_that_matches_nothing_is_told_what_is_near(pattern, hint):
    with pytest.raises(UsageError, match="no cell of this grid matches") as raised:
        grid.matching(QUICK, pattern)
    assert ("did you mean" in str(raised.value)) == (hint is not None)
    assert hint is None or hint in str(raised.value)
