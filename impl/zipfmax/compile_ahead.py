"""Compiles the GPU kernels of a calibration's steps before its clock starts, in several processes at a time.

Triton compiles kernels for each layout, which takes seconds of one core. The processes leave what they compiled in
Triton's cache on disk, where this process and later calibrations find it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from zipfmax import trials
from zipfmax.steps import StepTimer

BOUND_S = 300.0
"""Seconds after which what still compiles is stopped."""
MOST_PROCESSES = 16
_POLL_S = 0.5


def compile_ahead(
    device: torch.device,
    dtype: torch.dtype,
    task: str,
    backend: str,
    *,
    on_share: Callable[[float], None],
) -> None:
    """Compile what the steps of `trials.drawn(on_gpu=True)` launch, for `BOUND_S` at most.

    What was not reached is compiled when it is measured.

    Args:
        device, dtype, task, backend: as `calibration.calibrate` takes them.
        on_share: called now and then with the share of the processes that are done.

    Raises:
        RuntimeError: a step fails; with what its process said last.
    """
    count = min(MOST_PROCESSES, os.cpu_count() or 1)
    request: dict[str, Any] = {
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "task": task,
        "backend": backend,
        "precision": torch.get_float32_matmul_precision(),
        "count": count,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "zipfmax.compile_ahead", json.dumps({**request, "part": part})],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(count)
    ]
    began = time.monotonic()
    try:
        while running := [process for process in processes if process.poll() is None]:
            if time.monotonic() - began > BOUND_S:
                break
            on_share(1 - len(running) / count)
            time.sleep(_POLL_S)
        for process in processes:
            if process.poll():
                said = (process.stderr.read() if process.stderr else "").strip().splitlines()
                raise RuntimeError(f"a calibration's step failed: {said[-1] if said else process.returncode}")
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _run_part(request: dict[str, Any]) -> None:
    """Run the steps of one of `count` parts of the trials; those of a layout, which share kernels, stay together."""
    torch.set_float32_matmul_precision(request["precision"])
    timer = StepTimer(
        torch.device(request["device"]), getattr(torch, request["dtype"]), request["task"], request["backend"]
    )
    wanted = trials.drawn(on_gpu=True).adaptive
    size = -(-len(wanted) // request["count"])
    for trial in wanted[request["part"] * size :][:size]:
        timer.step(trial)()


if __name__ == "__main__":
    _run_part(json.loads(sys.argv[1]))
