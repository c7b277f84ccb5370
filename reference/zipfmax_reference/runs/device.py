"""The devices that a command takes: cpu, cuda and cuda:N (ROCm's GPUs are torch's cuda too)."""

from __future__ import annotations

import torch

from zipfmax.errors import UsageError, unknown


def named(device: str) -> str:
    """The device, if it is the name of one, whether or not this machine has it.

    Raises:
        UsageError: another name.
    """
    kind, colon, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not index.isdigit())):
        raise UsageError(unknown("device", device, ("cpu", "cuda", "cuda:N")))
    return device


def present(device: str) -> str:
    """The device, if this machine has it.

    Raises:
        UsageError: another name, or a GPU that torch does not see.
    """
    index = named(device).partition(":")[2] or "0"
    if device != "cpu" and int(index) >= torch.cuda.device_count():
        raise UsageError(f"device {device}: torch sees {torch.cuda.device_count()} GPUs here; choose cpu")
    return device
