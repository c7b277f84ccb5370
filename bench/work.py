"""What one run does, counted and not timed: FLOPs. The same on every run, so a gate can be exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from zipfmax.bench.protocol import Work


def count(run: Callable[[], None]) -> Work:
    """Memory and work of one run; nothing for a run that dispatches no torch operation, such as Paddle's."""
    calls = _CallCounter()
    with calls:
        run()
    if calls.total == 0:
        return Work()
    flops = FlopCounterMode(display=False)
    with flops:
        run()
    return Work(flops=flops.get_total_flops())


class _CallCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that reach torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.total += 1
        return func(*args, **(kwargs or {}))
