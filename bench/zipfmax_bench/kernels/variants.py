"""Every kernel variant that the tile table can lead to, found without a GPU.

The launches of real steps are recorded on tensors without storage ("meta"), so a variant has the very
constants, flags and alignments that the launcher would pass, and nothing is listed twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from zipfmax.backends.triton import scaling, tail_forward, tiles
from zipfmax.backends.triton.all_classes import log_prob_step
from zipfmax.backends.triton.best_class import predict_step
from zipfmax.backends.triton.loss import row_weights
from zipfmax.backends.triton.operators import pack
from zipfmax.backends.triton.step import nll_step
from zipfmax.weights import TailWeights, Weights

WIDTHS = (16, 32, 64, 128, 256, 512)
"""Projection sizes that have tiles of their own."""

BETWEEN = (5, 48, 300)
"""Projection sizes that need masks, each with the tile of a width above."""

# dtype, and torch's precision of float32 products.
_ARITHMETICS = (
    (torch.bfloat16, "highest"),
    (torch.float16, "highest"),
    (torch.float32, "highest"),
    (torch.float32, "high"),
)

_POINTER = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}

# In no variant's name: they do not tell two of them apart.
_DULL = ("BOUNDS", "N_CLUSTERS", "COLUMNS", "SLOTS", "UPCAST", "CHUNK", "TILE", "CLUSTER", "MESSAGE", "COPY")

TOGETHER = ((256, 64), (256, 64, 16), (128, 32, 8), (64, 16))
"""Projection sizes of tails in one layer, which share launches: what d of 256, 512 and 1024 and div_value 4
make."""

QUICK = ((512,), (256, 64, 16))
"""Layers that need the most registers."""

LOOPS = ("tail_forward_kernel", "tail_weight_gradient_kernel")
"""The kernels that need the most registers: the others of a step need at most half as many."""


@dataclass(frozen=True)
class RecordedLaunch:
    """One recorded launch: the kernel, its arguments by name, and compiler options."""

    kernel: Any
    arguments: tuple[tuple[str, Any], ...]
    """What the compiler sees of each: ("constant", value), (type, 16 divides it), or a tuple of these."""
    options: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """The kernel's function name."""
        return str(self.kernel.fn.__name__)

    @property
    def variant(self) -> str:
        """Flags and tile in few words."""
        told = {
            name: _short(described[1])
            for name, described in self.arguments
            if described[0] == "constant" and name.isupper() and name not in _DULL
        }
        pointers = str([described for _, described in self.arguments if described[0] != "constant"])
        dtype = next((half for half in ("bf16", "fp16") if f"*{half}" in pointers), "fp32")
        words = [dtype, *(f"{name}={value}" for name, value in told.items() if value is not False)]
        options = {"num_warps": "warps", "num_stages": "stages"}
        return " ".join(words + [f"{options.get(name, name)}={value}" for name, value in self.options])


def _short(value: Any) -> Any:
    """Of a constant with one item a tail, the item where there is one tail."""
    if not isinstance(value, tuple):
        return value
    return value[0] if len(value) == 1 else str(value).replace(" ", "")


def variants(target: str, quick: bool = False) -> list[RecordedLaunch]:
    """Every launch of training, only the forward pass, log_prob and predict, each once.

    One tail of every width in the table and of widths between, in all dtypes; plain, and with biases, row
    weights and ignored rows.

    Args:
        target: "sm_80" and the like, an architecture of the table.
        quick: training steps with biases only, which need the most registers: all kernels of one tail in a dtype of
            16 bits, and those with the inner loops of several tails and in tf32 too.
    """
    found: dict[RecordedLaunch, None] = {}
    for dtype, precision in (_ARITHMETICS[0], _ARITHMETICS[-1]) if quick else _ARITHMETICS:
        for biased in (True,) if quick else (True, False):
            found |= dict.fromkeys(_launches(target, dtype, precision, biased, quick))
    return list(found)


def _launches(
    target: str, dtype: torch.dtype, precision: str, biased: bool, quick: bool
) -> list[RecordedLaunch]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with recording(target) as launches:
            layers = (*((width,) for width in (*WIDTHS, *BETWEEN)), *TOGETHER)
            for widths in QUICK if quick else layers:
                before_it = len(launches)
                _run(widths, dtype, biased, quick)
                if quick and (dtype == torch.float32 or len(widths) > 1):
                    launches[before_it:] = [one for one in launches[before_it:] if one.name in LOOPS]
        return launches
    finally:
        torch.set_float32_matmul_precision(before)


def _run(widths: tuple[int, ...], dtype: torch.dtype, biased: bool, quick: bool) -> None:
    """The steps of a layer whose tails have these projection sizes, on tensors without data."""
    d, shortlist, size, n_rows = 1024, 20_000, 40_000, 16_384

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def bias(size: int) -> Tensor | None:
        return empty(size) if biased else None

    tails = tuple(TailWeights(empty(k, d), empty(size, k), bias(k), bias(size)) for k in widths)
    head_size = shortlist + len(tails)
    weights = Weights(empty(head_size, d), bias(head_size), tails)
    bounds = tuple(shortlist + size * i for i in range(len(tails) + 1))
    hidden, labels = empty(n_rows, d), torch.empty(n_rows, dtype=torch.int64, device="meta")
    ignored = -100 if biased else None
    row_weight = torch.empty(n_rows, device="meta") if biased else None
    packed = pack(weights)
    if biased:
        row_weights(hidden[:, 0], empty(), None, labels, "mean", ignored)
    found = nll_step(hidden, labels, *packed, bounds, ignored, row_weight=row_weight, want=(True, True))
    scaling.scale_(found.hidden, found.weights, torch.empty((), device="meta"))
    if not quick:
        nll_step(hidden, labels, *packed, bounds, ignored, reduction="mean", result_dtype=dtype)
        log_prob_step(hidden, weights, shortlist)
        predict_step(hidden, weights, shortlist)


@contextlib.contextmanager
def recording(arch: str) -> Iterator[list[RecordedLaunch]]:
    """Collect launches in place of running them, with tiles chosen for `arch`."""
    launches: list[RecordedLaunch] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        del grid, warmup
        names = [parameter.name for parameter in kernel.params]
        arguments = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
        options = {k: v for k, v in kwargs.items() if k not in names}
        described = tuple(
            (p.name, _describe(arguments[p.name], p.is_constexpr, not p.do_not_specialize))
            for p in kernel.params
        )
        launches.append(RecordedLaunch(kernel, described, tuple(sorted(options.items()))))

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(tiles, "architecture", return_value=arch),
        mock.patch.object(tail_forward, "multiprocessors", return_value=132),
        mock.patch.object(scaling, "multiprocessors", return_value=132),
        mock.patch.object(torch.version, "hip", "6" if arch.startswith("gfx") else None),
    ):
        yield launches


def _describe(value: Any, is_constant: bool, specialized: bool = True) -> tuple[Any, ...]:
    """What of an argument the compiler sees; see `RecordedLaunch.arguments`."""
    if is_constant or (isinstance(value, int) and value == 1 and specialized):
        return ("constant", value)
    if isinstance(value, tuple):
        return tuple(_describe(item, False) for item in value)
    if isinstance(value, Tensor):
        return (_POINTER[value.dtype], True)
    if isinstance(value, int):
        return ("i32" if -(2**31) <= value < 2**31 else "i64", specialized and value % 16 == 0)
    return ("fp32", False)
