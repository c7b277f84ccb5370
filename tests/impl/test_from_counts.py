"""`AdaptiveLogSoftmaxWithLoss.from_counts`: the planned layer, what it logs, and one plan for every rank."""

import logging
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from zipfmax import AdaptiveLogSoftmaxWithLoss, hardware, plan_cutoffs, planner

ZIPF = 1.0 / np.arange(1, 3001)
UNSORTED = np.random.default_rng(1).permutation(ZIPF)


def test_the_layer_has_the_plan_of_the_bundled_model_and_keeps_the_users_labels():
    layer = AdaptiveLogSoftmaxWithLoss.from_counts(64, UNSORTED, 2048, reduction="sum")
    plan = plan_cutoffs(UNSORTED, 64, 2048)
    assert tuple(layer.cutoffs) == (*plan.cutoffs, 3000)
    assert layer.reduction == "sum"
    frequent = UNSORTED.argsort()[::-1][: plan.cutoffs[0]]
    hidden = torch.randn(2, 64)
    expected = layer.head(hidden).log_softmax(1)[:, : len(frequent)]
    torch.testing.assert_close(layer.log_prob(hidden)[:, frequent.copy()], expected)


def test_counts_that_descend_need_no_ranks():
    assert AdaptiveLogSoftmaxWithLoss.from_counts(64, ZIPF, 256).label_ranks is None


@pytest.mark.parametrize(
    ("counts", "options"),
    [
        (UNSORTED, {"ignore_index": -1, "reduction": "sum"}),
        (ZIPF, {"weight": torch.ones(3000), "dtype": torch.float64}),
        (np.ones(60), {}),
    ],
    ids=["unsorted", "weighted", "full softmax is faster"],
)
def test_the_code_that_is_logged_builds_the_same_layer(counts, options, caplog):
    layer = AdaptiveLogSoftmaxWithLoss.from_counts(64, counts, 2048, **options)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING  # shown by default
    said, _, code = record.getMessage().partition("\n")
    assert "cost model bundled: " in said
    names = {"counts": counts, **options}
    exec(code, names)
    mine, pasted = layer.state_dict(), names["layer"].state_dict()
    assert {name: (value.shape, value.dtype) for name, value in mine.items()} == {
        name: (value.shape, value.dtype) for name, value in pasted.items()
    }
    for name in ("ignore_index", "reduction", "div_value"):
        assert getattr(layer, name) == getattr(names["layer"], name)
    if layer.label_ranks is not None:
        assert torch.equal(mine["label_ranks.rank_of_label"], pasted["label_ranks.rank_of_label"])


def test_full_softmax_is_advised_where_it_is_judged_faster(caplog):
    layer = AdaptiveLogSoftmaxWithLoss.from_counts(64, np.ones(60), 32)
    assert layer.n_classes == 60
    assert "full softmax is predicted to be faster" in caplog.text
    assert "nn.Linear" not in caplog.text


def test_progress_of_the_measuring_is_shown(caplog, monkeypatch):
    def measured(*arguments, on_sample, **options):
        for share in np.linspace(0, 1, 50):
            on_sample(float(share))
        return hardware.bundled()[0]

    monkeypatch.setattr(planner, "calibrated", measured)
    AdaptiveLogSoftmaxWithLoss.from_counts(64, ZIPF, 256, calibrate=True)
    shares = [record.getMessage() for record in caplog.records if "measuring" in record.getMessage()]
    assert len(shares) == 5
    assert [shares[0], shares[-1]] == [f"measuring this machine's cost model: {share}%" for share in (0, 100)]


def rank_of_two(rank, folder, results):
    """Every case in turn: what this rank's layer is, or what it raises."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    # A rank that planned for itself would take its own number of clusters.
    cases = {
        "agree": lambda: (
            AdaptiveLogSoftmaxWithLoss.from_counts(64, UNSORTED, 2048, clusters=1 + rank).cutoffs
        ),
        "other counts": lambda: AdaptiveLogSoftmaxWithLoss.from_counts(64, ZIPF + rank, 2048),
        "no plan": lambda: AdaptiveLogSoftmaxWithLoss.from_counts(64, ZIPF, 2048, clusters=99),
        "after that": lambda: AdaptiveLogSoftmaxWithLoss.from_counts(64, ZIPF, 2048, clusters=2).cutoffs,
    }
    for name, case in cases.items():
        try:
            results.put((name, rank, case()))
        except (ValueError, RuntimeError) as error:
            results.put((name, rank, f"{type(error).__name__}: {error}"))
    dist.destroy_process_group()


def test_two_ranks_build_the_layer_that_rank_0_plans_and_fail_together(tmp_path: Path):
    context = mp.get_context("fork")  # the ranks need no import of torch then
    results = context.Queue()
    ranks = [context.Process(target=rank_of_two, args=(rank, tmp_path, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = {(name, rank): value for name, rank, value in (results.get(timeout=120) for _ in range(8))}
    for process in ranks:
        process.join(timeout=60)
        assert process.exitcode == 0
    one_tail = list(plan_cutoffs(UNSORTED, 64, 2048, clusters=1).cutoffs)
    assert found["agree", 0] == found["agree", 1] == [*one_tail, 3000]
    for rank in range(2):
        assert "the same counts and in_features on every rank" in found["other counts", rank]
    assert found["no plan", 0].startswith("ValueError: clusters should be 'auto' or a number")
    assert found["no plan", 1].startswith(
        "RuntimeError: rank 0 could not plan: ValueError: clusters should be"
    )
    assert found["after that", 0] == found["after that", 1]
