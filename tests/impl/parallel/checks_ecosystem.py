"""What holds of a sharded layer among torch's own tools: meshes, plans, FSDP, optimizers, checkpoints."""

import copy
import tempfile
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checks import LAYOUT, batch, both, make, same, step
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.testing import assert_close

from zipfmax.parallel import Traffic, VocabularyParallel, shard_vocabulary

CHECKS = {}
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=False)


def check(function):
    CHECKS[function.__name__] = function
    return function


def rows_of(group, tensor):
    return tensor.chunk(dist.get_world_size(group))[dist.get_rank(group)]


@check
def rows_that_are_split_are_gathered_and_their_gradients_scattered(group):
    alone, mesh = make(ignore_index=3), DeviceMesh.from_group(group, "cpu")
    layer = shard_vocabulary(copy.deepcopy(alone), mesh, input_layouts=Shard(0))
    for shape in ((37,), (5, 3)):
        hidden, target = (t[: torch.Size(shape).numel()] for t in batch())
        hidden, target = hidden.view(*shape, -1), target.view(shape)
        expected = step(alone, hidden, target)
        with Traffic() as traffic:
            found = step(layer, rows_of(group, hidden), target)
        assert traffic.collectives == 4  # rows, statistics; sums for the projections and for the rows
        expected[2] = rows_of(group, expected[2])
        same(found, expected)
        whole = distribute_tensor(hidden, mesh, [Shard(0)])
        same([layer.predict(whole), layer.log_prob(whole)], [alone.predict(hidden), alone.log_prob(hidden)])
    even = batch(n=6 * dist.get_world_size(group))[0]
    same([layer.log_prob(rows_of(group, even))], [alone.log_prob(even)])
    with pytest.raises(RuntimeError, match="should be given rows"):
        layer(batch()[0], batch()[1])


@check
def a_plan_of_parallelize_module(group):
    mesh = DeviceMesh.from_group(group, "cpu")
    for layout in (Replicate(), Shard(0)):
        torch.manual_seed(2)
        trunk = nn.Linear(16, 16, dtype=torch.float64)
        alone = nn.ModuleDict({"trunk": trunk, "output": make()})
        model = copy.deepcopy(alone)
        parallelize_module(model, mesh, {"output": VocabularyParallel(input_layouts=layout)})
        hidden, target = batch()
        alone["output"](alone["trunk"](hidden), target).loss.backward()
        states = model["trunk"](hidden)
        given = DTensor.from_local(states, mesh, [Replicate()]).redistribute(mesh, [layout])
        _, loss = model["output"](given, DTensor.from_local(target, mesh, [Replicate()]))
        assert type(loss) is torch.Tensor
        loss.backward()
        same([p.grad for p in model["trunk"].parameters()], [p.grad for p in alone["trunk"].parameters()])


@check
def optimizers_and_the_norm_of_gradients(group):
    alone, layer = both(group, head_bias=True, absent_grads="zeros")
    layers = (layer, alone)
    optimizers = [torch.optim.AdamW(one.parameters(), lr=0.1) for one in layers]
    for seed in (1, 2, 3):
        norms = []
        for one, optimizer in zip(layers, optimizers, strict=True):
            step(one, *batch(seed=seed))
            norm = nn.utils.clip_grad_norm_(one.parameters(), 0.5)
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
            optimizer.step()
        assert_close(*norms)
    same([p.detach().full_tensor() for p in layer.parameters()], [p.detach() for p in alone.parameters()])
    state = get_optimizer_state_dict(layer, optimizers[0], options=WHOLE)["state"]
    expected = optimizers[1].state_dict()["state"]
    for place, (name, _) in enumerate(alone.named_parameters()):
        assert_close(state[name]["exp_avg"], expected[place]["exp_avg"])


@check
def fsdp_on_top(group):
    world = dist.get_world_size(group)
    mesh = init_device_mesh("cpu", (1, world), mesh_dim_names=("dp", "tp"))
    alone = make((16, 64, (10, 32), 2.0))  # FSDP2 pads no shards of shards
    layer = shard_vocabulary(copy.deepcopy(alone), mesh["tp"])
    fully_shard(layer, mesh=mesh["dp"])
    hidden, target = batch((16, 64, (10, 32), 2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # FSDP's, of results that are views
        same(step(layer, hidden, target), step(alone, hidden, target))
    with pytest.raises(RuntimeError, match="register_fsdp_forward_method"):
        layer.log_prob(hidden)


@check
def whole_state_dicts_are_those_of_torchs_layer(group):
    alone, layer = both(group)
    state = get_model_state_dict(layer, options=WHOLE)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(*LAYOUT, dtype=torch.float64)
    theirs.load_state_dict(state)
    hidden, target = batch()
    same([*theirs(hidden, target)], [*alone(hidden, target)])
    other = make(seed=4)
    set_model_state_dict(layer, other.state_dict(), options=WHOLE)
    same([p.detach().full_tensor() for p in layer.parameters()], [p.detach() for p in other.parameters()])
    layer.load_state_dict(shard_vocabulary(copy.deepcopy(alone), group).state_dict())
    same([p.detach().full_tensor() for p in layer.parameters()], [p.detach() for p in alone.parameters()])
    assert torch.equal(layer.to_torch().head.weight, alone.head.weight)


@check
def a_checkpoint_of_one_number_of_ranks_loads_in_another(group):
    alone, layer = both(group)
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder, group=group, group_src=0)
    warnings.simplefilter("ignore", UserWarning)
    dcp.save(layer.state_dict(), checkpoint_id=f"{folder[0]}/many", process_group=group)
    for fresh in (make(seed=5), nn.AdaptiveLogSoftmaxWithLoss(*LAYOUT, dtype=torch.float64)):
        state = fresh.state_dict()
        dcp.load(state, checkpoint_id=f"{folder[0]}/many", no_dist=True)
        fresh.load_state_dict(state)
        same(list(fresh.parameters()), list(alone.parameters()))
    other = make(seed=6)
    if dist.get_rank(group) == 0:
        dcp.save(other.state_dict(), checkpoint_id=f"{folder[0]}/one", no_dist=True)
    dist.barrier(group)
    state = layer.state_dict()
    dcp.load(state, checkpoint_id=f"{folder[0]}/one", process_group=group)
    layer.load_state_dict(state)
    same([p.detach().full_tensor() for p in layer.parameters()], [p.detach() for p in other.parameters()])


@check
def a_layer_without_data_is_split_before_it_is_made(group):
    from zipfmax import AdaptiveLogSoftmaxWithLoss

    layer = shard_vocabulary(AdaptiveLogSoftmaxWithLoss(*LAYOUT, device="meta", dtype=torch.float64), group)
    held = sum(p.to_local().numel() for p in layer.parameters())
    assert held < layer.layout.parameter_count()
    layer.to_empty(device="cpu")
    torch.manual_seed(dist.get_rank(group))
    layer.reset_parameters()
    whole = {name: p.detach().full_tensor() for name, p in layer.named_parameters()}
    mine = layer.tail[0][0].weight.to_local()
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    assert all(torch.equal(mine, other) for other in everyone)
    alone = make()
    alone.load_state_dict(whole)
    bound = LAYOUT[0] ** -0.5
    assert bound / 2 < alone.head.weight.abs().max() <= bound
    same(step(layer, *batch()), step(alone, *batch()))


@check
def copies_modes_and_names(group):
    alone, layer = both(group)
    hidden, target = batch()
    again = copy.deepcopy(layer)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            same([*again(hidden, target)], [*alone(hidden, target)])
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    assert f"rank={rank} of {world}" in repr(layer)
    assert isinstance(layer, nn.AdaptiveLogSoftmaxWithLoss)
    assert type(layer).__name__ == "ShardedAdaptiveLogSoftmaxWithLoss"
    weights = layer.weights()
    assert weights.head.data_ptr() == layer.head.weight.to_local().data_ptr()
    with pytest.raises(RuntimeError, match="expected inputs whose last dimension"):
        layer(hidden[:, :3], target)
