"""One buffer a thread, reused from call to call, in which the tiled backend keeps every logit.

A fresh tensor of logits costs more in page faults than in arithmetic, so tiles are views of this buffer.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
import threading
from collections.abc import Callable

import torch
from torch import Tensor

_MADV_HUGEPAGE = 14
_HUGE_PAGE_BYTES = 2 * 2**20


class _Cache(threading.local):
    """The buffer of this thread; a thread's end frees it."""

    buffer: Tensor | None = None


_cache = _Cache()


def workspace(n_bytes: int, device: torch.device) -> Tensor:
    """At least `n_bytes` bytes, uninitialised, [*] uint8. Valid until this thread's next call.

    On a CPU the thread keeps the buffer; elsewhere torch's caching allocator does.
    """
    if device.type != "cpu" or _is_fake_mode():  # what a fake call allocates is nothing to keep
        return torch.empty(n_bytes, dtype=torch.uint8, device=device)
    if _cache.buffer is None or _cache.buffer.numel() < n_bytes:
        _cache.buffer = None  # frees the smaller one first
        with torch.inference_mode(False):  # or the buffer could not be written to outside inference mode
            _cache.buffer = empty((n_bytes,), torch.uint8, device)
    return _cache.buffer


def release() -> None:
    """Free this thread's buffer; the next call allocates one again."""
    _cache.buffer = None


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.empty` that asks the kernel for huge pages, which it hands out at a fifth of the price."""
    tensor = torch.empty(shape, dtype=dtype, device=device)
    n_bytes = tensor.numel() * tensor.element_size()
    if device.type == "cpu" and n_bytes >= _HUGE_PAGE_BYTES and not _is_fake(tensor):
        advise = _madvise()
        if advise is not None:
            start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
            stop = (tensor.data_ptr() + n_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
            advise(start, stop - start, _MADV_HUGEPAGE)  # a hint: a kernel that refuses it costs time only
    return tensor


def _is_fake_mode() -> bool:
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def _is_fake(tensor: Tensor) -> bool:
    return type(tensor) is not Tensor


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function
