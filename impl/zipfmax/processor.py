"""The name of this machine's processor, which times are told with and cost models are kept by."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


@cache
def processor_name() -> str:
    """The processor as its system tells it, with family and model where those are told.

    A virtual machine may call processors of several generations "AMD EPYC", which differ in their instructions
    and by ten times in the speed of a product.
    """
    fields: dict[str, str] = {}
    if CPUINFO.exists():
        for line in CPUINFO.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or fields.get("Model") or platform.processor() or platform.machine()
    if "cpu family" in fields and "model" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name
