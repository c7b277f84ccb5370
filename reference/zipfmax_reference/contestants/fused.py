"""What others offer in place of linear and cross entropy: chunked, compiled and fused losses."""

from __future__ import annotations

import inspect
import os
import shutil
import sysconfig
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zipfmax.errors import one_line
from zipfmax_reference.contestants.full import Full
from zipfmax_reference.contestants.implementation import GradientSupport
from zipfmax_reference.contestants.padding import UNPADDED, Mask, Padding
from zipfmax_reference.contestants.settings import Loss, Setting, linear_cross_entropy
from zipfmax_reference.runs.case import Case

ALIGNED = 64
"""The multiple of classes that cuBLAS is given: a row of the logits starts on 128 bytes in 16 bits."""


class LossOnly(Full):
    """A variant that computes the mean loss, and its gradients, and nothing else."""

    tasks = ("forward", "train")


class Chunked(LossOnly):
    """torch's own chunked F.linear_cross_entropy, which never holds all logits at once."""

    name = "full:chunked"
    gradients = GradientSupport(True, "every class is scored, chunk after chunk of rows")

    def needs(self, case: Case) -> str | None:
        """A torch that has it."""
        if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
            return f"torch {torch.__version__} has no chunked F.linear_cross_entropy"
        return None

    def settings(self, case: Case) -> Sequence[Setting]:
        """torch's own choice of chunks, all rows in one, and fixed numbers of them."""

        def loss(**options: Any) -> Loss:
            chosen = torch.nn.LinearCrossEntropyOptions(**options)
            return lambda hidden, weight, target, bias: F.linear_cross_entropy(
                hidden, weight, target, linear_bias=bias, options=chosen
            )

        every = max(case.batch_size, 1)
        rows = [every, *(rows for rows in (2048, 1024, 4096, 512, 8192, 256) if rows < every)]
        return [
            setting
            for padding in _paddings(case, "bias")
            for setting in (
                Setting("chunks as torch chooses", loss, padding),
                *(Setting(f"batch_chunk_size={n}", partial(loss, batch_chunk_size=n), padding) for n in rows),
            )
        ]


class Compiled(LossOnly):
    """Linear and cross entropy under torch.compile."""

    name = "full:compiled"
    gradients = GradientSupport(True, "autograd of linear and cross entropy, compiled")

    def needs(self, case: Case) -> str | None:
        """What torch.compile itself needs."""
        if case.device != "cpu":
            return None if find_spec("triton") else "torch.compile needs Triton for a GPU"
        if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
            return "torch.compile needs a C++ compiler on the CPU, and none is on the path"
        if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
            return "torch.compile needs Python's C headers on the CPU, and Python.h is not installed"
        return None

    def settings(self, case: Case) -> Sequence[Setting]:
        """The vocabulary as it is, and padded."""
        return [Setting("torch.compile", _compiled, padding) for padding in _paddings(case, "bias")]


class Liger(LossOnly):
    """liger-kernel's fused linear cross entropy (Triton), which computes the gradients with the loss."""

    name = "full:liger"
    gradients = GradientSupport(True, "every class is scored, chunk after chunk of rows")

    CHUNKS = (64, 16, 256, 4, 1)
    """Its `chunk_mem_const`: a chunk's logits take so many times the input's memory. Its default is 1."""

    def needs(self, case: Case) -> str | None:
        """The package, and a GPU."""
        return _needs_gpu_package(case, "liger_kernel", "liger-kernel")

    def settings(self, case: Case) -> Sequence[Setting]:
        """Chunk sizes, with sums over chunks in the weight's dtype or in float32."""
        fused = import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy
        if "chunk_mem_const" not in inspect.signature(fused).parameters:  # before 0.8
            return [
                Setting("chunks as liger-kernel chooses", partial(_liger, fused), padding)
                for padding in _paddings(case, "bias", "feature")
            ]
        options: list[dict[str, Any]] = [{"chunk_mem_const": const} for const in self.CHUNKS]
        if case.dtype in ("bfloat16", "float16"):
            options.insert(1, {"chunk_mem_const": 64, "accum_dtype": torch.float32})
        return [
            Setting(_as_text(given), partial(_liger, fused, **given), padding)
            for padding in _paddings(case, "bias", "feature")
            for given in options
        ]


class CutCrossEntropy(LossOnly):
    """Apple's cut cross entropy (Triton) as installed. It computes in 16 bits only."""

    name = "full:cce"
    gradients = GradientSupport(
        False, "blocks of classes whose gradients are all below a threshold are left out (filter_eps)"
    )

    def needs(self, case: Case) -> str | None:
        """The package, a GPU, and a dtype that it computes in."""
        reason = _needs_gpu_package(case, "cut_cross_entropy", "cut-cross-entropy")
        if reason is None and case.dtype not in ("bfloat16", "float16"):
            reason = "cut-cross-entropy computes in bfloat16 and float16 only"
        return reason

    def settings(self, case: Case) -> Sequence[Setting]:
        """Its defaults."""
        return [Setting("as installed", _cut)]


class ExactCutCrossEntropy(CutCrossEntropy):
    """Apple's cut cross entropy that filters nothing, and sums in float32 where its version can."""

    name = "full:cce-exact"
    gradients = GradientSupport(True, "no gradient is left out (filter_eps=None)")

    def settings(self, case: Case) -> Sequence[Setting]:
        """What makes it exact: it reads classes one by one, so that padding gains nothing."""
        # Versions on GitHub have more than 25.1.1 on PyPI, whose sums are in 16 bits.
        known = inspect.signature(import_module("cut_cross_entropy").linear_cross_entropy).parameters
        wider = {name: True for name in ("accum_e_fp32", "accum_c_fp32") if name in known}
        options: dict[str, Any] = {"filter_eps": None, **wider}
        return [Setting(_as_text(options), partial(_cut, **options))]


class Quack(LossOnly):
    """QuACK's chunked linear cross entropy (CuTe DSL), on GPUs from Hopper on."""

    name = "full:quack"
    gradients = GradientSupport(True, "every class is scored, chunk after chunk of rows; sums are in float32")

    CHUNKS = (4096, 8192, 2048, 16384)
    """Rows of a chunk; 4096 is its default. A chunk that is longer than the batch is the whole batch."""

    def needs(self, case: Case) -> str | None:
        """The package and that it loads, a GPU, a dtype, and dimensions that its kernels can take."""
        reason = _needs_gpu_package(case, "quack", "quack-kernels[cu13]") or self._does_not_load()
        if reason is None and case.dtype not in ("bfloat16", "float16"):
            reason = "quack-kernels computes in bfloat16 and float16 only"
        if reason is None and torch.cuda.is_available():
            capability = torch.cuda.get_device_capability(case.device)
            reason = None if capability >= (9, 0) else "quack-kernels needs a GPU from Hopper on"
        if reason is None and (case.in_features % 8 or case.batch_size % 8):
            reason = (
                f"quack-kernels takes widths and batches in multiples of 8, not {case.in_features} features "
                f"and {case.batch_size} rows"
            )
        return reason

    def settings(self, case: Case) -> Sequence[Setting]:
        """Rows of a chunk, with the vocabulary padded to multiples that its kernels take."""
        fused = import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy

        def loss(rows: int) -> Loss:
            return lambda hidden, weight, target, bias: fused(hidden, weight, target, chunk_size=rows)

        longest = -(-case.batch_size // 128) * 128
        chunks = dict.fromkeys(min(rows, longest) for rows in self.CHUNKS)
        paddings = [Padding(multiple, "feature") for multiple in (384, 128)]
        distinct = {padding.added(case.n_classes): padding for padding in paddings}
        return [
            Setting(f"chunk_size={rows}", partial(loss, rows), padding)
            for padding in distinct.values()
            for rows in chunks
        ]

    def _does_not_load(self) -> str | None:
        try:
            import_module("quack.linear_cross_entropy")
        except Exception as error:  # whatever it raises is the reason
            return (
                f"quack-kernels does not load: {one_line(error)} (0.6 takes nvidia-cutlass-dsl for its own code "
                "unless the folder that both are installed in is named site-packages)"
            )
        return None


def _compiled() -> Loss:
    # Dynamo compiles a function for a few shapes and then runs it as it is: a sweep has more.
    torch._dynamo.reset()
    compiled: Loss = torch.compile(linear_cross_entropy, dynamic=False)
    return compiled


def _liger(fused: Any, **options: Any) -> Loss:
    def loss(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
        found: Tensor = fused(hidden, weight, target, bias=bias, **options)
        return found

    return loss


def _cut(**options: Any) -> Loss:
    cut = import_module("cut_cross_entropy").linear_cross_entropy

    def loss(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
        found: Tensor = cut(hidden, weight, target, **options)
        return found

    return loss


def _paddings(case: Case, *masks: Mask) -> list[Padding]:
    """The vocabulary as it is, and where it is not aligned padded, by each mask."""
    if case.n_classes % ALIGNED == 0:
        return [UNPADDED]
    return [UNPADDED, *(Padding(ALIGNED, mask) for mask in masks)]


def _as_text(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def _needs_gpu_package(case: Case, package: str, distribution: str) -> str | None:
    if find_spec(package) is None:
        return f"{distribution} is not installed (pip install {distribution!r})"
    return None if case.device != "cpu" else f"{distribution} needs a GPU"
