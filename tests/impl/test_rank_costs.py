"""The predicted cost of a vocabulary over ranks: its terms, and what they add up to."""

import pytest

from zipfmax.clusters import ClusterLayout
from zipfmax.cost_model import CostModel, PartCost
from zipfmax.rank_costs import PRODUCTS, CollectiveCost, predict, traffic

LAYOUT = ClusterLayout(64, 1000, (100, 400), 4.0)
ROWS = (60.0, 30.0, 10.0)


def part(call=0.0, product=1e-9):
    return PartCost(call, product, 0.0, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0), (0.0,))


def test_collectives_are_fitted_by_call_and_bytes():
    cost = CollectiveCost(2e-5, 1e-9)
    fitted = CollectiveCost.fit([(sent, cost.seconds(sent)) for sent in (1e3, 1e5, 1e7)])
    assert fitted.call_s == pytest.approx(2e-5, rel=1e-6)
    assert fitted.per_byte_s == pytest.approx(1e-9, rel=1e-6)
    falling = CollectiveCost.fit([(1e3, 2e-5), (1e5, 1e-5)])
    assert falling.per_byte_s == 0.0
    with pytest.raises(ValueError, match="two sizes"):
        CollectiveCost.fit([(1e3, 1.0), (1e3, 2.0)])


def test_the_bytes_of_a_step():
    gathered, hidden, projections = traffic(LAYOUT, ROWS, 4, 2)
    assert gathered == 2 * 4 * (100 + 40) * 3
    assert hidden == 1.5 * 100 * 64 * 2
    assert projections == 1.5 * (16 + 4) * 64 * 2
    assert traffic(LAYOUT, ROWS, 4, 2, "forward") == [gathered]


def test_a_step_over_ranks_is_its_parts_and_its_collectives():
    model = CostModel(part(), part(), part())
    found = predict(model, LAYOUT, ROWS, 2, CollectiveCost(1e-6, 0.0), 4)
    halved = (100 * 51 * 64 + 30 * (150 * 16 + 64 * 16) + 10 * (300 * 4 + 64 * 4)) * 1e-9
    assert found.computing_s == pytest.approx(PRODUCTS["train"] * halved)
    assert found.collectives_s == pytest.approx(3e-6)
    assert found.seconds == found.computing_s + found.collectives_s
    assert found.one_rank_s == model.adaptive_s(LAYOUT, ROWS)
    assert found.efficiency == pytest.approx(found.one_rank_s / (2 * found.seconds))
    assert found.parameter_bytes == 4 * (51 * 64 + 16 * (150 + 64) + 4 * (300 + 64))


@pytest.mark.parametrize("world", [1, 103])
def test_ranks_that_cannot_share_are_refused(world):
    model = CostModel(part(), part(), part())
    with pytest.raises(ValueError, match="2 to 102 ranks"):
        predict(model, LAYOUT, ROWS, world, CollectiveCost(0.0, 0.0), 4)
