"""What a run was made on: processor, memory, threads, GPUs, versions and commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import zipfmax
from zipfmax.errors import UsageError
from zipfmax.processor import processor_name

# Frameworks read them once, so they are set before anything is imported. Importing Paddle with OMP_NUM_THREADS unset
# would set it to 1.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
)

# Name shown -> names it is distributed under, first match wins. Read from metadata, so nothing is imported.
_DISTRIBUTIONS = {
    "torch": ("torch",),
    "numpy": ("numpy",),
    "triton": ("triton", "pytorch-triton", "triton-windows"),
    "paddle": ("paddlepaddle", "paddlepaddle-gpu"),
    "tensorflow": ("tensorflow", "tensorflow-cpu"),
    "liger-kernel": ("liger-kernel",),
    "cut-cross-entropy": ("cut-cross-entropy",),
    "quack-kernels": ("quack-kernels",),
    "nvidia-ml-py": ("nvidia-ml-py",),
}


def describe() -> dict[str, Any]:
    """This machine, as `run.json` holds it: `memory_bytes` is what is installed, `cores` what we may use."""
    return {
        "cpu": processor_name(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str | None]:
    """Installed versions by name; None for what is not installed. Imports none of them."""
    found: dict[str, str | None] = {"zipfmax": zipfmax.__version__}
    for name, distributions in _DISTRIBUTIONS.items():
        found[name] = next((v for v in map(_installed, distributions) if v is not None), None)
    return found


def commit() -> str | None:
    """Git commit that the imported package comes from, with "-dirty" for local changes.

    None where the package is not a checkout. A package installed inside someone else's repository is not one:
    its files have to be tracked.
    """
    source = Path(zipfmax.__file__).resolve()
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    return _git(source.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


class Throttle:
    """Whether a GPU is being slowed down, by NVIDIA's management library (package nvidia-ml-py).

    Heat and the hardware's emergency brakes count as throttling. The power limit does not: a GPU at full load
    is regulated by it all the time, the same for all that is compared.

    Args:
        reasons: the driver's mask of what holds the clocks down, or None where it cannot be asked.
    """

    # Of nvmlClocksEventReasons: HwSlowdown, SwThermalSlowdown, HwThermalSlowdown, HwPowerBrakeSlowdown.
    MASK = 0x08 | 0x20 | 0x40 | 0x80

    def __init__(self, reasons: Callable[[], int | None] | None) -> None:
        self._reasons = reasons

    @classmethod
    def of(cls, device: torch.device) -> Throttle:
        """The state of a device; unknown for ever where the library is missing or refuses."""
        if device.type != "cuda" or torch.version.hip is not None or find_spec("pynvml") is None:
            return cls(None)
        nvml = import_module("pynvml")
        try:
            nvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(device).uuid
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except nvml.NVMLError:
            return cls(None)

        def reasons() -> int | None:
            try:
                return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
            except nvml.NVMLError:
                return None

        return cls(reasons)

    def state(self) -> bool | None:
        """Whether heat or an emergency brake slows the GPU down now; None where that is unknown."""
        mask = self._reasons() if self._reasons is not None else None
        return None if mask is None else bool(mask & self.MASK)


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Memory that is installed, or None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def check_fits(size_bytes: int, what: str) -> None:
    """See that this machine could hold so many bytes at all.

    Raises:
        UsageError: it could not; names `what`, a plural.
    """
    installed = memory_bytes()
    if installed is not None and size_bytes > installed:
        raise UsageError(
            f"{what} take {size_bytes / 2**30:,.1f} GiB, this machine has {installed / 2**30:.1f} GiB of memory"
        )
