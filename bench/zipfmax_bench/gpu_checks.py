"""What the GPU kernels promise, checked on the device: `bench.gpu` runs these before it times anything."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.timers import replayed
from zipfmax_bench.gpu_steps import DEVICE, Record, Run, training_step, zipf_labels
from zipfmax_bench.work import count

# Of `zipfmax verify --grid quick`, the slowest to compile first.
PARTITIONS = ("V2000", "V203", "V60", "V1000", "V500")


def promises() -> Iterator[Record]:
    """Determinism, synchronisations, CUDA graphs and torch.compile, each as a record with its outcome."""
    n_classes, cutoffs, dtype = 50_000, [2_000, 10_000], torch.bfloat16
    layer = AdaptiveLogSoftmaxWithLoss(256, n_classes, cutoffs, device=DEVICE, dtype=dtype)
    hidden = torch.randn(1000, 256, device=DEVICE, dtype=dtype, requires_grad=True)
    target = zipf_labels(n_classes, 1000, 1.0)
    leaves = list(layer.parameters())
    run = training_step(lambda h: layer(h, target).loss, leaves, hidden)

    def gradients(step: Run) -> list[Tensor]:
        step()
        return [leaf.grad.clone() for leaf in (*leaves, hidden) if leaf.grad is not None]

    def same(a: list[Tensor], b: list[Tensor]) -> bool:
        return len(a) == len(b) == len(leaves) + 1 and all(map(torch.equal, a, b))

    expected = gradients(run)
    yield {"promise": "two runs agree bit for bit", "held": same(expected, gradients(run))}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
        layer.predict(hidden.detach())
        yield {"promise": "no synchronisation in training and predict", "held": True}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, step, wanted in (
        ("zipfmax:triton", run, True),
        ("torch.nn, to compare", _torch_step(n_classes, cutoffs, dtype, hidden, target), None),
    ):
        work = count(step, "cuda")
        held = None if wanted is None else work.synchronisations == 0
        status = f"{work.synchronisations} synchronisations, {work.launches} kernels"
        yield {"promise": f"work of a training step, {name}", "held": held, "status": status}
    replay = replayed(run)
    yield {"promise": "a CUDA graph replays the same gradients", "held": same(expected, gradients(replay))}
    fast = torch.compile(layer, fullgraph=True)
    compiled = gradients(training_step(lambda h: fast(h, target).loss, leaves, hidden))
    close = all(
        bool((a - b).abs().max() <= 2 * torch.finfo(dtype).eps * a.abs().max())
        for a, b in zip(expected, compiled, strict=True)
    )
    yield {
        "promise": "torch.compile(fullgraph=True) gives the same gradients, to a rounding",
        "held": close,
        "status": "bit for bit" if same(expected, compiled) else "not bit for bit",
    }


def _torch_step(
    n_classes: int, cutoffs: list[int], dtype: torch.dtype, hidden: Tensor, target: Tensor
) -> Run:
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(256, n_classes, cutoffs, device=DEVICE, dtype=dtype)
    return training_step(lambda h: theirs(h, target).loss, list(theirs.parameters()), hidden)


def small_case() -> None:
    """One awkward training step and a prediction, for compute-sanitizer to watch."""
    layer = AdaptiveLogSoftmaxWithLoss(
        80, 301, [10, 37, 100], device=DEVICE, dtype=torch.bfloat16, head_bias=True
    )
    hidden = torch.randn(129, 80, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    layer(hidden, zipf_labels(301, 129, 0.5)).loss.backward()
    layer.predict(hidden.detach())
    torch.cuda.synchronize()
    print("done")


def headline_case() -> None:
    """A few training steps of the headline shape, for ncu to watch."""
    shape = (1024, 267_735, [20_000, 60_000])
    layer = AdaptiveLogSoftmaxWithLoss(*shape, device=DEVICE, dtype=torch.bfloat16)
    hidden = torch.randn(16_384, 1024, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    target = zipf_labels(267_735, 16_384, 1.0)
    run = training_step(lambda h: layer(h, target).loss, list(layer.parameters()), hidden)
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()  # type: ignore[no-untyped-call]
    run()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()  # type: ignore[no-untyped-call]


def parity(out: Path, budget_s: float, saved: Path | None) -> Iterator[Record]:
    """`zipfmax verify` in every arithmetic, the planted faults, and compute-sanitizer, side by side.

    Each is a process of its own, because most of the time goes into compiling kernels. Afterwards the parity
    lines of all stand in `parity.jsonl.gz`.

    Args:
        out: where logs and lines go.
        budget_s: seconds until what still runs is stopped, and recorded as such.
        saved: results of Paddle that were computed elsewhere, to compare float32 with.
    """
    zipfmax = [sys.executable, "-m", "zipfmax", "verify", "--device", "cuda"]
    planted = [sys.executable, "-m", "zipfmax", "mutants", "--device", "cuda"]
    me = [sys.executable, "-m", "zipfmax_bench.gpu", str(out), "--phase"]
    commands = {"mutants": [*planted, "--out", str(out / "run-mutants")]}
    for partition in PARTITIONS:
        for arithmetic in ("float32", "bfloat16", "float16", "tf32"):
            name = f"verify {arithmetic} {partition}"
            against = ["torch"] if arithmetic == "tf32" else ["definition", "torch"]
            if arithmetic == "float32" and saved is not None:
                against.append(f"saved:{saved}")
            dtype = "float32" if arithmetic == "tf32" else arithmetic
            commands[name] = [*zipfmax, "--impl", "zipfmax:triton", "--dtype", dtype]
            commands[name] += [
                "--cells",
                f"*-{partition}-*",
                "--out",
                str(out / f"run-{arithmetic}-{partition}"),
            ]
            commands[name] += [word for other in against for word in ("--against", other)]
            if arithmetic == "tf32":
                commands[name] += ["--matmul-precision", "high"]
    for tool in ("memcheck", "racecheck"):
        sanitizer = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        commands[f"compute-sanitizer {tool}"] = [*sanitizer, *me, "small"]
    yield from _in_parallel(commands, out, budget_s)
    with gzip.open(out / "parity.jsonl.gz", "wt") as file:
        for run in sorted(out.glob("run-*/parity.jsonl")):
            arithmetic = run.parent.name.split("-")[1]
            for line in run.read_text().splitlines():
                file.write(json.dumps({"arithmetic": arithmetic, **json.loads(line)}) + "\n")


def _in_parallel(commands: dict[str, list[str]], out: Path, budget_s: float) -> Iterator[Record]:
    deadline = time.monotonic() + budget_s
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(item: tuple[str, list[str]]) -> Record:
        name, command = item
        record: Record = {"promise": name, "command": " ".join(command).replace(sys.executable, "python")}
        with (out / f"{name.replace(' ', '-')}.log").open("w") as log:
            left = deadline - time.monotonic()
            if left < 1:
                return record | {"held": None, "status": f"not begun within {budget_s:.0f} s"}
            try:
                done = subprocess.run(
                    command, stdout=log, stderr=subprocess.STDOUT, env=environment, timeout=left, check=False
                )
            except subprocess.TimeoutExpired:
                return record | {"held": None, "status": f"stopped after {budget_s:.0f} s"}
            except FileNotFoundError:
                return record | {"held": None, "status": f"{command[0]} is not installed"}
        return record | {"held": done.returncode == 0, "status": f"exit status {done.returncode}"}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(run, commands.items())


def counters(out: Path) -> Iterator[Record]:
    """What ncu counts of each kernel of one headline step: shares of the units' peaks, in percent.

    Raises:
        RuntimeError: ncu ended with an error, such as no permission to read counters.
        FileNotFoundError: it is not installed.
    """
    me = [sys.executable, "-m", "zipfmax_bench.gpu", str(out), "--phase", "headline"]
    report = [
        "--csv",
        "--page",
        "raw",
        "--print-units",
        "base",
        "--profile-from-start",
        "off",
        "--clock-control",
        "none",
    ]
    sections = [f"--section={name}" for name in ("SpeedOfLight", "ComputeWorkloadAnalysis", "Occupancy")]
    done = subprocess.run(["ncu", *report, *sections, *me], capture_output=True, text=True, check=False)
    (out / "ncu.csv").write_text(done.stdout)
    if done.returncode:
        raise RuntimeError(f"ncu ended with {done.returncode}: {done.stdout[-300:]} {done.stderr[-300:]}")
    yield from counted(done.stdout.splitlines())


_COUNTED: Sequence[tuple[str, Callable[[str], bool]]] = (
    ("us", lambda metric: metric == "gpu__time_duration.sum"),
    ("dram", lambda metric: metric == "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed"),
    ("l1", lambda metric: metric == "l1tex__throughput.avg.pct_of_peak_sustained_active"),
    ("l2", lambda metric: metric == "lts__throughput.avg.pct_of_peak_sustained_elapsed"),
    (
        "issue",
        lambda metric: metric.startswith(("sm__inst_executed.avg.pct", "sm__inst_issued.avg.pct")),
    ),
    ("xu", lambda metric: "pipe_xu" in metric and "pct_of_peak" in metric),
    ("tensor", lambda metric: "pipe_tensor" in metric and "pct_of_peak" in metric),
    ("fma", lambda metric: "pipe_fma" in metric and "pct_of_peak" in metric),
    ("warps", lambda metric: metric == "sm__warps_active.avg.pct_of_peak_sustained_active"),
    ("registers", lambda metric: metric == "launch__registers_per_thread"),
)


def counted(lines: Sequence[str]) -> Iterator[Record]:
    """Records of ncu's raw page: the columns that tell what limits a kernel, largest of a unit's several."""
    table = [line for line in lines if line.startswith('"')]
    rows = csv.DictReader(table)
    for row in rows:
        if not row["ID"]:
            continue  # the line of units
        record: Record = {"kernel": row["Kernel Name"][:100]}
        for name, wanted in _COUNTED:
            found = [_number(value) for metric, value in row.items() if metric and wanted(metric) and value]
            record[name] = max(found, default=None)
        if record["us"] is not None:
            record["us"] /= 1000  # ncu's base unit of time is the nanosecond
        yield record


def _number(text: str) -> float:
    return float(text.replace(",", ""))
