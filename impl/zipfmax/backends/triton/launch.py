"""A launch made once and repeated: grid and constants are fixed, a step fills in addresses.

The first call goes through Triton's JITFunction, on tensors, and keeps the handle of what it compiled. Later
calls use the handle with plain addresses, which takes a third of the time on the host. A step falls back to
JITFunction wherever the handle does not do: under the interpreter, on tensors without data, with launch hooks
(profilers), or for a Triton whose handle is called otherwise.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor

_HANDLE_ARGUMENTS = ["self", "gridX", "gridY", "gridZ", "stream", "function"]


class Launch:
    """One kernel on one grid.

    Args:
        kernel: a `triton.jit` function whose constexpr parameters come last.
        grid: programs along one or two axes.
        constants: the constexpr parameters by name; other entries are compiler options.
    """

    __slots__ = ("_constants", "_grid", "_handle", "_kernel", "_options")

    def __init__(self, kernel: Any, grid: tuple[int, ...], constants: Mapping[str, Any]) -> None:
        self._kernel = kernel
        self._grid = (*grid, 1, 1)[:3]
        names = [name for name in kernel.arg_names if name in constants]
        assert names == kernel.arg_names[len(kernel.arg_names) - len(names) :], "constants come last"
        self._constants = tuple(constants[name] for name in names)
        self._options = {key: value for key, value in constants.items() if key not in names}
        self._handle: tuple[Any, Any, Any] | None = None

    @property
    def ready(self) -> bool:
        """Whether the kernel can be launched by its handle."""
        return self._handle is not None

    def __call__(self, stream: int | None, *arguments: Any) -> None:
        """Launch.

        Args:
            stream: the raw stream, with addresses for arguments; None where the arguments are tensors.
            arguments: those before the constants, in order.
        """
        if stream is None:
            compiled = self._kernel[self._grid](*arguments, *self._constants, **self._options)
            if self._handle is None:
                self._handle = _handle(compiled)
        else:
            run, function, metadata = self._handle  # type: ignore[misc]
            run(*self._grid, stream, function, metadata, None, None, None, *arguments, *self._constants)


def _handle(compiled: Any) -> tuple[Any, Any, Any] | None:
    """What launches a compiled kernel, or None where there is nothing or its interface is unknown."""
    run = getattr(compiled, "run", None)
    if run is None or not hasattr(compiled, "packed_metadata"):
        return None
    if list(inspect.signature(type(run).__call__).parameters)[:6] != _HANDLE_ARGUMENTS:
        return None
    return run, compiled.function, compiled.packed_metadata


def raw_stream(device: torch.device) -> int | None:
    """The current stream of the device for launches by handle, or None where JITFunction must launch."""
    if device.type != "cuda" or _hooked():
        return None
    return int(torch._C._cuda_getCurrentRawStream(device.index))


def _hooked() -> bool:
    """Whether someone listens to launches: handles are launched without the hooks."""
    if not hasattr(triton, "knobs"):
        return True  # an older Triton, which keeps its hooks elsewhere
    runtime = triton.knobs.runtime
    for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        # A chain of hooks, empty unless one was added, or in older versions the hook itself.
        if hook is not None and getattr(hook, "calls", True):
            return True
    return False


class Memory:
    """One allocation cut into pieces, each aligned to 256 bytes; cut once, filled in at every step."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, torch.dtype, tuple[int, ...]]] = []
        self._offsets: list[int] = []
        self.n_bytes = 0
        """Of the allocation."""

    def add(self, dtype: torch.dtype, *shape: int) -> int:
        """Reserve a piece; returns its position in the list that `addresses` and `tensors` make."""
        n = dtype.itemsize
        for size in shape:
            n *= size
        self._pieces.append((n, dtype, shape))
        self._offsets.append(self.n_bytes)
        self.n_bytes += -(-n // 256) * 256
        return len(self._pieces) - 1

    def allocate(self, device: torch.device) -> Tensor:
        """The memory, uninitialised."""
        return torch.empty(self.n_bytes, dtype=torch.uint8, device=device)

    def addresses(self, buffer: Tensor) -> list[int]:
        """Where each piece begins."""
        base = buffer.data_ptr()
        return [base + offset for offset in self._offsets]

    def tensors(self, buffer: Tensor) -> list[Tensor]:
        """Each piece as a tensor."""
        return [
            buffer[offset : offset + n].view(dtype).view(shape)
            for offset, (n, dtype, shape) in zip(self._offsets, self._pieces, strict=True)
        ]
