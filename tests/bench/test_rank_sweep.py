"""Steps over ranks are measured against one; a rank that dies costs its case only; choices are checked."""

import os
import signal

import numpy as np
import pytest
import torch

from zipfmax.errors import UsageError
from zipfmax.planner import cost_models, plan_cutoffs
from zipfmax.rank_costs import CollectiveCost
from zipfmax_bench import rank_planning, rank_sweep
from zipfmax_bench.rank_steps import PLACE
from zipfmax_bench.sweep_options import SweepOptions
from zipfmax_reference.contestants.ranked_layer import RankPool
from zipfmax_reference.records import RankTiming, RunDirectory
from zipfmax_reference.runs.case import Case

CASE = Case(61, 16, 8, (9, 30), 2.0)


def test_a_case_over_two_ranks_and_a_rank_that_dies():
    pools = RankPool(1, PLACE), RankPool(2, PLACE)
    found = rank_sweep.measured(CASE, "zipfmax", pools, 2, 3, 1)
    assert found.status == "ok"
    assert len(found.samples_s) == len(found.one_rank_samples_s) == 3
    assert found.efficiency == found.one_rank_s / (2 * found.median_s)
    assert (found.collectives, found.world) == (3, 2)
    assert found.sent_bytes > 0
    assert found.parameter_bytes < found.one_rank_parameter_bytes
    assert found.peak_bytes > 0
    skipped = rank_sweep.measured(Case(10, 8, 4, (5, 9)), "zipfmax", pools, 2, 3, 1)
    assert (skipped.status, skipped.median_s) == ("skipped", None)
    assert "fewer than the 2 ranks" in skipped.reason

    before = pools[1].ranks()
    os.kill(before._children[1]._process.pid, signal.SIGKILL)
    failed = rank_sweep.measured(CASE, "zipfmax", pools, 2, 3, 1)
    assert failed.status == "failed"
    assert "died" in failed.reason
    assert pools[1].broken
    assert pools[1].ranks() is not before  # the next case has new ranks


def test_what_is_recorded_is_read_back_and_not_measured_again(tmp_path, monkeypatch):
    asked = []

    def measured(case, name, pools, world, rounds, threads):
        asked.append((name, world))
        done = {"samples_s": [0.5], "median_s": 0.5, "one_rank_s": 0.8}
        fields = case.to_fields()
        status = "failed" if world == 3 else "ok"
        return RankTiming(
            case=case.id, impl=name, world=world, fields=fields, threads=threads, status=status, **done
        )

    monkeypatch.setattr(rank_sweep, "measured", measured)
    options = SweepOptions(
        classes=(10_000,), labels=("zipf:1.0",), batch=(16,), task=("train",), device="cpu"
    )
    assert rank_sweep.run(options, (2,), tmp_path / "run", False) == 0
    assert rank_sweep.run(options, (2, 3), tmp_path / "run", True) == 1
    assert asked == [("zipfmax", 2), ("zipfmax", 3)]
    (first, _) = RunDirectory(tmp_path / "run").read(RankTiming)
    assert first.efficiency == 0.8


@pytest.mark.parametrize(
    ("options", "world", "message"),
    [
        (SweepOptions(device="cpu"), 1, "--world should be from 2 to"),
        (SweepOptions(device="cpu", impl=("torch",)), 2, "only zipfmax's layers"),
        (SweepOptions(device="cpu", task=("predict",)), 2, "forward and train"),
    ],
)
def test_choices_that_do_not_go_with_ranks_are_refused(options, world, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        rank_sweep.run(options, (world,), tmp_path / "run", False)


def test_more_ranks_than_there_are_cores_are_marked_as_simulated(monkeypatch):
    asked = []

    def measured(world, device):
        asked.append(world)
        return CollectiveCost(1e-4, 1e-9)

    monkeypatch.setattr(rank_planning, "measured_collectives", measured)
    monkeypatch.setattr(rank_planning, "usable_cores", lambda: 4)
    calibration, _ = cost_models("cpu", torch.float32, "train", calibrate=False, refresh=False)
    plan = plan_cutoffs(1.0 / np.arange(1, 20_001), 64, 256, model=calibration)
    found = rank_planning.over_ranks(plan, calibration, (2, 8, 4, 16), "float32", "cpu", "train")
    assert asked == [2, 4]
    assert [one["simulated"] for one in found] == [False, True, False, True]
    assert [one["collectives_measured_on"] for one in found] == [2, 4, 4, 4]
    with pytest.raises(UsageError, match="got 1"):
        rank_planning.over_ranks(plan, calibration, (1,), "float32", "cpu", "train")
