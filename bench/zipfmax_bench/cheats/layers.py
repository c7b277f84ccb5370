"""Layers that cheat without touching anything but their arguments and results.

Each is right when it is checked before it is timed.
"""

from __future__ import annotations

import copy
import sys
import threading
import time
from typing import Any

import torch
from torch import Tensor

from zipfmax_bench.cheats.honest import Fused, Known, Plain, Result

HONEST_CALLS = 3
"""Calls in which a layer that waits for the timing to begin is right."""


class CachedByAddress(Fused):
    """Keeps results by the address and version of its arguments."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._results: dict[Any, Known] = {}

    def known(self, input: Tensor, target: Tensor) -> Known:
        """From the cache where it is there."""
        key = self.key(input, target)
        if key not in self._results:
            self._results[key] = super().known(input, target)
        return self._results[key]

    def key(self, input: Tensor, target: Tensor) -> Any:
        """What a batch is recognised by."""
        return input.data_ptr(), input._version, target.data_ptr(), target._version


class CachedByContent(CachedByAddress):
    """Keeps results by what its arguments hold."""

    def key(self, input: Tensor, target: Tensor) -> Any:
        """Some of the numbers."""
        return hash(input.detach()[:2].numpy().tobytes()), hash(target.numpy().tobytes())


class RightOnTheFirstBatch(CachedByAddress):
    """Gives the first batch's results to every batch."""

    def key(self, input: Tensor, target: Tensor) -> Any:
        """The same for all."""
        return len(target)


class Waiting(Fused):
    """Is right in its first calls."""

    calls = 0

    def known(self, input: Tensor, target: Tensor) -> Known:
        """Right at first, then something else."""
        self.calls += 1
        if self.calls <= HONEST_CALLS:
            return self.right(input, target)
        return self.wrong(input, target)

    def right(self, input: Tensor, target: Tensor) -> Known:
        """What is computed honestly."""
        return super().known(input, target)

    def wrong(self, input: Tensor, target: Tensor) -> Known:
        """What is given in its place."""
        raise NotImplementedError


class PreviousResults(Waiting):
    """Computes every other call, and gives the last call's results in between."""

    def right(self, input: Tensor, target: Tensor) -> Known:
        """Kept for the next call."""
        self._last = super().right(input, target)
        return self._last

    def wrong(self, input: Tensor, target: Tensor) -> Known:
        """The last results, or new ones."""
        return self._last if self.calls % 2 else self.right(input, target)


class SkipsBackward(Waiting):
    """Leaves gradients of zero in every other call."""

    def wrong(self, input: Tensor, target: Tensor) -> Known:
        """Only the loss."""
        if self.calls % 2:
            return self.right(input, target)
        with torch.no_grad():
            output, loss = Plain.forward(self, input, target)
        return Known(output, loss, tuple(torch.zeros_like(leaf) for leaf in (input, *self.parameters())))


class FirstRows(Waiting):
    """Computes an eighth of the rows and repeats them."""

    def wrong(self, input: Tensor, target: Tensor) -> Known:
        """Results of the first rows for all."""
        few = max(1, len(target) // 8)
        output, loss, (grad_input, *others) = self.right(input[:few], target[:few])
        times = -(-len(target) // few)
        rows = grad_input.repeat(times, 1)[: len(target)] / times
        return Known(output.repeat(times)[: len(target)], loss, (rows, *others))


class LowPrecision(Waiting):
    """Computes in bfloat16."""

    def wrong(self, input: Tensor, target: Tensor) -> Known:
        """The same, rounded."""
        low = copy.deepcopy(self).bfloat16()
        output, loss, gradients = low.right(input.bfloat16(), target)
        return Known(output.float(), loss.float(), tuple(gradient.float() for gradient in gradients))


class WatchesTheTimer(RightOnTheFirstBatch):
    """Looks whether a timer calls it, and computes only if none does."""

    def key(self, input: Tensor, target: Tensor) -> Any:
        """The same for all batches that are timed."""
        frame = sys._getframe()
        while frame.f_back is not None:
            frame = frame.f_back
            if frame.f_code.co_name == "_sample":
                return None
        return input.data_ptr(), len(self._results)


class ZeroesTheTarget(Plain):
    """Leaves a target of zeros, whose rows need no tail, to the next run."""

    def forward(self, input: Tensor, target: Tensor) -> Any:
        """As torch.nn's."""
        result = super().forward(input, target)
        target.zero_()
        return result


class ChangesTheInput(Plain):
    """Leaves another input to the next run."""

    def forward(self, input: Tensor, target: Tensor) -> Any:
        """As torch.nn's."""
        result = super().forward(input, target)
        input.data = torch.zeros_like(input)
        return result


class Later(Tensor):
    """A tensor that is computed when something is done with it."""

    compute: Any

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, then do it."""
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        return func(*(arg.compute() if isinstance(arg, Later) else arg for arg in args), **(kwargs or {}))


class Lazy(Plain):
    """Returns tensors that are computed when they are read."""

    def forward(self, input: Tensor, target: Tensor) -> Any:
        """Two tensors without values."""
        if torch.is_grad_enabled():
            return super().forward(input, target)
        whole: list[Any] = []

        def result(position: int) -> Any:
            with torch.no_grad():
                whole[:] = whole or Plain.forward(self, input, target)
            return whole[position]

        made = [torch.zeros(len(target)).as_subclass(Later), torch.zeros(()).as_subclass(Later)]
        for position, later in enumerate(made):
            later.compute = lambda position=position: result(position)
        return Result(*made)


class InTheBackground(Plain):
    """Returns at once, and fills in the results from a thread."""

    calls = 0

    def forward(self, input: Tensor, target: Tensor) -> Any:
        """Empty tensors."""
        if torch.is_grad_enabled():
            return super().forward(input, target)
        made = Result(torch.zeros(len(target)), torch.zeros(()))

        def fill() -> None:
            time.sleep(0.02)  # as a larger layer would take
            with torch.no_grad():
                output, loss = Plain.forward(self, input, target)
                made.output.copy_(output)
                made.loss.copy_(loss)

        thread = threading.Thread(target=fill)
        thread.start()
        self.calls += 1
        if self.calls <= HONEST_CALLS:
            thread.join()
        return made


class MoreThreads(Plain):
    """Computes with more threads than it was given."""

    def forward(self, input: Tensor, target: Tensor) -> Any:
        """As torch.nn's."""
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().forward(input, target)
