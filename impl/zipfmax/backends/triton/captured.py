"""Small training steps as CUDA graphs of the layer's own, so that one launch takes the place of fifteen.

A step whose kernels take 0.2 ms takes the host 0.7 ms to launch, in eager loops and in compiled ones. A step that
came `AFTER` times with the same shapes, and with its weights at the same addresses, is therefore captured once and
replayed from then on: the input and the targets are copied into memory of the graph, results are copied out. The
graph reads the weights where they lie, so it sees every update of them.

The gradients stay in the graph's memory until backward scales them into new tensors, or until nothing can ask for
them any more. Until then a `Lease` is alive, and another step of these shapes is launched without the graph.

A graph keeps its memory, temporaries included. `set_graph_memory` bounds what all of them keep beside the workspace
of the vendor's library (32 MiB on Hopper, one a stream); a step that needs more is never captured. Steps inside a
capture of the user's, under a profiler's hooks, or inside a backward (activation checkpointing) are launched.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from zipfmax.backends.triton.step import Result, Shapes, StepPlan

AFTER = 5
"""Steps launched one by one before one is captured: more than the warm-up of torch.cuda.make_graphed_callables."""

_MOST_CAPTURES = 4
"""Of one plan: weights that move at every step (FSDP) are not worth capturing again and again."""

_MOST_SEEN = 64


class Lease:
    """Alive as long as someone may read the gradients in a graph's memory."""

    __slots__ = ("__weakref__",)


class CapturedStep:
    """One step as a graph, with the memory that it reads and writes.

    Args:
        plan: of contiguous hidden states at multiples of 16 bytes.
        hidden, target: of a step.
        weights: whose addresses the graph keeps.
    """

    def __init__(self, plan: StepPlan, hidden: Tensor, target: Tensor, weights: Sequence[Tensor]) -> None:
        self.n_bytes = plan.held_bytes
        self._lease: weakref.ref[Lease] | None = None
        inputs, self._result, self._replay = _capture(
            lambda hidden, target: plan.run(hidden, target, weights, None), hidden.contiguous(), target
        )
        self._hidden, self._target = inputs

    @property
    def is_leased(self) -> bool:
        """Whether the gradients of the last run may still be asked for."""
        return self._lease is not None and self._lease() is not None

    def run(self, hidden: Tensor, target: Tensor) -> Result:
        """The step on this batch. Gradients and factor lie in the graph's memory, for the lease's holder to copy."""
        self._hidden.copy_(hidden)
        self._target.copy_(target)
        self._replay()
        lease = Lease()
        self._lease = weakref.ref(lease)
        found = self._result
        return found._replace(output=found.output.clone(), loss=found.loss.clone(), lease=lease)


class Graphs:
    """The graphs that are kept, and which steps came how often.

    Args:
        limit_bytes: bound on the memory of all graphs; the least recently used ones are dropped.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[Hashable, CapturedStep] = OrderedDict()
        self._seen: dict[Hashable, int] = {}
        self._captures: dict[Shapes, int] = {}
        self._paused = 0
        self._lock = threading.Lock()

    @property
    def n_bytes(self) -> int:
        """What the graphs keep."""
        return sum(step.n_bytes for step in self._kept.values())

    def find(
        self,
        shapes: Shapes,
        plan_for: Callable[[Shapes], StepPlan],
        hidden: Tensor,
        target: Tensor,
        weights: Sequence[Tensor],
    ) -> CapturedStep | None:
        """The graph of this step, captured now if it is due; None where the step is to be launched."""
        stream = self._stream(shapes)
        if stream is None:
            return None
        places = tuple([weight.data_ptr() for weight in weights])
        if any(place & 15 for place in places):
            return None  # the graph's launches are those of aligned tensors
        key = (shapes, places, stream, threading.get_ident(), *_product_settings())
        with self._lock:
            step = self._kept.get(key)
            if step is not None:
                self._kept.move_to_end(key)
                return None if step.is_leased else step
            if not self._is_due(key, shapes):
                return None
            plan = plan_for(shapes._replace(stride=shapes.d, aligned=True))
            if plan.held_bytes > self.limit_bytes:
                self._captures[shapes] = _MOST_CAPTURES
                return None
            self._make_room(plan.held_bytes)
            try:
                step = CapturedStep(plan, hidden, target, weights)
            except RuntimeError as error:
                self.limit_bytes = 0
                warnings.warn(
                    f"a training step of AdaptiveLogSoftmaxWithLoss could not be captured as a CUDA graph, so this "
                    f"process launches every step: {error}",
                    stacklevel=2,
                )
                return None
            self._kept[key] = step
            return step

    def _stream(self, shapes: Shapes) -> int | None:
        """The stream to replay on, or None where a graph is out of place."""
        if (
            not self.limit_bytes
            or self._paused
            or shapes.device.type != "cuda"
            or torch.version.hip
            or torch._C._len_torch_dispatch_stack()
        ):
            return None
        if torch._C._current_graph_task_id() != -1 or torch.cuda.is_current_stream_capturing():
            return None
        # Here, because it needs Triton, which setting the bound does not.
        from zipfmax.backends.triton.launch import raw_stream

        return raw_stream(shapes.device)

    def _is_due(self, key: Hashable, shapes: Shapes) -> bool:
        if self._captures.get(shapes, 0) >= _MOST_CAPTURES:
            return False
        if len(self._seen) >= _MOST_SEEN and key not in self._seen:
            self._seen.clear()
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        if seen <= AFTER:
            return False
        del self._seen[key]
        self._captures[shapes] = self._captures.get(shapes, 0) + 1
        return True

    def _make_room(self, n_bytes: int) -> None:
        while self._kept and self.n_bytes + n_bytes > self.limit_bytes:
            self._kept.popitem(last=False)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Launch every step meanwhile, and keep the graphs: to see what a step allocates."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def limit(self, limit_bytes: int) -> None:
        """Set the bound; graphs beyond it are dropped now."""
        with self._lock:
            self.limit_bytes = limit_bytes
            self._captures.clear()
            self._make_room(0)


graphs = Graphs(256 * 2**20)


def set_graph_memory(n_bytes: int) -> None:
    """Bound the GPU memory that captured training steps keep, in bytes a process; 0 captures none and frees all.

    The layer captures small training steps (input, temporaries and gradients within this bound, 256 MiB unless
    set) as CUDA graphs after their shapes came five times, which takes most of the host's time off them.

    Raises:
        ValueError: a negative number.
    """
    if n_bytes < 0:
        raise ValueError(f"the graphs' memory should be at least 0 bytes, got {n_bytes}")
    graphs.limit(n_bytes)


def _product_settings() -> tuple[Hashable, ...]:
    """What decides which product the vendor's library takes, beside shapes: a graph keeps the choice."""
    return (
        torch._C._get_cublas_allow_bf16_reduced_precision_reduction(),
        torch._C._get_cublas_allow_fp16_reduced_precision_reduction(),
        torch.are_deterministic_algorithms_enabled(),
    )


class _Side(NamedTuple):
    """Where captures for one stream of replays are made.

    A graph keeps the address of the workspace that the vendor's library has for its thread and its stream. torch
    drops workspaces when a graph is destroyed, and torch.compile's graphs drop all of them; the memory would then go
    to somebody else while the graph still writes to it (pytorch#193402). So the stream is none of torch's, which
    others capture on as well, and the workspace lies in a pool that is never given back.
    """

    stream: torch.cuda.ExternalStream
    pool: torch.cuda.MemPool


_sides: dict[tuple[int, int], _Side] = {}
"""By device and stream of the replays: graphs that may run at one time need a workspace each."""


def _side() -> _Side:
    """Of the current stream.

    Raises:
        RuntimeError: the driver makes no stream.
    """
    current = torch.cuda.current_stream()
    side = _sides.get((current.device_index, current.cuda_stream))
    if side is None:
        handle = ctypes.c_void_p()
        name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
        try:
            status = ctypes.CDLL(name).cuStreamCreate(
                ctypes.byref(handle), 1
            )  # not blocked by the default stream
        except OSError as error:
            raise RuntimeError(f"the CUDA driver does not load: {error}") from error
        if status:
            raise RuntimeError(f"the CUDA driver makes no stream: error {status}")
        stream = torch.cuda.ExternalStream(handle.value, current.device)
        side = _sides[current.device_index, current.cuda_stream] = _Side(stream, torch.cuda.MemPool())
    return side


def _capture(
    step: Callable[[Tensor, Tensor], Result], hidden: Tensor, target: Tensor
) -> tuple[tuple[Tensor, Tensor], Result, Callable[[], None]]:
    """Run the step once to compile it, then capture it: its inputs, its results and what replays it.

    All that the graph reads and writes but for the weights lies in memory of its own: also where the caller sends
    allocations elsewhere, as torch.compile does while it warms up. torch.cuda.graph is not used: it empties the
    allocator's cache and collects garbage first.
    """
    side, current = _side(), torch.cuda.current_stream()
    step(hidden, target)
    graph = torch.cuda.CUDAGraph()
    side.stream.wait_stream(current)
    with torch.cuda.stream(side.stream):
        with torch.cuda.use_mem_pool(side.pool):
            torch.cuda.current_blas_handle()  # makes the workspace
        side.stream.synchronize()
        # Other threads (loaders that pin memory, NCCL's watchdog) go on calling CUDA meanwhile.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            inputs = (
                torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device),
                torch.empty_like(target),
            )
            result = step(*inputs)
        finally:
            graph.capture_end()
    current.wait_stream(side.stream)
    return inputs, result, graph.replay
