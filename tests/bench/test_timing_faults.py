"""Every planted way to claim time is caught, and honest layers keep their times."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch

from zipfmax_bench import timing_faults
from zipfmax_bench.engine import SamplingPolicy
from zipfmax_bench.timing_faults import PLANTED, LayerOutcome, examine
from zipfmax_reference.records import RunDirectory, TimingFault
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.invocation import invocation

# These change the process that imports them.
AT_IMPORT = ("clock:SlowClock", "own_clock:OwnClock", "lenient:Lenient", "events:ShortEvents")
SMALL = Case(60, 8, 16, (10, 30))
LAYERS = [one for one in PLANTED if one.name not in AT_IMPORT]

# By what each is found out.
WORDS = {
    "layers:CachedByAddress": ("in a timed run: output", "0 FLOPs counted"),
    "layers:CachedByContent": ("0 FLOPs counted",),
    "layers:RightOnTheFirstBatch": ("in a timed run: output",),
    "layers:PreviousResults": ("in a timed run: output",),
    "layers:SkipsBackward": ("in a timed run: grad.input",),
    "layers:FirstRows": ("in a timed run: output",),
    "layers:LowPrecision": ("in a timed run: output",),
    "layers:WatchesTheTimer": ("in a timed run: output",),
    "layers:ZeroesTheTarget": ("the target was changed in place",),
    "layers:ChangesTheInput": ("the input was changed in place",),
    "layers:InTheBackground": ("in a timed run: output", "it was still being computed"),
    "layers:MoreThreads": ("it set the number of threads",),
}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_at_least_twelve_ways_to_claim_time_are_planted():
    assert sum(not one.honest for one in PLANTED) >= 12
    assert {one.name for one in PLANTED if one.honest} >= {"honest:Plain", "honest:Fused"}


@pytest.mark.parametrize("planted", LAYERS, ids=lambda one: one.name)
def test_a_layer_that_cheats_is_found_out_by_its_trick_and_an_honest_one_keeps_its_time(
    planted, in_process, threads, tmp_path, monkeypatch
):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # of all that a test process holds, it takes seconds
    monkeypatch.setattr(timing_faults, "SHAPE", SMALL)
    monkeypatch.setattr(timing_faults, "POLICY", SamplingPolicy(rounds=4))
    (outcome,) = examine([planted], RunDirectory.start(tmp_path / "run", invocation({})))
    assert outcome.holds, outcome
    if planted.name in WORDS:
        assert any(words in outcome.reason for words in WORDS[planted.name])
        assert outcome.speedup_vs_torch is None
    else:  # Lazy is read while the clock runs
        assert outcome.status == "ok"
        assert outcome.delegates == "torch.nn.AdaptiveLogSoftmaxWithLoss"


@pytest.mark.slow
def test_code_that_runs_at_import_changes_neither_the_clock_nor_the_verdict_nor_another_layers(tmp_path):
    program = (
        "import sys; from pathlib import Path; from zipfmax_bench import timing_faults as faults;"
        "from zipfmax_bench.engine import SamplingPolicy;"
        "faults.SHAPE = faults.Case(60, 8, 16, (10, 30)); faults.POLICY = SamplingPolicy(rounds=2);"
        "sys.exit(faults.run(Path(sys.argv[1]), sys.argv[2:]))"
    )
    names = ["lenient:Lenient", "own_clock:OwnClock"]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run"), *names], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 ways to claim time caught" in done.stdout
    reasons = [record["reason"] for record in RunDirectory(tmp_path / "run").rows(TimingFault)]
    assert "by the engine's clock" in " ".join(reasons)


@pytest.mark.parametrize(
    ("honest", "status", "speedup", "holds"),
    [
        (False, "ok", 3.0, False),
        (False, "ok", 1.1, True),
        (False, "ok", None, False),
        (False, "skipped", None, False),
        (False, "implausible", None, True),
        (True, "ok", 0.5, True),
        (True, "implausible", None, False),
    ],
)
def test_a_cheat_that_gains_time_and_an_honest_layer_without_one_do_not_hold(honest, status, speedup, holds):
    assert LayerOutcome("x", "x", honest, status, None, speedup, None).holds == holds
