"""Runs the kernels' tests, one file a process, under Triton's interpreter, and what must hold without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zipfmax import AdaptiveLogSoftmaxWithLoss

KERNEL_TESTS = sorted(p for p in (Path(__file__).parent / "triton").glob("test_*.py"))


@pytest.mark.parametrize("path", KERNEL_TESTS, ids=lambda path: path.stem)
def test_under_the_interpreter(path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", str(path)],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    # 5 is pytest's status for "no tests": a file that collects nothing must not pass.
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def test_there_are_kernel_tests() -> None:
    assert len(KERNEL_TESTS) >= 3


def test_a_cpu_tensor_is_refused_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    layer = AdaptiveLogSoftmaxWithLoss(8, 20, [5, 10], backend="triton")
    with pytest.raises(RuntimeError, match="need a GPU"):
        layer(torch.randn(3, 8), torch.tensor([0, 6, 19]))


def test_float64_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    layer = AdaptiveLogSoftmaxWithLoss(8, 20, [5, 10], backend="triton", dtype=torch.float64)
    with pytest.raises(RuntimeError, match="float32, bfloat16 or float16, not in float64"):
        layer(torch.randn(3, 8, dtype=torch.float64), torch.tensor([0, 6, 19]))


def test_importing_the_backend_does_not_import_triton() -> None:
    code = "import sys, zipfmax.backends.triton; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
