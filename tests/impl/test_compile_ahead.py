"""Compiling ahead reaches every step of a calibration on a GPU once, and a step that fails is told."""

import pytest
import torch

from zipfmax import compile_ahead, trials
from zipfmax.steps import StepTimer


@pytest.mark.parametrize("count", [1, 3, 16])
def test_the_parts_run_every_trial_once(count, monkeypatch):
    ran = []
    monkeypatch.setattr(StepTimer, "step", lambda self, trial: lambda: ran.append(trial))
    request = {
        "device": "cpu",
        "dtype": "bfloat16",
        "task": "train",
        "backend": "auto",
        "precision": "highest",
    }
    for part in range(count):
        compile_ahead._run_part({**request, "count": count, "part": part})
    assert ran == trials.drawn(on_gpu=True).adaptive


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, so the steps run")
def test_what_a_step_said_last_is_in_the_error():
    shares = []
    with pytest.raises(RuntimeError, match=r"a calibration's step failed: .*(CUDA|NVIDIA)"):
        compile_ahead.compile_ahead(
            torch.device("cuda"), torch.bfloat16, "train", "auto", on_share=shares.append
        )
    assert all(0 <= share < 1 for share in shares)
