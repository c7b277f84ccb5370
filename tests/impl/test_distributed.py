"""The layer sharded, split and offloaded: torch.nn's numbers, on processes of one CPU."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from zipfmax import AdaptiveLogSoftmaxWithLoss

SHAPE = (16, 60, [10, 30], 2.0)
CLASSES = {"torch.nn": nn.AdaptiveLogSoftmaxWithLoss, "zipfmax": AdaptiveLogSoftmaxWithLoss}


def make(cls):
    torch.manual_seed(0)
    return cls(*SHAPE)


def batch():
    torch.manual_seed(1)
    return torch.randn(24, 16), torch.randint(0, 60, (24,))


def root(layer, mesh):
    fully_shard(layer, mesh=mesh)
    for method in ("log_prob", "predict"):
        register_fsdp_forward_method(layer, method)


def part(layer, mesh):
    fully_shard(layer.head, mesh=mesh)
    fully_shard(layer.tail[0][1], mesh=mesh)


def every_part_and_the_root(layer, mesh):
    fully_shard(layer.head, mesh=mesh)
    for pair in layer.tail:
        fully_shard(pair, mesh=mesh)
    root(layer, mesh)


def colwise(layer, mesh):
    """Each rank holds half of every cluster's classes; logits are gathered."""
    from torch.distributed.tensor import Replicate

    parallelize_module(layer, mesh, {"head": ColwiseParallel(output_layouts=Replicate())})
    plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
    for pair in layer.tail:
        parallelize_module(pair, mesh, plan)


PLANS = {
    "root": root,
    "part": part,
    "every part and the root": every_part_and_the_root,
    "tensor parallel": colwise,
}


def _full(tensor):
    if tensor is None:
        return None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def _run(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    for plan, apply in PLANS.items():
        for name, cls in CLASSES.items():
            layer = make(cls)
            apply(layer, mesh)
            hidden, target = batch()
            optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
            output, loss = layer(hidden, target)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                kept = [output.detach(), loss.detach(), layer.log_prob(hidden), layer.predict(hidden)]
            found[plan, name] = kept + [_full(p.detach()) for p in layer.parameters()]
            if plan == "root":
                assert isinstance(layer, FSDPModule)
    layer = make(AdaptiveLogSoftmaxWithLoss)
    layer.backend = "tiled"
    part(layer, mesh)
    try:
        layer(*batch())
    except RuntimeError as error:
        found["refusal"] = str(error)
    layer = make(AdaptiveLogSoftmaxWithLoss)
    fully_shard(layer, mesh=mesh)
    try:
        layer.log_prob(batch()[0])
    except RuntimeError as error:
        found["note"] = f"{error} {error.__notes__}"
    for name, cls in CLASSES.items():
        layer = DistributedDataParallel(make(cls), find_unused_parameters=True)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        hidden, target = batch()
        layer(hidden[rank::2], target[rank::2]).loss.backward()
        optimizer.step()
        found["DDP", name] = [p.detach().clone() for p in layer.parameters()]
    if rank == 0:
        torch.save(found, results)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What two ranks found: (plan, whose layer) to the results and the parameters after a step."""
    folder = tmp_path_factory.mktemp("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2]))  # the ranks import this file by its full name
        mp.spawn(_run, args=(str(folder / "store"), str(folder / "results.pt")), nprocs=2)
    return torch.load(folder / "results.pt")


@pytest.mark.parametrize("plan", [*PLANS, "DDP"])
def test_two_ranks_give_torchs_results_and_trained_parameters(results, plan):
    theirs, ours = results[plan, "torch.nn"], results[plan, "zipfmax"]
    assert len(ours) == len(theirs) > 4
    for found, expected in zip(ours, theirs, strict=True):
        assert_close(found, expected)
    alone = make(nn.AdaptiveLogSoftmaxWithLoss)
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.5)
    alone(*batch()).loss.backward()
    optimizer.step()
    for found, expected in zip(ours[-len(list(alone.parameters())) :], alone.parameters(), strict=True):
        assert_close(found, expected)


def test_a_named_backend_names_the_sharded_submodule(results):
    assert "backend 'tiled' cannot serve this layer" in results["refusal"]
    assert "submodule 'head' is a " in results["refusal"]


def test_a_method_that_fsdp_was_not_told_of_names_the_submodule(results):
    assert "torch.Tensor and DTensor" in results["note"]
    assert "raised by submodule 'head' of AdaptiveLogSoftmaxWithLoss" in results["note"]
