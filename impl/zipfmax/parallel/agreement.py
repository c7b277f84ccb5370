"""The one check at construction: whether all ranks split the same layer the same way.

Ranks that differ would later wait for each other forever, or give wrong numbers without a sign. So they
compare once what everything else follows from, and where they differ every one of them raises.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from zipfmax.errors import one_line
from zipfmax.module import AdaptiveLogSoftmaxWithLoss


def description(layer: AdaptiveLogSoftmaxWithLoss, **more: Any) -> dict[str, str]:
    """What ranks must agree on, as text, by the name that its user gave it."""
    ranks = layer.label_ranks
    found = {
        "layout": layer.layout,
        "parameters": [(n, tuple(p.shape), p.dtype, p.requires_grad) for n, p in layer.named_parameters()],
        "device type": layer.head.weight.device.type,
        "ignore_index": layer.ignore_index,
        "reduction": layer.reduction,
        "absent_grads": layer.absent_grads,
        "backend": layer.backend,
        "gradients": layer._upstream.told,
        "label_smoothing": layer.label_smoothing,
        "z_loss": layer.z_loss,
        "weight": _digest(layer.class_weight),
        "label_ranks": _digest(None if ranks is None else ranks.rank_of_label),
        **more,
    }
    return {name: str(value) for name, value in found.items()}


def agree(mine: dict[str, str] | Exception, group: dist.ProcessGroup | None) -> None:
    """Collective: raise on every rank unless all of them gave the same description.

    A rank that cannot describe its layer gives the error that it met, so that the others need not wait.

    Raises:
        ValueError: they differ; says in what and which ranks.
        Exception: this rank's own error.
    """
    everyone: list[dict[str, str] | None] = [None] * dist.get_world_size(group)
    given = {"error": one_line(mine)} if isinstance(mine, Exception) else mine
    dist.all_gather_object(everyone, given, group=group)
    if isinstance(mine, Exception):
        raise mine
    found = [one or {} for one in everyone]
    failed = [f"rank {rank}: {one['error']}" for rank, one in enumerate(found) if "error" in one]
    if failed:
        raise ValueError(f"the vocabulary cannot be split, for {'; '.join(failed)}")
    first = found[0]
    for rank, one in enumerate(found):
        for name in sorted(first.keys() | one.keys()):
            if first.get(name) != one.get(name):
                raise ValueError(
                    f"the ranks of the group disagree on {name}: rank 0 has {first.get(name)}, "
                    f"rank {rank} has {one.get(name)}"
                )


def _digest(tensor: Tensor | None) -> str:
    if tensor is None:
        return "None"
    raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return f"{tuple(tensor.shape)} with digest {hashlib.sha256(raw).hexdigest()[:12]}"
