"""How weights get into a torch module: written in many manners, and as state dicts that fit or do not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zipfmax_reference.contestants.tensors import is_dtensor, like, plain
from zipfmax_reference.contestants.use import Manner, Misfit
from zipfmax_reference.runs.arrays import Results


def write(module: nn.Module, weights: Results, manner: Manner) -> None:
    """Write into the parameters."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = like(parameter, weights[name])
            if manner == "copy":
                parameter.copy_(value)
            elif manner == "data" or is_dtensor(parameter):  # whose .data torch cannot replace
                parameter.data.copy_(value)
            else:
                parameter.data = _placed(value, manner)


def _placed(value: Tensor, manner: Manner) -> Tensor:
    """The same values, which lie column by column, or behind others."""
    if manner == "turn" and value.dim() == 2:
        return value.t().contiguous().t()
    if manner == "flat":
        return torch.cat([-2 * value.reshape(-1), value.reshape(-1)])[value.numel() :].view_as(value)
    return value


def load(module: nn.Module, weights: Results, assign: bool, partly: bool) -> None:
    """By load_state_dict; a part of it with strict=False."""
    own = module.state_dict()
    given = {name: like(own[name], weight) for name, weight in weights.items()}
    module.load_state_dict(given if partly else own | given, strict=not partly, assign=assign)


def takes(module: nn.Module, misfit: Misfit, name: str) -> bool:
    """Whether load_state_dict takes the module's own state dict, of which this weight does not fit."""
    state = dict(module.state_dict())
    own = state[name]
    if misfit == "missing":
        del state[name]
    elif misfit == "unexpected":
        state[f"{name}_of_another"] = own
    else:
        state[name] = plain(own).new_zeros((own.shape[0] + 1, *own.shape[1:]))
    try:
        module.load_state_dict(state)
    except Exception:  # what it raises refuses the state dict
        return False
    return True
