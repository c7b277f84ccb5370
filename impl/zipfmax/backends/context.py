"""In what a call runs: torch's function transforms, tracers and fake tensors, which few operators survive.

Asked once a call, so each question is a few hundred nanoseconds where nothing of the kind is active.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

_FAKE = torch._C._TorchDispatchModeKey.FAKE
_PROXY = torch._C._TorchDispatchModeKey.PROXY


TRANSFORM = "a torch.func transform"


def _compiles_a_transform() -> bool:
    """Whether torch.compile is inside a transform: it takes the question itself for a tensor's operation."""
    return torch._C._functorch.peek_interpreter_stack() is not None


# As torch.compiler.assume_constant_result does, which would import the compiler, a second and a half.
_compiles_a_transform._dynamo_marked_constant = True  # type: ignore[attr-defined]


def plain_operations_only() -> str | None:
    """What is active that only plain differentiable torch operations serve, or None.

    That is: function transforms (torch.func.grad, vjp, jvp, vmap and what is built of them), forward-mode
    automatic differentiation, torch.jit.trace, torch.export.
    """
    if torch.compiler.is_compiling():
        if torch.compiler._is_exporting_flag:
            return "torch.export"
        return TRANSFORM if _compiles_a_transform() else None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return TRANSFORM
    if forward_ad._current_level >= 0:
        return "forward-mode automatic differentiation"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    return None


def is_traced(hidden: Tensor) -> bool:
    """Whether a call is recorded or only shaped, and so must be one operator: compile, make_fx, fake mode."""
    return torch.compiler.is_compiling() or _is_recorded_or_fake(hidden)


def cannot_read(values: Tensor) -> bool:
    """Whether Python cannot branch on these values, or a recording would keep the branch of one example."""
    if torch.compiler.is_compiling():
        return plain_operations_only() is not None
    return torch._C._get_tracing_state() is not None or _is_recorded_or_fake(values) or is_batched(values)


def _is_recorded_or_fake(tensor: Tensor) -> bool:
    if type(tensor) is not Tensor and type(tensor) is not torch.nn.Parameter:
        from torch._subclasses.fake_tensor import FakeTensor

        if isinstance(tensor, FakeTensor):
            return True
    if torch._C._len_torch_dispatch_stack() == 0:
        return False
    return any(torch._C._get_dispatch_mode(key) is not None for key in (_FAKE, _PROXY))


def is_differentiated(*upstream: Tensor | None) -> bool:
    """Whether a backward with these incoming gradients is itself differentiated or batched.

    That is under create_graph=True and is_grads_batched=True.
    """
    return torch.is_grad_enabled() or any(g is not None and is_batched(g) for g in upstream)


def is_batched(tensor: Tensor) -> bool:
    """Whether vmap hides a dimension of it, at any level of nested transforms."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return bool(functorch.is_legacy_batchedtensor(tensor))
