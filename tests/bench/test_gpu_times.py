"""What is timed of full softmax on a GPU: every contestant, with its setting, or why it is not there."""

from __future__ import annotations

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_times_on_a_gpu_have_their_settings():
    shape = {"n_classes": 70_001, "in_features": 64, "batch_size": 512}
    records = list(gpu_times.full_times(shape, rounds=2))
    assert {record["logit_std"] for record in records} == {1.0, 4.0}
    assert len(records) == 2 * len(gpu_times.FULL)
    timed = {record["impl"]: record for record in records if record["status"] == "ok"}
    assert all(timed[name]["settings"] for name in timed if name != "full")
