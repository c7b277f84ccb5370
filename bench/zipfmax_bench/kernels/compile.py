"""Compile every kernel variant that the tile table can choose, with no GPU, and say what came out."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from zipfmax.backends.triton.availability import interpreting
from zipfmax.errors import UsageError, unknown
from zipfmax_bench.kernels import disassembly
from zipfmax_bench.kernels.variants import RecordedLaunch, variants

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

QUICK = ("sm_90", "gfx942")
"""The architecture that the tiles were timed on, and the one with the least shared memory and another compiler."""

# Shared memory that one program may have, in bytes (LDS on gfx942).
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}

# The instructions of a target's tensor cores, the target's own first: tiles of fewer than 64 rows cannot use
# it on sm_90 and sm_100 and take the older one.
TENSOR_CORES = {
    "sm_80": {"mma.sync": r"\bmma\.sync"},
    "sm_90": {"wgmma": r"\bwgmma\.mma_async", "mma.sync": r"\bmma\.sync"},
    "sm_100": {"tcgen05": r"\btcgen05\.mma", "mma.sync": r"\bmma\.sync"},
    "gfx942": {"mfma": r"\bv_mfma"},
}

SPILL_SHARE = 0.005
"""Of a loop's instructions, what may load or store a spilled register: 1 in 200. A kernel that keeps its tile in
all 255 registers spills a pointer or two for its last stores, which costs nothing."""

_STREAMING = ("tail_forward_kernel", "tail_weight_gradient_kernel")


@dataclass(frozen=True)
class CompiledVariant:
    """What the compiler made of one variant."""

    target: str
    kernel: str
    variant: str
    resources: disassembly.Resources
    shared_bytes: int
    has_dot: bool
    tensor_cores: str | None
    """The tensor-core instruction in it, the target's own if there are several."""
    loop: dict[str, float] | None
    """Instructions per logit of the inner loop, by kind, where there is one and sm_90 is the target."""

    def faults(self) -> list[str]:
        """Why this variant must not be in the table; empty where it may."""
        found = []
        if self.resources.loop_spills > SPILL_SHARE:
            found.append(
                f"spills {self.resources.spill_bytes} bytes, {self.resources.loop_spills:.1%} of a loop's code"
            )
        if self.shared_bytes > SHARED_LIMIT[self.target]:
            found.append(f"needs {self.shared_bytes} bytes of shared memory, has {SHARED_LIMIT[self.target]}")
        if self.has_dot and self.tensor_cores is None:
            found.append("has a product without tensor-core instructions")
        return found

    def __str__(self) -> str:
        """One line of the table."""
        used = self.resources
        dots = f"  {self.tensor_cores or 'NO TENSOR CORES'}" if self.has_dot else ""
        return (
            f"{self.target} {self.kernel} [{self.variant}] registers {used.registers} "
            f"stack {used.stack_bytes} spills {used.spill_bytes} shared {self.shared_bytes}{dots}"
        )


def compiled(launch: RecordedLaunch, target: str) -> Any:
    """Triton's compiled kernel of one variant for one target."""
    signature: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, (name, described) in enumerate(launch.arguments):
        if described[0] == "constant":
            signature[name] = "constexpr"
            constants[name] = described[1]
            continue
        whole = isinstance(described[0], str)
        items = (described,) if whole else described
        kinds = tuple("constexpr" if kind == "constant" else kind for kind, _ in items)
        signature[name] = kinds[0] if whole else kinds
        for i, (kind, aligned) in enumerate(items):
            if kind == "constant":
                constants[(position, i)] = aligned
            elif aligned:
                attributes[(position,) if whole else (position, i)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=TARGETS[target], options=dict(launch.options))


def build(launch: RecordedLaunch, target: str) -> CompiledVariant:
    """Compile one variant for one target and read what came out."""
    kernel = compiled(launch, target)
    counts_loop = target == "sm_90" and launch.name in _STREAMING
    sass = ""
    if target.startswith("sm_"):
        text = kernel.asm["ptx"]
        resources, sass = disassembly.of_cubin(kernel.asm["cubin"], counts_loop)
    else:
        text = kernel.asm["amdgcn"]
        resources = disassembly.of_amdgcn(text)
    found = [name for name, pattern in TENSOR_CORES[target].items() if re.search(pattern, text)]
    return CompiledVariant(
        target=target,
        kernel=launch.name,
        variant=launch.variant,
        resources=resources,
        shared_bytes=int(kernel.metadata.shared),
        has_dot="tt.dot" in kernel.asm["ttir"],
        tensor_cores=found[0] if found else None,
        loop=disassembly.inner_loop(sass) if counts_loop else None,
    )


def _build_one(job: tuple[int, str]) -> CompiledVariant:
    return build(_jobs[job[1]][job[0]], job[1])


_jobs: dict[str, list[RecordedLaunch]] = {}


def compile_all(targets: Sequence[str], quick: bool = False) -> Iterator[CompiledVariant]:
    """Compile every variant for every target, in as many processes as there are cores, in order.

    Raises:
        UsageError: an unknown target, or TRITON_INTERPRET set, under which there is nothing to compile.
    """
    absent = [target for target in targets if target not in TARGETS]
    if absent:
        raise UsageError(unknown("target", absent[0], TARGETS))
    if interpreting():
        raise UsageError("TRITON_INTERPRET is set: the interpreter compiles nothing; unset it")
    _jobs.update({target: variants(target, quick) for target in targets})
    jobs = [(i, target) for target in targets for i in range(len(_jobs[target]))]
    # Forked, because a kernel cannot be pickled; no GPU is touched, so forking is safe.
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        yield from pool.imap(_build_one, jobs, chunksize=4)


def report(targets: Sequence[str], quick: bool = False) -> int:
    """Print one line a variant and what is wrong.

    Returns:
        1 where a variant spills, does not fit its target, or multiplies without tensor cores; else 0.
    """
    compiled = []
    for c in compile_all(targets, quick):
        compiled.append(c)
        print(c, flush=True)
    loops = [c for c in compiled if c.loop is not None]
    if loops:
        print("\nInstructions per logit of the inner loops, sm_90:")
    for c in loops:
        kinds = ", ".join(f"{kind} {count:g}" for kind, count in (c.loop or {}).items())
        print(f"{c.kernel} [{c.variant}]: {kinds}")
    faulty = [(c, fault) for c in compiled for fault in c.faults()]
    print(f"\n{len(compiled)} variants, {sum(bool(c.faults()) for c in compiled)} at fault")
    for c, fault in faulty:
        print(f"FAULT {c.target} {c.kernel} [{c.variant}]: {fault}")
    return 1 if faulty else 0
