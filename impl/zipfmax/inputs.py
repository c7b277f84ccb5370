"""What a call of the layer is given: the checks, in torch.nn's words where it has some, and the casting."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zipfmax.submodules import Called
from zipfmax.weights import Weights


def check_width(input: Tensor, in_features: int) -> None:
    """Raise RuntimeError unless `input` is [..., in_features]."""
    if input.dim() == 0 or input.size(-1) != in_features:
        raise RuntimeError(
            f"expected inputs whose last dimension is in_features={in_features}, "
            f"but found inputs with size {input.size()}"
        )


def check_input(input: Tensor, weight: Tensor) -> None:
    """Raise RuntimeError unless `input` [..., d] goes with the head's weight [head_size, d]."""
    check_width(input, weight.size(1))
    if input.device != weight.device:
        raise RuntimeError(f"inputs are on {input.device}, but the layer's weights are on {weight.device}")
    if input.dtype != weight.dtype and not _is_autocast(input):
        raise RuntimeError(f"inputs are {input.dtype}, but the layer's weights are {weight.dtype}")


def check_target(input: Tensor, target: Tensor) -> None:
    """Raise RuntimeError unless `target` [...] goes with `input` [..., d], TypeError for other types."""
    check_tensor("input_", input)
    check_tensor("target_", target)
    if target.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"targets should be int64 or int32, but found {target.dtype}")
    if target.device != input.device:
        raise RuntimeError(f"targets are on {target.device}, but inputs are on {input.device}")
    if target.dim() == 0:
        if input.dim() != 1:
            raise RuntimeError(
                f"0D target tensor expects 1D input tensors, but found inputs with size {input.size()}"
            )
        return
    if input.dim() == 0 or input.size(0) != target.size(0):
        raise RuntimeError("Input and target should have the same size in the batch dimension.")
    if target.dim() == 1 and input.dim() != 2:
        raise RuntimeError(
            f"1D target tensor expects 2D input tensors, but found inputs with size {input.size()}"
        )
    if input.shape[:-1] != target.shape:
        raise RuntimeError(
            "Input and target should have the same size in the batch dimension. "
            f"Found inputs with size {input.size()} and targets with size {target.size()}"
        )


def check_tensor(name: str, given: object) -> None:
    """Raise TypeError unless an argument is a tensor."""
    if not isinstance(given, Tensor):
        hint = "; torch.from_numpy makes one" if type(given).__module__ == "numpy" else ""
        raise TypeError(f"{name} should be a Tensor, but found {type(given).__name__}{hint}")


def check_out(
    hidden: Tensor, parameters: Iterable[Tensor], out: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Raise RuntimeError unless results of that shape and dtype can be written to `out`, TypeError for no tensor."""
    check_tensor("out", out)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (hidden, out, *parameters)):
        raise RuntimeError(
            "log_prob(): out=... does not support automatic differentiation, but an argument requires grad; "
            "call it under torch.no_grad()"
        )
    expected = (torch.Size(shape), dtype, hidden.device)
    if (out.shape, out.dtype, out.device) != expected or not out.is_contiguous():
        raise RuntimeError(
            f"out should be contiguous, {dtype} of size {expected[0]} on {hidden.device}, "
            f"but found {out.dtype} of size {out.size()} on {out.device}"
        )


class Operands(NamedTuple):
    """What a call computes on."""

    hidden: Tensor
    """[N, d]"""
    scorer: Weights | Called
    """Weights of hidden's dtype, or submodules that do their own casting."""
    dtype: torch.dtype
    """Of the results: the input's; float32 under autocast, as its log_softmax and losses are on a GPU."""
    context: AbstractContextManager[Any]
    """To compute in: casting is done already."""


def operands(input: Tensor, weights: Weights) -> Operands:
    """Rows and weights of one dtype from what `check_input` let pass."""
    hidden = _rows(input)
    if not _is_autocast(input) or weights.head.dtype == torch.float64:
        return Operands(hidden, weights, input.dtype, _AS_IT_IS)
    device_type = input.device.type
    dtype = torch.get_autocast_dtype(device_type)
    cast_weights = weights.map(lambda tensor: tensor.to(dtype))
    return Operands(hidden.to(dtype), cast_weights, torch.float32, torch.autocast(device_type, enabled=False))


def operands_of_called(input: Tensor, called: Called) -> Operands:
    """Rows for submodules that are called."""
    dtype = torch.float32 if _is_autocast(input) else input.dtype
    return Operands(_rows(input), called, dtype, _AS_IT_IS)


_AS_IT_IS = nullcontext()


def _rows(input: Tensor) -> Tensor:
    """[..., d] as [N, d]."""
    return input if input.dim() == 2 else input.reshape(-1, input.size(-1))


def _is_autocast(input: Tensor) -> bool:
    """Whether autocast takes this tensor: it is on for the device, and leaves float64 alone."""
    device_type = input.device.type
    # Under torch.compile the question is skipped: torch 2.11 cannot trace it.
    if (
        device_type not in ("cpu", "cuda")
        and not torch.compiler.is_compiling()
        and not torch.amp.is_autocast_available(device_type)
    ):
        return False  # meta tensors, for one
    return torch.is_autocast_enabled(device_type) and input.dtype != torch.float64
