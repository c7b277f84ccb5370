"""Ranks of torchrun share one sweep, and survive the death of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

LABELS = ("zipf:0.5", "zipf:1.0", "zipf:1.5", "uniform")


def ranks_of(agent: int) -> list[int]:
    """Process ids of torchrun's ranks."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return [pid for pid in map(int, children) if b"sweep" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
def test_a_rank_killed_in_the_middle_leaves_the_same_cells_as_an_unbroken_sweep(tmp_path):
    out = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("--max-restarts=1", "-m", "zipfmax", "sweep", "--out", str(out), "--rounds", "3", "--threads", "1"),
        *("--classes", "60", "--cutoffs", "10,30", "--features", "16", "--batch", "8", "--impl", "torch"),
        *(word for labels in LABELS for word in ("--labels", labels)),
    ]
    agent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    timings = out / "timings.jsonl"
    deadline = time.monotonic() + 600
    while not timings.exists() or timings.read_bytes().count(b"\n") < 2:
        assert agent.poll() is None, agent.stderr.read() if agent.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    finished = timings.read_bytes()
    os.kill(ranks_of(agent.pid)[-1], signal.SIGKILL)
    _, errors = agent.communicate(timeout=180)
    assert agent.returncode == 0, errors
    assert timings.read_bytes().startswith(finished)
    cells = Counter(json.loads(line)["case"] for line in timings.read_text().splitlines())
    assert len(cells) == 2 * len(LABELS)
    assert set(cells.values()) == {1}
    assert "resumed" in json.loads((out / "run.json").read_text())
