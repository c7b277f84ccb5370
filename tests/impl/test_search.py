"""The search over the grid, against every partition of it."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from zipfmax.cost_model import CostModel, PartCost
from zipfmax.search import Search, grid, unit_of

MODEL = CostModel(
    head=PartCost(1e-4, 3e-11, 4e-10, 3e-10, 0.0, 0.0, 3e-7, (1e-10, 0.0), (5e-10,)),
    tail=PartCost(2e-4, 2e-11, 4e-10, 5e-10, 1e-9, 2e-10, 5e-7, (3e-10, 2e-10), (6e-10,)),
    full=PartCost(1e-4, 3e-11, 1e-10, 0.0, 0.0, 0.0, 2e-7, (0.0, 0.0), (7e-10,)),
)


def test_the_grid_is_powers_of_two_and_the_middles_between_them():
    assert grid(50, 1).tolist() == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 50]
    assert grid(700, 100).tolist() == [100, 200, 300, 400, 600, 700]
    ranks = grid(100_000_000, 16)
    assert (ranks[:-1] % 16 == 0).all()
    assert (ranks[2:-1] / ranks[1:-2]).max() == 1.5


def test_the_unit_is_a_tile_unless_classes_are_few():
    assert [unit_of(1024), unit_of(1023), unit_of(5000, 7)] == [16, 1, 7]


@st.composite
def searches(draw):
    """Few classes with falling counts, any bounds, and tails of one to four projection sizes."""
    counts = draw(st.lists(st.integers(0, 50), min_size=3, max_size=24).filter(any))
    ranked = np.sort(np.array(counts, dtype=float))[::-1]
    return Search(
        probabilities=ranked / ranked.sum(),
        in_features=64,
        batch_size=draw(st.integers(1, 3000)),
        div_value=4.0,
        widths=[16, 4, 1, 0][: draw(st.integers(1, 4))],
        model=MODEL,
        unit=draw(st.integers(1, 2)),
        min_shortlist_share=draw(st.sampled_from([0.0, 0.5, 0.9])),
        max_parameters=draw(st.sampled_from([np.inf, 2500, 1500])),
        n_tails=draw(st.sampled_from([None, None, 2])),
    )


def every_layout(search):
    """All layouts of the grid that keep the bounds, with their predicted seconds, counted one by one."""
    ranks = grid(len(search.probabilities), search.unit)[:-1].tolist()
    if not any(search.probabilities[:rank].sum() >= search.min_shortlist_share for rank in ranks):
        ranks = [rank for rank in range(1, len(search.probabilities)) if rank % search.unit == 0]
        holding = [rank for rank in ranks if search.probabilities[:rank].sum() >= search.min_shortlist_share]
        ranks = sorted({*grid(len(search.probabilities), search.unit)[:-1].tolist(), *holding[:1]})
    found = {}
    for n_tails in range(1, 1 + len(search.widths)):
        for cutoffs in combinations(ranks, n_tails):
            layout = search.layout(cutoffs)
            share = search.probabilities[: cutoffs[0]].sum()
            if (
                share >= search.min_shortlist_share
                and layout.parameter_count() <= search.max_parameters
                and search.n_tails in (None, n_tails)
            ):
                found[cutoffs] = search.cost_s(layout)
    return found


@settings(max_examples=40)
@given(searches(), st.floats(1.0, 1.5))
def test_the_search_finds_what_counting_every_partition_does(search, factor):
    layouts = every_layout(search)
    assert search.least_s() == pytest.approx(min(layouts.values(), default=np.inf), rel=1e-9)
    if not layouts:
        return
    limit_s = factor * min(layouts.values())
    for n_tails in search.numbers_of_tails:
        mine = {cutoffs: cost for cutoffs, cost in layouts.items() if len(cutoffs) == n_tails}
        cheapest = search.cheapest(n_tails)
        assert (cheapest is None) == (not mine)
        if cheapest is not None:
            assert search.cost_s(cheapest) == pytest.approx(min(mine.values()), rel=1e-9)
        cutoffs, seconds = search.partitions(n_tails, limit_s)
        near = {one for one, cost in mine.items() if cost <= limit_s * (1 + 1e-9)}
        assert set(map(tuple, cutoffs.tolist())) == near
        assert_allclose(seconds, [mine[tuple(one)] for one in cutoffs.tolist()], rtol=1e-9)
    near = [cutoffs for cutoffs, cost in layouts.items() if cost <= limit_s * (1 + 1e-9)]
    fewest = [cutoffs for cutoffs in near if len(cutoffs) == min(map(len, near))]
    powers = {search.unit << power for power in range(12)}
    n_round = {cutoffs: sum(cutoff in powers for cutoff in cutoffs) for cutoffs in fewest}
    roundest = [cutoffs for cutoffs in fewest if n_round[cutoffs] == max(n_round.values())]
    assert search.preferred(limit_s).cutoffs == max(roundest)


def test_the_curve_is_the_least_time_of_each_first_cutoff():
    counts = 1.0 / np.arange(1, 41)
    search = Search(counts / counts.sum(), 64, 500, 4.0, [16, 4], MODEL, unit=1)
    layouts = every_layout(search)
    for n_tails, points in search.curve().items():
        for first, seconds in points:
            own = [
                cost for cutoffs, cost in layouts.items() if (len(cutoffs), cutoffs[0]) == (n_tails, first)
            ]
            assert seconds == pytest.approx(min(own))
    assert set(search.curve()) == {1, 2}


def test_a_million_classes_within_a_bound_on_weights_are_searched():
    counts = 1.0 / np.arange(1, 1_000_001)
    search = Search(counts / counts.sum(), 4096, 16_384, 4.0, [1024, 256, 64, 16, 4, 1], MODEL, unit=16)
    free = search.cheapest(4)
    bound = int(0.8 * free.parameter_count())
    bounded = Search(
        search.probabilities, 4096, 16_384, 4.0, search.widths, MODEL, unit=16, max_parameters=bound
    )
    found = bounded.cheapest(4)
    assert found.parameter_count() <= bound
    assert bounded.cost_s(found) >= search.cost_s(free)
