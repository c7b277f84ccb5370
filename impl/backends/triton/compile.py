"""Compile every kernel variant that the tile table can choose, with no GPU, and read what came out.

The launches of a real step are recorded on tensors without storage ("meta"), so what is compiled here has the
very constants, flags and alignments that the launcher would pass; nothing is listed twice.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from zipfmax.backends.triton import tail_forward, tiles
from zipfmax.backends.triton.all_classes import log_prob_step
from zipfmax.backends.triton.availability import interpreting
from zipfmax.backends.triton.best_class import predict_step
from zipfmax.backends.triton.step import nll_step
from zipfmax.errors import UsageError
from zipfmax.weights import TailWeights, Weights

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# Shared memory that one program may have, in bytes (LDS on gfx942).
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}

# What shows that a dot product became tensor-core instructions.
TENSOR_CORE = {
    "sm_80": r"\bmma\.sync",
    "sm_90": r"\bwgmma\.mma_async",
    "sm_100": r"\btcgen05\.mma",
    "gfx942": r"\bv_mfma",
}

_POINTER = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """One recorded launch: the kernel, its arguments by name, and compiler options."""

    kernel: Any
    arguments: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """The kernel's function name."""
        return str(self.kernel.fn.__name__)


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one variant."""

    target: str
    kernel: str
    variant: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    has_dot: bool
    tensor_cores: bool
    loop: dict[str, float] | None
    """Instructions per logit of the inner loop, by kind, where there is one and sm_90 is the target."""

    def faults(self) -> list[str]:
        """Why this variant must not be in the table; empty where it may."""
        found = []
        if self.spill_bytes:
            found.append(f"spills {self.spill_bytes} bytes")
        if self.shared_bytes > SHARED_LIMIT[self.target]:
            found.append(f"needs {self.shared_bytes} bytes of shared memory, has {SHARED_LIMIT[self.target]}")
        return found


@contextlib.contextmanager
def recording(arch: str) -> Iterator[list[Launch]]:
    """Collect launches in place of running them, with tiles chosen for `arch`."""
    launches: list[Launch] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        del grid, warmup
        names = [parameter.name for parameter in kernel.params]
        arguments = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
        options = {k: v for k, v in kwargs.items() if k not in names}
        described = tuple((name, _describe(kernel, name, arguments[name])) for name in names)
        launches.append(Launch(kernel, described, tuple(sorted(options.items()))))

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(tiles, "architecture", return_value=arch),
        mock.patch.object(tail_forward, "multiprocessors", return_value=132),
        mock.patch.object(torch.version, "hip", "6" if arch.startswith("gfx") else None),
    ):
        yield launches


def _describe(kernel: Any, name: str, value: Any) -> Any:
    """What of an argument the compiler sees: ("type", aligned), or ("constant", value)."""
    constant = next(parameter.is_constexpr for parameter in kernel.params if parameter.name == name)
    if constant or (isinstance(value, int) and value == 1):
        return ("constant", value)
    if isinstance(value, Tensor):
        return (_POINTER[value.dtype], True)
    if isinstance(value, int):
        return ("i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0)
    return ("fp32", False)


def build(launch: Launch, target: str) -> Compiled:
    """Compile one variant for one target."""
    signature: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, (name, (kind, value)) in enumerate(launch.arguments):
        if kind == "constant":
            signature[name] = "constexpr"
            constants[name] = value
        else:
            signature[name] = kind
            if value:
                attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=TARGETS[target], options=dict(launch.options))
    if target.startswith("sm_"):
        text = compiled.asm["ptx"]
        counts_loop = target == "sm_90" and launch.name in _STREAMING and "fp32" not in _variant(launch)
        registers, stack, sass = _read_cubin(compiled.asm["cubin"], counts_loop)
        spills = 4 * len(re.findall(r"\b(?:STL|LDL)\b", sass))
    else:
        text, sass = compiled.asm["amdgcn"], ""
        registers = _amd_number(text, ".vgpr_count")
        stack = _amd_number(text, ".private_segment_fixed_size")
        spills = 4 * (_amd_number(text, ".vgpr_spill_count") + _amd_number(text, ".sgpr_spill_count"))
    return Compiled(
        target=target,
        kernel=launch.name,
        variant=_variant(launch),
        registers=registers,
        stack_bytes=stack,
        spill_bytes=spills,
        shared_bytes=int(compiled.metadata.shared),
        has_dot="tt.dot" in compiled.asm["ttir"],
        tensor_cores=re.search(TENSOR_CORE[target], text) is not None,
        loop=inner_loop(sass) if target == "sm_90" and sass and launch.name in _STREAMING else None,
    )


def _variant(launch: Launch) -> str:
    """The flags and tile of a launch, in few words."""
    told = {
        n: v for n, (kind, v) in launch.arguments if kind == "constant" and n.isupper() and n not in _DULL
    }
    pointer = next((kind[1:] for _, (kind, _) in launch.arguments if kind in ("*bf16", "*fp16")), "fp32")
    options = {"num_warps": "warps", "num_stages": "stages"}
    words = [pointer, *(f"{n}={v}" for n, v in told.items() if v is not False)]
    return " ".join(words + [f"{options.get(n, n)}={v}" for n, v in launch.options])


_DULL = ("BOUNDS", "N_CLUSTERS", "SLOTS", "UPCAST", "TABLE", "TILE")
_STREAMING = ("tail_forward_kernel", "tail_weight_gradient_kernel")
_KINDS = {
    "exponential": r"MUFU\.EX2",
    "floating point": r"F(?:ADD|MUL|FMA|MNMX|SEL|SETP)\b",
    "conversion": r"F2FP|F2F|I2F|PRMT",
    "shared memory": r"LDS|STS|LDSM|STSM",
    "tensor core": r"HGMMA|HMMA|WARPGROUP",
}


def inner_loop(sass: str) -> dict[str, float] | None:
    """Instructions per logit, by kind, of the loop that streams a vocabulary or a cluster's rows.

    It is the smallest loop with tensor-core work and the most exponentials; a logit costs one exponential.
    """
    labels: dict[str, int] = {}
    lines = sass.splitlines()
    loops: list[list[str]] = []
    for number, line in enumerate(lines):
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            labels[label.group(1)] = number
        branch = re.search(r"\bBRA(?:\.\w+)*\s.*`\((\.L_x_\d+)\)", line)
        if branch and branch.group(1) in labels:
            loops.append(lines[labels[branch.group(1)] : number + 1])
    counted = [_count(loop) for loop in loops]
    streaming = [c for c in counted if c["exponential"] and c["tensor core"]]
    if not streaming:
        return None
    # The anchored loop comes first and is the leanest; the one with a running maximum has more to do.
    best = min(streaming, key=lambda c: c["all"] / c["exponential"])
    return {kind: round(count / best["exponential"], 3) for kind, count in best.items()}


def _count(loop: Sequence[str]) -> Counter[str]:
    counts: Counter[str] = Counter(dict.fromkeys((*_KINDS, "all"), 0))
    for line in loop:
        if re.search(r"/\*[0-9a-f]{4,}\*/\s", line):
            counts["all"] += 1
            for kind, pattern in _KINDS.items():
                counts[kind] += bool(re.search(pattern, line))
    return counts


def _amd_number(text: str, key: str) -> int:
    found = re.search(re.escape(key) + r":\s*(\d+)", text)
    return int(found.group(1)) if found else 0


def _tool(name: str) -> str:
    return str(getattr(triton.knobs.nvidia, name).path)


def _read_cubin(cubin: bytes, disassemble: bool) -> tuple[int, int, str]:
    """(registers, stack bytes, disassembly) by the tools that Triton brings.

    Disassembling takes longer than compiling: it is done where it is asked for, and where there is a stack,
    without which nothing can have spilled.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)

        def read(tool: str, *arguments: str) -> str:
            return subprocess.run(
                [_tool(tool), *arguments, str(path)], check=True, capture_output=True, text=True
            ).stdout

        usage = read("cuobjdump", "-res-usage")
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        if found is None:
            raise UsageError(f"cuobjdump reported no resource usage: {usage.strip()!r}")
        registers, stack = int(found.group(1)), int(found.group(2))
        return registers, stack, read("nvdisasm", "-c") if disassemble or stack else ""


def variants(target: str) -> list[Launch]:
    """Every launch of a training step that the table can lead to, each once.

    One tail of every width in the table, all dtypes; in bfloat16 also widths between (5, 48, 300), biases,
    row weights and ignored rows, the forward pass alone, log_prob and predict.
    """
    found: dict[Launch, None] = {}
    for dtype, precision in (
        (torch.bfloat16, "highest"),
        (torch.float16, "highest"),
        (torch.float32, "highest"),
        (torch.float32, "high"),
    ):
        for full in (False, True) if dtype == torch.bfloat16 else (False,):
            for launch in _launches(target, dtype, precision, full):
                found[launch] = None
    return list(found)


def _launches(target: str, dtype: torch.dtype, precision: str, full: bool) -> list[Launch]:
    d, shortlist, size, n_rows = 1024, 20_000, 40_000, 16_384
    between = (5, 48, 300) if dtype == torch.bfloat16 and not full else ()
    widths = (16, 32, 64, 128, 256, 512, *between)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def bias(size: int) -> Tensor | None:
        return empty(size) if full else None

    tails = tuple(TailWeights(empty(k, d), empty(size, k), bias(k), bias(size)) for k in widths)
    head_size = shortlist + len(tails)
    weights = Weights(empty(head_size, d), bias(head_size), tails)
    bounds = tuple(shortlist + size * i for i in range(len(tails) + 1))
    hidden, target_rows = empty(n_rows, d), torch.empty(n_rows, dtype=torch.int64, device="meta")
    row_weight = torch.empty(n_rows, device="meta") if full else None
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with recording(target) as launches:
            ignore = -100 if full else None
            nll_step(hidden, target_rows, weights, bounds, ignore, row_weight=row_weight, want=(True, True))
            if dtype == torch.bfloat16 and not full:
                nll_step(hidden, target_rows, weights, bounds, ignore)
                log_prob_step(hidden, weights, shortlist)
                predict_step(hidden, weights, shortlist)
        return launches
    finally:
        torch.set_float32_matmul_precision(before)


def _build_one(job: tuple[int, str]) -> Compiled:
    return build(_jobs[job[1]][job[0]], job[1])


_jobs: dict[str, list[Launch]] = {}


def compile_all(targets: Sequence[str]) -> list[Compiled]:
    """Compile every variant for every target, in as many processes as there are cores.

    Raises:
        UsageError: an unknown target, or TRITON_INTERPRET set, under which there is nothing to compile.
    """
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise UsageError(f"unknown target {unknown[0]!r}; choose from: {', '.join(TARGETS)}")
    if interpreting():
        raise UsageError("TRITON_INTERPRET is set: the interpreter compiles nothing; unset it")
    _jobs.update({target: variants(target) for target in targets})
    jobs = [(i, target) for target in targets for i in range(len(_jobs[target]))]
    # Forked, because a kernel cannot be pickled; no GPU is touched, so forking is safe.
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        return pool.map(_build_one, jobs, chunksize=4)


def report(targets: Sequence[str]) -> int:
    """Print one line a variant and what is wrong; 1 where a variant spills or does not fit, else 0."""
    compiled = compile_all(targets)
    for c in compiled:
        dots = "" if not c.has_dot else "  tensor cores" if c.tensor_cores else "  NO tensor cores"
        print(
            f"{c.target} {c.kernel} [{c.variant}] registers {c.registers} stack {c.stack_bytes} "
            f"spills {c.spill_bytes} shared {c.shared_bytes}{dots}"
        )
    loops = [c for c in compiled if c.loop is not None]
    if loops:
        print("\nInstructions per logit of the inner loops, sm_90:")
    for c in loops:
        kinds = ", ".join(f"{kind} {count:g}" for kind, count in (c.loop or {}).items())
        print(f"{c.kernel} [{c.variant}]: {kinds}")
    faulty = [(c, fault) for c in compiled for fault in c.faults()]
    print(f"\n{len(compiled)} variants, {len(faulty)} at fault")
    for c, fault in faulty:
        print(f"FAULT {c.target} {c.kernel} [{c.variant}]: {fault}")
    return 1 if faulty else 0
