"""What is timed of full softmax on a GPU: every contestant, with its setting, or why it is not there."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from zipfmax_bench import gpu_times
from zipfmax_reference.contestants import registry
from zipfmax_reference.runs.case import Case

CASE = Case(99, 8, 24, (10, 30))


def test_every_full_softmax_has_a_run_or_a_reason(monkeypatch):
    # Its compilation takes longer than all else here.
    monkeypatch.setattr(gpu_times, "FULL", tuple(n for n in gpu_times.FULL if n != "full:compiled"))
    runs, notes = gpu_times.full_runs(CASE)
    assert list(notes) == list(gpu_times.FULL)
    assert "full" in runs
    for name, note in notes.items():
        assert (name in runs) == ("settings" in note) == ("reason" not in note)
        assert note["mode"] == "eager"
        assert note["exact"] == registry.gradients(name).exact
    for run in runs.values():
        run()


def test_what_runs_out_of_memory_is_recorded_and_the_others_run(monkeypatch):
    class Huge:
        def unsupported_reason(self, case):
            return None

        def build_fastest(self, case, inputs):
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    known = registry.implementation
    monkeypatch.setattr(gpu_times, "FULL", ("full:chunked", "full"))
    monkeypatch.setattr(registry, "implementation", lambda name: Huge() if ":" in name else known(name))
    runs, notes = gpu_times.full_runs(CASE)
    assert list(runs) == ["full"]
    assert notes["full:chunked"]["status"] == "failed"
    assert notes["full:chunked"]["reason"] == "OutOfMemoryError: CUDA out of memory. more"


def test_every_full_contestant_is_timed():
    family = [name for name in registry.names() if registry.implementation(name).family == "full"]
    assert sorted(gpu_times.FULL) == sorted(family)


def test_contestants_have_a_record_each_and_say_what_they_are(monkeypatch):
    monkeypatch.setattr(
        gpu_times, "measured", lambda runs, record, **_: ({**record, "impl": name} for name in runs)
    )
    notes = {
        "zipfmax 10/30 graph": {"impl": "zipfmax", "mode": "graph", "cutoffs": (10, 30)},
        "full:quack": {"impl": "full:quack", "mode": "eager", "status": "skipped", "reason": "not installed"},
    }
    first, second = gpu_times.contest(({"zipfmax 10/30 graph": print}, notes), CASE, rounds=2)
    assert (first["impl"], first["mode"], first["cutoffs"], first["batch_size"]) == (
        "zipfmax",
        "graph",
        (10, 30),
        24,
    )
    assert (second["impl"], second["reason"], second["seed"]) == ("full:quack", "not installed", 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_times_on_a_gpu_are_of_every_contestant_seed_and_spread(monkeypatch):
    monkeypatch.setattr(gpu_times, "CUTOFFS", ((2_000, 9_000), (500, 2_000, 9_000)))
    shape = Case(70_001, 64, 512, (2_000, 9_000), dtype="bfloat16", device="cuda")
    records = list(gpu_times.against_full(shape, rounds=2))
    assert {(one["seed"], one["logit_std"]) for one in records} == set(product((0, 1), (1.0, 4.0)))
    ours = [one for one in records if one["impl"] in ("zipfmax", "torch")]
    assert len(ours) == 4 * 2 * 5
    assert all(one["status"] == "ok" for one in ours)
    assert {one["impl"] for one in records} == {"zipfmax", "torch", *gpu_times.FULL}
    timed = [one for one in records if one["status"] == "ok" and one["impl"].startswith("full:")]
    assert all(one["settings"] for one in timed)
