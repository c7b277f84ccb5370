"""Whether a torch module's own methods, which training loops and larger models call, do what torch.nn.Module's do."""

from __future__ import annotations

from torch import Tensor, nn

PREFIX = "model.output."


def fault(module: nn.Module, hidden: Tensor, target: Tensor) -> str | None:
    """Which method does something else; None where none does. Mode and gradients are as before afterwards.

    Args:
        hidden: [N, d] with N > 1.
        target: [N]
    """
    mode, gradients = module.training, {name: one.grad for name, one in module.named_parameters()}
    try:
        return _of_modes(module) or _of_state(module) or _of_zero_grad(module, hidden, target)
    finally:
        nn.Module.train(module, mode)
        for name, one in module.named_parameters():
            one.grad = gradients[name]


def _of_modes(module: nn.Module) -> str | None:
    for name, called, training in (("eval", module.eval, False), ("train", module.train, True)):
        if called() is not module:
            return f"{name}() does not return the module"
        if any(part.training != training for part in module.modules()):
            return f"{name}() leaves a submodule in the other mode"
    return None


def _of_state(module: nn.Module) -> str | None:
    """A module that holds this one asks with a prefix; optimizers and checkpoints write into what they are given."""
    parameters = dict(nn.Module.named_parameters(module))
    if [id(one) for one in module.parameters()] != [id(one) for one in parameters.values()]:
        return "parameters() gives others than are registered"
    named = {name: id(one) for name, one in module.named_parameters(PREFIX.rstrip("."))}
    if named != {PREFIX + name: id(one) for name, one in parameters.items()}:
        return "named_parameters(prefix) gives others than are registered"
    kept = module.state_dict(prefix=PREFIX, keep_vars=True)
    if missing := [name for name, one in parameters.items() if kept.get(PREFIX + name) is not one]:
        return f"state_dict(prefix, keep_vars=True) does not hold the parameter {missing[0]}"
    plain = module.state_dict()
    for name, one in parameters.items():
        if name not in plain or plain[name].untyped_storage().data_ptr() != one.untyped_storage().data_ptr():
            return f"state_dict() does not hold the memory of {name}"
    return None


def _of_zero_grad(module: nn.Module, hidden: Tensor, target: Tensor) -> str | None:
    for set_to_none in (False, True):
        module(hidden, target)[1].backward()
        module.zero_grad(set_to_none=set_to_none)
        for name, one in module.named_parameters():
            if one.grad is not None and (set_to_none or one.grad.any()):
                return f"zero_grad(set_to_none={set_to_none}) leaves a gradient of {name}"
    return None
