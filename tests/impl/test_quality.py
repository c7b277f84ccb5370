import json

import numpy as np
import pytest

from zipfmax import quality
from zipfmax.clusters import ClusterLayout
from zipfmax.cost_model import CostModel, PartCost
from zipfmax.planner import plan_cutoffs
from zipfmax.quality import Evidence, Measured, Quality

COUNTS = 1 / np.arange(1, 20_001)
MODEL = CostModel(
    head=PartCost(1e-4, 3e-11, 4e-10, 3e-10, 0.0, 0.0, 3e-7, (1e-10, 0.0), (5e-10,)),
    tail=PartCost(2e-6, 2e-11, 4e-10, 5e-12, 1e-9, 2e-10, 5e-9, (3e-10, 2e-10), (6e-10,)),
    full=PartCost(1e-4, 3e-11, 1e-10, 0.0, 0.0, 0.0, 2e-7, (0.0, 0.0), (7e-10,)),
)


def measured(least, change):
    return Measured(f"least={least}", (128, least), 0.8, change, change - 0.005, change + 0.005)


STUDY = Evidence(
    "a GPU", "zipfmax study", "tokens:x", 20_000, 512, 800, (measured(8, 0.04), measured(32, 0.01))
)


@pytest.fixture
def studied(monkeypatch):
    """Studies that ask for tails of 32 and a shortlist of 0.6."""
    found = Quality(0.02, 32, 0.6, (STUDY,))
    monkeypatch.setattr(quality, "bundled", lambda: found)
    return found


def plan(**options):
    return plan_cutoffs(COUNTS, 512, 2048, model=MODEL, **options)


def test_a_plan_keeps_the_studys_bounds_unless_told_otherwise(studied):
    found = plan()
    assert min(found.layout.projection_sizes) >= 32
    assert found.occupancy[0] >= 0.6
    free = plan(min_projection=1, min_shortlist_share=0.0)
    assert min(free.layout.projection_sizes) < 32
    assert free.occupancy[0] < 0.6


def test_the_bounds_give_way_to_a_number_of_clusters_and_to_a_budget(studied):
    assert len(plan(clusters=4).cutoffs) == 4
    least = plan(min_projection=1, min_shortlist_share=0.0, max_parameters=400_000)
    assert plan(max_parameters=400_000).parameters <= 400_000
    assert least.parameters <= 400_000
    assert plan(clusters=3, max_parameters=400_000).occupancy[0] < 0.6 <= plan(clusters=3).occupancy[0]
    with pytest.raises(ValueError, match="allows no plan"):
        plan(max_parameters=400_000, min_projection=32, min_shortlist_share=0.6)


def test_a_narrow_hidden_state_still_gets_a_tail(studied):
    found = plan_cutoffs(COUNTS, 16, 2048, model=MODEL)
    assert found.layout.projection_sizes == (4,)


def test_a_costly_layout_is_warned_of_and_another_only_told(studied):
    def words(*sizes):
        cutoffs = tuple(range(100, 100 * len(sizes) + 100, 100))
        (sentence,) = studied.sentences(ClusterLayout(512, 20_000, cutoffs, projection_sizes=sizes))
        return sentence

    assert words(128, 10).startswith(
        "Warning: tails as narrow as 8 changed perplexity by +4.0% [+3.5%, +4.5%]"
    )
    assert words(128, 64).startswith("Tails as narrow as 32 changed perplexity by +1.0%")
    assert "narrower than any that was studied" in words(128, 4)
    assert "a GPU" in words(128, 4)


def test_what_is_bundled_can_be_read_and_says_whose_it_is():
    quality.bundled.cache_clear()
    found = quality.bundled()
    assert found.margin > 0
    assert found.min_projection >= 1
    content = json.loads(quality.FILE.read_text())
    assert len(content["studies"]) == len(found.studies)
    for study in found.studies:
        assert study.hardware
        assert "study" in study.command
        assert study.layouts
