"""Torch's tensors of every kind as arrays, and arrays as tensors that lie in memory as a user's may."""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from zipfmax_reference.contestants.use import Gaps
from zipfmax_reference.runs.arrays import Array


def with_gaps(values: Tensor, gaps: Gaps) -> Tensor:
    """The same values [N, d], or with "columns" or "before" [N], between or before which others lie."""
    if gaps == "before":
        return torch.cat([values[:1] + 1, values])[1:]
    if gaps == "turned":
        return values.t().contiguous().t()
    if gaps == "rows":
        return torch.cat([values, values + 1], dim=1)[:, : values.shape[1]]
    return torch.stack([values, values + 1], dim=-1)[..., 0]


def is_dtensor(value: Tensor) -> bool:
    """Whether it is split over ranks; where nobody imported DTensor, which is slow, there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and type(value) is module.DTensor


def plain(value: Tensor) -> Tensor:
    """The tensor, or what a tensor subclass holds: all of a DTensor's ranks, or else read to the host and back."""
    if type(value) is Tensor:
        return value
    if is_dtensor(value):
        return cast(Tensor, cast(Any, value).full_tensor())
    return torch.tensor(value.tolist(), dtype=value.dtype, device=value.device)


def like(tensor: Tensor, values: Array) -> Tensor:
    """Values as a tensor like this one, split over ranks as it is."""
    made = torch.from_numpy(np.array(values)).to(device=tensor.device, dtype=tensor.dtype)
    if not is_dtensor(tensor):
        return made
    from torch.distributed.tensor import distribute_tensor

    whole = cast(Any, tensor)
    return distribute_tensor(made, whole.device_mesh, whole.placements)


def to_numpy(value: Tensor) -> Array:
    """A tensor on the host; bfloat16, which NumPy lacks, widened to float32."""
    value = value.detach().cpu()
    array: Array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return array


def to_array(value: Tensor) -> Array:
    """A copy on the host, also of what a tensor subclass holds."""
    return to_numpy(plain(value.detach())).copy()
