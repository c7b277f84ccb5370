"""What a compiled kernel is made of, read with the tools that Triton brings; no driver, no GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import triton

_KINDS = {
    "exponential": r"MUFU\.EX2",
    "floating point": r"F(?:ADD|MUL|FMA|MNMX|SEL|SETP)\b",
    "conversion": r"F2FP|F2F|I2F|PRMT",
    "shared memory": r"LDS|STS|LDSM|STSM",
    "tensor core": r"HGMMA|HMMA|WARPGROUP",
    "spill": r"\b(?:STL|LDL)\b",
}
_SPILL = re.compile(_KINDS["spill"])


@dataclass(frozen=True)
class Resources:
    """What one program of a kernel needs."""

    registers: int
    """A thread."""
    stack_bytes: int
    """A thread."""
    spill_bytes: int
    """Of registers spilled to memory; for NVIDIA, 4 for each load and store of one in the code."""
    loop_spills: float
    """The largest share of a loop's instructions that load or store a spilled register. A spill before or after
    the loops is one instruction a program. 1 where something spilled and the code has no loops that are known."""


def of_cubin(cubin: bytes, disassemble: bool) -> tuple[Resources, str]:
    """Resources of an NVIDIA kernel, and its disassembly or "".

    Disassembling takes longer than compiling: it is done where it is asked for, and where there is a stack,
    without which nothing can have spilled.

    Raises:
        RuntimeError: cuobjdump said something else than it usually does.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _read("cuobjdump", "-res-usage", str(path))
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        if found is None:
            raise RuntimeError(f"cuobjdump reported no resource usage: {usage.strip()!r}")
        registers, stack = int(found.group(1)), int(found.group(2))
        sass = _read("nvdisasm", "-c", str(path)) if disassemble or stack else ""
    spills = len(_SPILL.findall(sass))
    shares = [_count(loop) for loop in _loops(sass)]
    loop_spills = max((c["spill"] / c["all"] for c in shares if c["all"]), default=float(spills > 0))
    return Resources(registers, stack, 4 * spills, loop_spills), sass


def of_amdgcn(text: str) -> Resources:
    """Resources of an AMD kernel, from the metadata of its assembly."""

    def number(key: str) -> int:
        found = re.search(re.escape(key) + r":\s*(\d+)", text)
        if found is None:
            raise RuntimeError(f"the assembly has no {key}")
        return int(found.group(1))

    stack = number(".private_segment_fixed_size")
    # Vector registers are also spilled to accumulator registers, scalar ones to lanes of vector registers: if
    # there is no stack, nothing went to memory.
    spills = min(4 * number(".vgpr_spill_count"), stack)
    return Resources(number(".vgpr_count"), stack, spills, float(spills > 0))


def inner_loop(sass: str) -> dict[str, float] | None:
    """Instructions per logit, by kind, of the loop that streams a vocabulary or a cluster's rows.

    It is the loop with tensor-core work that costs least for each exponential, of which a logit has one: the
    anchored loop, rather than the one with a running maximum. None where there is no such loop.
    """
    counted = [_count(loop) for loop in _loops(sass)]
    streaming = [c for c in counted if c["exponential"] and c["tensor core"]]
    if not streaming:
        return None
    best = min(streaming, key=lambda c: c["all"] / c["exponential"])
    return {kind: round(count / best["exponential"], 3) for kind, count in best.items() if kind != "spill"}


def _loops(sass: str) -> list[list[str]]:
    """The lines from each label to a later branch back to it."""
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
    return loops


def _count(loop: Sequence[str]) -> Counter[str]:
    counts: Counter[str] = Counter(dict.fromkeys((*_KINDS, "all"), 0))
    for line in loop:
        if re.search(r"/\*[0-9a-f]{4,}\*/\s", line):
            counts["all"] += 1
            for kind, pattern in _KINDS.items():
                counts[kind] += bool(re.search(pattern, line))
    return counts


def _read(tool: str, *arguments: str) -> str:
    command = [str(getattr(triton.knobs.nvidia, tool).path), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
