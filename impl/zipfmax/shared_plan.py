"""One plan for all ranks of a process group, logged as the code to paste in its place."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from zipfmax.errors import one_line
from zipfmax.plan_code import plan_code
from zipfmax.planner import Plan, plan_cutoffs

logger = logging.getLogger("zipfmax")

QUARTERS = 4
"""How often progress is logged where standard error is not a terminal."""


def shared_cutoffs(
    counts: npt.NDArray[Any],
    in_features: int,
    batch_size: int,
    div_value: float,
    clusters: int | str,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    *,
    plan: Mapping[str, Any],
    options: Mapping[str, Any],
) -> tuple[int, ...]:
    """The cutoffs of `zipfmax.plan_cutoffs`, the same on every rank of the default process group.

    Where that group is initialised every rank has to call this: rank 0 plans and broadcasts. Rank 0, or who
    plans without a group, logs where the plan is from and the code that builds the layer.

    Args:
        counts: [V] by label.
        in_features, batch_size, div_value, clusters, device, dtype: as `AdaptiveLogSoftmaxWithLoss.from_counts`
            takes them.
        plan: further arguments of `plan_cutoffs`.
        options: further arguments of the layer, for the code.

    Raises:
        ValueError: no plan is allowed; or the ranks differ in counts or in_features, on all of them.
        RuntimeError: rank 0 could not plan, on the others.
    """

    def planned() -> tuple[int, ...]:
        found = plan_cutoffs(
            counts,
            in_features,
            batch_size,
            div_value,
            clusters,
            device=torch.get_default_device() if device is None else device,
            dtype=torch.get_default_dtype() if dtype is None else dtype,
            **{"on_sample": _progress(), **plan},
        )
        logger.warning(_announcement(found, counts, device, dtype, options))
        return found.cutoffs

    if not (dist.is_available() and dist.is_initialized()):
        return planned()
    return _from_first_rank(planned, hashlib.sha256(counts.tobytes()).hexdigest() + str(in_features))


def _from_first_rank(planned: Callable[[], tuple[int, ...]], digest: str) -> tuple[int, ...]:
    """What rank 0 plans. All ranks hold their digests against each other first, so that none is left waiting."""
    digests: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, digest)
    if len(set(digests)) > 1:
        raise ValueError(
            "from_counts needs the same counts and in_features on every rank of the process group"
        )
    message: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            message = [planned()]
        except Exception as error:
            dist.broadcast_object_list([one_line(error)], src=0)
            raise
    dist.broadcast_object_list(message, src=0)
    if isinstance(message[0], str):
        raise RuntimeError(f"rank 0 could not plan: {message[0]}")
    return tuple(message[0])


def _announcement(
    plan: Plan,
    counts: npt.NDArray[Any],
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    options: Mapping[str, Any],
) -> str:
    ranked = "label_ranks" not in options and not is_sorted(counts)
    code = plan_code(
        plan,
        device=device,
        dtype=dtype,
        counts="counts" if ranked else None,
        options={name: _expression(name, value) for name, value in options.items()},
        adaptive=True,
    )
    full = (
        "; full softmax is predicted to be faster, but an adaptive layer was asked for"
        if plan.full_is_better
        else ""
    )
    return (
        f"planned cutoffs {list(plan.cutoffs)} (cost model {plan.source}){full}. "
        f"Paste this in place of from_counts, so that the layer stays the same:\n{code}"
    )


def is_sorted(counts: npt.NDArray[Any]) -> bool:
    """Whether no label is more frequent than the one before it."""
    return not bool((np.diff(counts.astype(np.float64)) > 0).any())


def _expression(name: str, value: Any) -> str:
    """The value as code where that is short, else a variable of the argument's name."""
    return repr(value) if value is None or isinstance(value, bool | int | float | str) else name


def _progress() -> Callable[[float], None]:
    """Shows how much of a calibration is done: on a terminal a line that changes, else a few lines of the log."""
    told = 0

    def show(share: float) -> None:
        nonlocal told
        if sys.stderr.isatty():
            end = "\n" if share >= 1 else ""
            print(
                f"\rmeasuring this machine's cost model: {share:4.0%}", end=end, file=sys.stderr, flush=True
            )
        elif share * QUARTERS >= told:
            told = int(share * QUARTERS) + 1
            logger.warning("measuring this machine's cost model: %.0f%%", 100 * share)

    return show
