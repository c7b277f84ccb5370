"""The kernels' own tests: on a GPU as they are, without one under Triton's interpreter.

Triton reads TRITON_INTERPRET when it is imported, and the backend then serves CPU tensors too. So that no
other test sees either, these files are collected only where the variable is set before pytest starts, or a
GPU is there; `test_triton.py` one folder up starts such a pytest for each of them.
"""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

collect_ignore_glob = [] if INTERPRETING or torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETING else "cuda")


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory handed out uninitialised holds NaN (or a huge integer), so an unwritten element shows."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled()
    # The filling needs the mode; what the mode forbids on a GPU (cuBLAS without its variable) is no matter.
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)
