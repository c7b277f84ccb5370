"""What one run does, counted and not timed: the same whenever the same code runs, so a gate can be exact."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from zipfmax_bench import flops
from zipfmax_bench.memory import peak_temporary_bytes
from zipfmax_bench.messages import Work

# Operations whose result the host needs before it can go on.
_READS_BACK = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "is_nonzero"}
_READS_BACK_IF_MASKED = {"index", "index_put", "index_put_", "_index_put_impl_"}
_CUDA = torch._C._autograd.DeviceType.CUDA


def count(run: Callable[[], None], device: str) -> Work:
    """Memory and work of one run; nothing for a run that dispatches no torch operation, such as Paddle's.

    Args:
        run: does the task once.
        device: where. On a GPU kernels are counted from the profiler's record and synchronisations by CUDA's
            sync-debug mode. On a CPU, `launches` are torch operations that are no views, and
            `synchronisations` those of them that would wait for a GPU.
    """
    run()  # what only the first run of a process does is not counted
    calls = _Calls()
    delegates = _Delegates()
    with calls, delegates:
        run()
    if not calls.operations:
        return Work()
    on_gpu = torch.device(device).type == "cuda"
    return Work(
        peak_bytes=peak_temporary_bytes(run, device),
        flops=flops.counted(run),
        launches=_kernels(run) if on_gpu else calls.operations.total(),
        synchronisations=waits(run) if on_gpu else calls.reads_back,
        # Kernels that are launched past the dispatcher are not seen on a GPU.
        all_counted=not on_gpu and calls.namespaces <= {"aten", "prim", "prims"},
        delegates=delegates.found,
    )


class _Delegates:
    """Notices whether torch.nn's own layer does the work within it."""

    _LAYER = torch.nn.AdaptiveLogSoftmaxWithLoss
    _METHODS = ("forward", "log_prob", "predict")

    def __init__(self) -> None:
        self.found: str | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for name in self._METHODS:
            self._stack.enter_context(mock.patch.object(self._LAYER, name, self._noting(name)))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _noting(self, name: str) -> Callable[..., Any]:
        method = getattr(self._LAYER, name)

        def noting(*arguments: Any, **keywords: Any) -> Any:
            self.found = f"torch.nn.{self._LAYER.__name__}"
            return method(*arguments, **keywords)

        return noting


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that reach torch's dispatcher, and those that the host waits for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: Counter[str] = Counter()
        self.reads_back = 0
        self.namespaces: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not func.is_view:
            name = func.overloadpacket.__name__
            self.namespaces.add(func.namespace)
            self.operations[name] += 1
            self.reads_back += name in _READS_BACK or (name in _READS_BACK_IF_MASKED and _has_mask(args))
        return func(*args, **(kwargs or {}))


def _has_mask(args: tuple[Any, ...]) -> bool:
    """Whether an indexing operation selects by a boolean tensor, whose true entries must be counted."""
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _kernels(run: Callable[[], None]) -> int:
    """Kernels that one run launches; copies and fills by the driver are not among them."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], acc_events=True) as profiler:
        run()
        torch.cuda.synchronize()
    return sum(
        event.device_type == _CUDA and not event.name.startswith(("Memcpy", "Memset"))
        for event in profiler.events()
    )


def waits(run: Callable[[], None]) -> int:
    """Times that one run makes the host wait for the device."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
