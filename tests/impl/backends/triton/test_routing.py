"""Routing against a stable sort on the host."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from zipfmax.backends.triton.routing import SLOT_TILE, route


@pytest.mark.parametrize("n_rows", [1, 127, 128, 1023, 1024, 1025, 2500, 31745])
@pytest.mark.parametrize("ignore_index", [None, 40])
def test_rows_are_partitioned_stably(n_rows: int, ignore_index: int | None, device: torch.device) -> None:
    bounds = (10, 40, 41, 300)
    target = torch.randint(0, 300, (n_rows,), generator=torch.Generator().manual_seed(n_rows)).to(device)
    routes = route(target, bounds, ignore_index)
    start = 0
    for cluster, (low, high) in enumerate(pairwise(bounds)):
        member = (target >= low) & (target < high)
        if ignore_index is not None:
            member &= target != ignore_index
        rows = member.nonzero().squeeze(1)
        end = start + -(-len(rows) // SLOT_TILE) * SLOT_TILE
        assert routes.start[cluster] == start
        assert routes.rows[cluster] == len(rows)
        assert torch.equal(routes.row[start : start + len(rows)].long(), rows)
        assert torch.equal(routes.target[start : start + len(rows)].long(), target[rows] - low)
        assert (routes.row[start + len(rows) : end] == -1).all()
        start = end
    counted = n_rows if ignore_index is None else int((target != ignore_index).sum())
    assert routes.totals[0] == counted
    assert routes.totals[1] == 1


@pytest.mark.parametrize("wrong", [-1, 300, 2**40])
def test_a_wrong_target_is_reported(wrong: int, device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("a device-side assertion ends the process's CUDA context: see test_module_cuda.py")
    with pytest.raises(RuntimeError, match=r"Target values should be in \[0, 299\]"):
        route(torch.tensor([5, wrong, 20]), (10, 300), None)
