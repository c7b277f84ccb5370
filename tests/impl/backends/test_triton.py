"""Runs the kernels' tests in one process under Triton's interpreter, and what must hold without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from zipfmax import AdaptiveLogSoftmaxWithLoss

KERNEL_TESTS = sorted(p for p in (Path(__file__).parent / "triton").glob("test_*.py"))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str]]]:
    """By file: each of its tests with the text of its failure, empty where it passed or was skipped."""
    table = tmp_path_factory.mktemp("kernels") / "outcomes.xml"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", f"--junit-xml={table}", *map(str, KERNEL_TESTS)],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    # 0 and 1 are pytest's statuses for all tests run; others say that a file could not be collected.
    assert run.returncode in (0, 1), run.stdout[-8000:] + run.stderr[-2000:]
    found: dict[str, list[tuple[str, str]]] = {path.stem: [] for path in KERNEL_TESTS}
    for case in ElementTree.parse(table).getroot().iter("testcase"):
        faults = [fault.text or fault.tag for fault in case if fault.tag in ("failure", "error")]
        found[case.attrib["classname"].rpartition(".")[2]].append((case.attrib["name"], "\n".join(faults)))
    assert run.returncode == any(fault for tests in found.values() for _, fault in tests), run.stdout[-8000:]
    return found


@pytest.mark.parametrize("name", [path.stem for path in KERNEL_TESTS])
def test_under_the_interpreter(outcomes: dict[str, list[tuple[str, str]]], name: str) -> None:
    assert outcomes[name], "a file that collects nothing must not pass"
    failed = [f"{test}: {fault[-3000:]}" for test, fault in outcomes[name] if fault]
    assert not failed, "\n\n".join(failed)


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
