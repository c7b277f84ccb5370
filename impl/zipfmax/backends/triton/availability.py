"""Whether this backend can serve an input, without importing Triton."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_INSTALLED = importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton's interpreter is asked for: kernels then run on the CPU, slowly, through NumPy."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def unavailable(hidden: Tensor) -> str | None:
    """Why the kernels cannot serve this input, or None where they can."""
    if hidden.device.type not in ("cuda", "cpu"):
        return f"its kernels run on CUDA and ROCm devices, not on {hidden.device.type!r}"
    if hidden.device.type == "cpu" and not interpreting():
        return "its kernels need a GPU (or, to try them on a CPU, TRITON_INTERPRET=1 in the environment)"
    if not _INSTALLED:
        return "the triton package is not installed"
    if hidden.dtype not in DTYPES:
        return f"its kernels compute in float32, bfloat16 or float16, not in {str(hidden.dtype)[6:]}"
    return None
