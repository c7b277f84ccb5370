"""Head and tails are timed apart, exactly where the clock is exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zipfmax.clusters import ClusterLayout
from zipfmax_bench.limit import Limit
from zipfmax_bench.split import LEAST_PASSES, MOST_PASSES, keep_tail, split
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_batch, draw_inputs

CASE = Case(300, 16, 64, (20, 100, 200), labels="uniform", task="train")
HEAD_S, ROW_S, SHARED_S = 5.0, (0.25, 0.5, 2.0), 0.125
"""A head that costs the same however the labels fall, rows of each tail, and what two tails save together."""


class Metered:
    """A runner that knows what its loaded batch costs; each pass costs a little less than the one before."""

    def __init__(self, case: Case) -> None:
        self.layout, self.loads = case.layout, 0

    def load(self, hidden: np.ndarray, target: np.ndarray) -> None:
        rows = np.bincount(self.layout.parts(target), minlength=1 + self.layout.n_clusters)[1:]
        self.seconds = HEAD_S + float(rows @ ROW_S) - SHARED_S * (np.count_nonzero(rows) > 1)
        self.target, self.loads = target, self.loads + 1

    def run(self) -> None:
        raise AssertionError("the timer below runs nothing")


def metered_split(case: Case, budget_s: float = 0.0, noise: float = 0.0):
    runner = Metered(case)
    factors = iter(1 + noise * np.random.default_rng(0).random(1000))

    def timer(run):
        return runner.seconds * next(factors), 0.0

    return split(runner, case, timer, budget_s), runner


def test_each_part_is_what_it_adds_and_the_whole_is_measured_beside():
    found, runner = metered_split(CASE)
    target = draw_batch(CASE, 0)[1]
    rows = np.bincount(CASE.layout.parts(target), minlength=4)
    assert found.rows == tuple(rows)
    assert found.parts_s == pytest.approx((HEAD_S, *(rows[1:] * ROW_S)))
    assert found.whole_s == pytest.approx(sum(found.parts_s) - SHARED_S)
    assert np.array_equal(runner.target, target), "the batch itself is loaded afterwards"


def test_a_tail_without_rows_costs_nothing_and_is_not_run():
    case = Case(300, 16, 5, (20, 100, 299), labels="zipf:3", task="train")
    found, runner = metered_split(case)
    assert found.rows[1:] == (0, 0, 0)
    assert found.parts_s == (HEAD_S, 0.0, 0.0, 0.0)
    assert runner.loads == 1 + 2 * LEAST_PASSES  # at first; then the head's batch and the whole in each pass


def test_passes_go_on_within_the_budget_and_end_at_the_most():
    assert metered_split(CASE)[0].passes == LEAST_PASSES
    assert metered_split(CASE, budget_s=60.0)[0].passes == MOST_PASSES


def test_the_fastest_pass_counts():
    noisy = metered_split(CASE, budget_s=60.0, noise=0.2)[0]
    assert HEAD_S <= noisy.parts_s[0] < 1.05 * HEAD_S


def test_where_the_samples_were_replays_every_part_is_captured_anew():
    runner, captured = Metered(CASE), []

    def capture():
        captured.append(runner.seconds)
        return lambda: captured[-1]

    found = split(runner, CASE, lambda run: (run(), 0.0), 0.0, capture)
    assert found.parts_s[0] == HEAD_S
    assert len(captured) == LEAST_PASSES * 5  # the head, three tails, the whole


@given(
    cutoffs=st.sets(st.integers(1, 49), min_size=1, max_size=5),
    labels=st.lists(st.integers(0, 49), min_size=1, max_size=40),
)
@settings(deadline=None)
def test_kept_labels_are_the_tail_s_own_and_the_others_move_into_the_shortlist(cutoffs, labels):
    layout, target = ClusterLayout(8, 50, tuple(sorted(cutoffs))), np.array(labels)
    before = layout.parts(target)
    for tail in (None, *range(layout.n_clusters)):
        kept = keep_tail(layout, target, tail)
        stay = (before == 0) if tail is None else (before == 0) | (before == 1 + tail)
        assert np.array_equal(kept[stay], target[stay])
        assert np.all(layout.parts(kept)[~stay] == 0)


def test_the_limit_s_parts_are_its_own_products_and_sum_to_all_of_them(monkeypatch):
    runner = Limit().build(CASE, draw_inputs(CASE))
    done = []
    monkeypatch.setattr(runner, "_run", lambda positions: done.extend(positions))

    def timer(run):
        done.clear()
        run()
        return float(sum(runner._products[position].outputs for position in done)), 0.0

    found = split(runner, CASE, timer, 0.0)
    layout = CASE.layout
    expected = [layout.head_size, *(tail.projection_size + tail.size for tail in layout)]
    assert found.parts_s == tuple(expected)
    assert found.whole_s == sum(expected)
