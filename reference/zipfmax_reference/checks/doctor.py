"""`zipfmax doctor`: what this machine has, and what each implementation lacks."""

from __future__ import annotations

from rich.table import Table

from zipfmax_reference.console import print_table, terminal
from zipfmax_reference.contestants import registry
from zipfmax_reference.runs import machine
from zipfmax_reference.runs.case import Case


def run() -> int:
    """Print versions, devices, threads, and which implementations can run here; exit status 0."""
    console = terminal()
    described = machine.describe()
    gpus = described["gpus"]
    memory_bytes = described["memory_bytes"]
    facts = {
        "processor": f"{described['cpu']}, {described['cores']} cores",
        "memory": "unknown" if memory_bytes is None else f"{memory_bytes / 2**30:.1f} GiB",
        "GPUs": ", ".join(gpus) if gpus else "none that torch can use",
        "threads": f"{described['threads']} (OMP_NUM_THREADS {described['omp_num_threads'] or 'unset'})",
        "system": described["os"],
        "Python": described["python"],
        "commit": machine.commit() or "not a checkout",
    }
    facts |= {name: version or "not installed" for name, version in machine.versions().items()}
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name, value)
    print_table(console, table)

    devices = ["cpu", *(["cuda"] if gpus else [])]
    table = Table(title="implementations", title_justify="left")
    table.add_column("name", no_wrap=True)
    for device in devices:
        table.add_column(device)
    for name in registry.names():
        table.add_row(name, *(_state(name, device) for device in devices))
    print_table(console, table)
    return 0


def _state(name: str, device: str) -> str:
    """In which dtypes it can train, and where in none, why."""
    dtypes = ("float64", "float32", "bfloat16", "float16")
    implementation = registry.implementation(name)
    reasons = {dtype: implementation.unsupported_reason(_sample(device, dtype)) for dtype in dtypes}
    able = [dtype for dtype, reason in reasons.items() if reason is None]
    if not able:
        return reasons["float32"] or reasons["bfloat16"] or ""
    if len(able) == len(dtypes):
        return "runs"
    return f"runs in {', '.join(able)}; " + next(reason for reason in reasons.values() if reason is not None)


def _sample(device: str, dtype: str) -> Case:
    return Case(10_000, 64, 32, (100, 300), dtype=dtype, device=device)
