"""How a torch module is called: under torch's modes and settings, in a checkpoint, with weights that are computed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from zipfmax_reference.contestants import surroundings
from zipfmax_reference.contestants.use import CallMode, Setting

REFUSABLE = ("autocast", "computed")
"""Modes that a layer may refuse."""
_CONTEXTS: dict[CallMode, Callable[[str], AbstractContextManager[Any]]] = {
    "no_grad": lambda device: torch.no_grad(),
    "inference": lambda device: torch.inference_mode(),
    "autocast": lambda device: torch.autocast(device, torch.bfloat16),
    "default": lambda device: surroundings.other_defaults(),
}
SETTINGS: dict[Setting, Callable[[], object]] = {
    # Which also fills memory that nobody has written to with NaN.
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "coarse": lambda: torch.set_float32_matmul_precision("medium"),
    "exact": lambda: torch.set_float32_matmul_precision("highest"),
}


def context(mode: CallMode, device: str) -> AbstractContextManager[Any]:
    """What surrounds a call in a mode."""
    return _CONTEXTS[mode](torch.device(device).type) if mode in _CONTEXTS else nullcontext()


def called(module: nn.Module, mode: CallMode, hidden: Tensor, target: Tensor) -> Any:
    """Output and loss."""
    if mode == "computed":
        weights = {name: weight * 1.0 for name, weight in module.named_parameters()}
        return torch.func.functional_call(module, weights, (hidden, target))
    if mode == "checkpoint":
        from torch.utils.checkpoint import checkpoint

        return checkpoint(module, hidden, target, use_reentrant=False)
    return module(hidden, target)
