"""All about the GPU kernels in one call on a machine with a GPU: `python -m zipfmax_bench.gpu OUT`.

What a step promises (determinism, no synchronisation, CUDA graphs, torch.compile); parity in every
arithmetic, planted faults and compute-sanitizer; times against torch.nn and full softmax; ncu's counters; the
sweep of vocabulary by skew with its page. Each phase has its own budget and its own file under OUT, so that a
short lease of a machine leaves what was measured; a table is printed last.

Results of Paddle, which has no GPU build here, are made elsewhere and carried:
`zipfmax verify --impl paddle --dtype float32 --against definition --save-results DIR`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from zipfmax.errors import one_line
from zipfmax_bench.gpu_checks import counters, headline_case, parity, promises, small_case
from zipfmax_bench.gpu_steps import Record
from zipfmax_bench.gpu_times import times

PHASES = ("promises", "parity", "times", "counters", "sweep")


def sweep(out: Path, budget_s: float) -> Iterator[Record]:
    """`zipfmax sweep --preset gpu --replay`, stopped when its time is over, and the page of what it found."""
    run = out / "run"
    begun = time.monotonic()
    command = [sys.executable, "-m", "zipfmax", "sweep", "--preset", "gpu", "--replay", "--out", str(run)]
    with (out / "sweep.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            status = f"exit status {process.wait(budget_s)}"
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            status = f"stopped after {budget_s:.0f} s: the rest is missing, --resume goes on with it"
        report = [sys.executable, "-m", "zipfmax", "report", str(run), "--output", str(out / "index.html")]
        made = subprocess.run(report, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    seconds = time.monotonic() - begun
    yield {
        "promise": "sweep and page",
        "held": status == "exit status 0" and made == 0,
        "status": f"sweep: {status}, report: exit status {made}, {seconds:.0f} s",
    }


def main() -> None:
    """Run the phases, each guarded: what failed is recorded, and the next one runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--phase", nargs="+", default=list(PHASES), choices=(*PHASES, "small", "headline"))
    parser.add_argument("--parity-budget", type=float, default=300.0, help="seconds for parity (300)")
    parser.add_argument("--sweep-budget", type=float, default=300.0, help="seconds for the sweep (300)")
    parser.add_argument("--saved", type=Path, help="Paddle's results, to compare float32 with")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("zipfmax_bench.gpu: needs a GPU, and torch sees none", file=sys.stderr)
        sys.exit(2)
    watched = {"small": small_case, "headline": headline_case}
    if arguments.phase[0] in watched:
        watched[arguments.phase[0]]()
        return
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    machine = {"gpu": torch.cuda.get_device_name(0), "torch": torch.__version__, "argv": sys.argv[1:]}
    (out / "machine.json").write_text(json.dumps(machine, indent=1) + "\n")
    phases: dict[str, Callable[[], Iterator[Record]]] = {
        "promises": promises,
        "parity": lambda: parity(out, arguments.parity_budget, arguments.saved),
        "times": times,
        "counters": lambda: counters(out),
        "sweep": lambda: sweep(out, arguments.sweep_budget),
    }
    table: list[str] = []
    for phase in arguments.phase:
        with (out / f"{phase}.jsonl").open("a") as file:
            try:
                for record in phases[phase]():
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                    table.append(_line(record))
                    print(table[-1], flush=True)
            except Exception as error:  # recorded, and the next phase still runs
                traceback.print_exc()
                file.write(json.dumps({"phase": phase, "error": one_line(error)}) + "\n")
                table.append(f"{phase}: {one_line(error)}")
        torch.cuda.empty_cache()
    print(machine["gpu"], machine["torch"], *table, sep="\n")


def _line(record: Record) -> str:
    if "promise" in record:
        return f"{record['held']!s:5} {record['promise']} {record.get('status', '')}"
    if "kernel" in record:
        return " ".join(f"{name}={value}" for name, value in record.items())
    shape = f"V={record['n_classes']} d={record['in_features']} N={record['batch_size']} {record['dtype']}"
    drawn = f"std={record['logit_std']} seed={record['seed']} precision={record['matmul_precision']}"
    cutoffs = "/".join(map(str, record.get("cutoffs", ())))
    what = f"{shape} {drawn} {record['impl']} {cutoffs} {record['mode']}:"
    if record["status"] != "ok":
        return f"{what} {record['reason']}"
    ms, wall_ms = record["median_s"] * 1e3, record["wall_s"] * 1e3
    memory = record["temporary_bytes"] / 2**20
    return f"{what} {ms:.3f} ms ({wall_ms:.3f} wall), {memory:.0f} MiB {record.get('settings') or ''}"


if __name__ == "__main__":
    main()
