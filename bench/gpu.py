"""All about the GPU kernels in one call on a machine with a GPU: `python -m zipfmax.bench.gpu OUT`.

What a step promises (determinism, no synchronisation, CUDA graphs, torch.compile), parity, then times against
torch.nn and full softmax. Each phase has its own budget and writes its own file under OUT, so that a
short lease of a machine leaves what was measured; a table is printed last.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zipfmax import AdaptiveLogSoftmaxWithLoss
from zipfmax.bench.timing import CudaTimer

Run = Callable[[], None]
Record = dict[str, Any]
Shape = dict[str, int]
DEVICE = torch.device("cuda", 0)
HEADLINE = {"n_classes": 267_735, "in_features": 1024, "batch_size": 16_384}


def zipf_labels(n_classes: int, n_rows: int, skew: float, seed: int = 0) -> Tensor:
    """[n_rows] ranks drawn from p(r) ~ (r + 1)**-skew."""
    weight = torch.arange(1, n_classes + 1, dtype=torch.float64, device=DEVICE).pow(-skew).cumsum(0)
    generator = torch.Generator(DEVICE).manual_seed(seed)
    uniform = torch.rand(n_rows, dtype=torch.float64, device=DEVICE, generator=generator) * weight[-1]
    return torch.searchsorted(weight, uniform).clamp_(max=n_classes - 1)


def training_step(forward: Callable[[Tensor], Tensor], leaves: Sequence[Tensor], hidden: Tensor) -> Run:
    """One forward and backward pass that leaves fresh gradients and keeps none from before."""

    def run() -> None:
        for leaf in (*leaves, hidden):
            leaf.grad = None
        forward(hidden).backward()  # type: ignore[no-untyped-call]

    return run


def graphed(run: Run) -> Run:
    """The run captured in a CUDA graph; every run after it replays the same buffers."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return lambda: graph.replay()


def temporaries(run: Run) -> int:
    """Peak bytes of a step beyond what stays: weights, their gradients, the input and its gradient."""
    run()
    torch.cuda.synchronize()
    kept = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - kept


def measured(runs: dict[str, Run], case: Record, rounds: int = 15, seconds: float = 8.0) -> Iterator[Record]:
    """Median and samples of each run, in interleaved rounds of random order, while the seconds last."""
    timer, order = CudaTimer(DEVICE), random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, int] = {}
    failed: dict[str, str] = {}
    for name, run in runs.items():
        try:
            for _ in range(3):
                run()
            peaks[name] = 0 if "graph" in name else temporaries(run)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            failed[name] = str(error).splitlines()[0][:160]
            torch.cuda.empty_cache()
    begun = time.monotonic()
    for _ in range(rounds):
        names = [name for name in runs if name not in failed]
        order.shuffle(names)
        for name in names:
            samples[name].append(timer(runs[name])[0])
        if time.monotonic() - begun > seconds:
            break
    for name in runs:
        if name in failed:
            yield {**case, "impl": name, "status": "failed", "reason": failed[name]}
        else:
            yield {
                **case,
                "impl": name,
                "status": "ok",
                "median_s": statistics.median(samples[name]),
                "samples_s": samples[name],
                "temporary_bytes": peaks[name],
            }


def adaptive_runs(
    shape: Shape,
    cutoffs: list[int],
    dtype: torch.dtype,
    skew: float,
    *,
    compiled: bool = True,
    graph: bool = True,
) -> dict[str, Run]:
    """zipfmax and torch.nn on the same weights and the same batch."""
    n_classes, in_features, batch_size = shape["n_classes"], shape["in_features"], shape["batch_size"]
    target = zipf_labels(n_classes, batch_size, skew)
    hidden = torch.randn(batch_size, in_features, device=DEVICE, dtype=dtype, requires_grad=True)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(in_features, n_classes, cutoffs, device=DEVICE, dtype=dtype)
    ours = AdaptiveLogSoftmaxWithLoss(
        in_features, n_classes, cutoffs, device=DEVICE, dtype=dtype, backend="triton"
    )
    ours.load_state_dict(theirs.state_dict())
    ours_run = training_step(lambda h: ours(h, target).loss, list(ours.parameters()), hidden)
    runs = {"zipfmax:triton": ours_run}
    if graph:
        runs["zipfmax:triton graph"] = graphed(ours_run)
    leaves = list(theirs.parameters())
    runs["torch"] = training_step(lambda h: theirs(h, target).loss, leaves, hidden)
    if compiled:
        fast = torch.compile(theirs)
        runs["torch compiled"] = training_step(lambda h: fast(h, target).loss, leaves, hidden)
    return runs


def full_runs(
    n_classes: int, in_features: int, batch_size: int, dtype: torch.dtype, skew: float
) -> dict[str, Run]:
    """Full softmax: eager, compiled, and in chunks where torch has it."""
    target = zipf_labels(n_classes, batch_size, skew)
    hidden = torch.randn(batch_size, in_features, device=DEVICE, dtype=dtype, requires_grad=True)
    weight = (torch.randn(n_classes, in_features, device=DEVICE, dtype=dtype) / 32).requires_grad_()

    def loss(h: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, weight), target)

    fast = torch.compile(loss)
    runs = {
        "full": training_step(loss, [weight], hidden),
        "full compiled": training_step(lambda h: fast(h), [weight], hidden),
    }
    chunked = getattr(F, "linear_cross_entropy", None)
    if chunked is not None:
        runs["full chunked"] = training_step(lambda h: chunked(h, weight, target), [weight], hidden)
    return runs


def times() -> Iterator[Record]:
    """The headline shapes, float32 in both precisions, and a small batch."""
    shape = dict(HEADLINE)
    for cutoffs in ([20_000, 60_000], [5_000, 20_000, 100_000]):
        case = {**shape, "cutoffs": cutoffs, "dtype": "bfloat16", "skew": 1.0}
        yield from measured(adaptive_runs(shape, cutoffs=cutoffs, dtype=torch.bfloat16, skew=1.0), case)
    case = {**shape, "cutoffs": [], "dtype": "bfloat16", "skew": 1.0}
    yield from measured(full_runs(**shape, dtype=torch.bfloat16, skew=1.0), case, rounds=7)
    torch.cuda.empty_cache()
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        case = {**shape, "cutoffs": [20_000, 60_000], "dtype": f"float32 {precision}", "skew": 1.0}
        runs = adaptive_runs(
            shape, cutoffs=[20_000, 60_000], dtype=torch.float32, skew=1.0, compiled=False, graph=False
        )
        yield from measured(runs, case, rounds=7)
    torch.set_float32_matmul_precision("highest")
    small = {"n_classes": 267_735, "in_features": 256, "batch_size": 1024}
    case = {**small, "cutoffs": [20_000, 60_000], "dtype": "bfloat16", "skew": 1.0}
    runs = adaptive_runs(small, cutoffs=[20_000, 60_000], dtype=torch.bfloat16, skew=1.0, compiled=False)
    yield from measured(runs, case)


def sweep() -> Iterator[Record]:
    """Vocabulary x skew: zipfmax, torch.nn and full softmax, bfloat16, N = 4096, d = 512."""
    for n_classes in (10_000, 100_000, 1_000_000, 10_000_000):
        cutoffs = [n_classes // 50, n_classes // 10]
        for skew in (0.0, 0.5, 1.0, 1.5):
            shape = {"n_classes": n_classes, "in_features": 512, "batch_size": 4096}
            case = {**shape, "cutoffs": cutoffs, "dtype": "bfloat16", "skew": skew}
            runs = adaptive_runs(
                shape, cutoffs=cutoffs, dtype=torch.bfloat16, skew=skew, compiled=False, graph=False
            )
            if n_classes <= 1_000_000:
                runs["full"] = full_runs(**shape, dtype=torch.bfloat16, skew=skew)["full"]
            yield from measured(runs, case, rounds=9, seconds=1.5)
            del runs
            torch.cuda.empty_cache()


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
    replay = graphed(run)
    yield {"promise": "a CUDA graph replays the same gradients", "held": same(expected, gradients(replay))}
    fast = torch.compile(layer, fullgraph=True)
    compiled = gradients(training_step(lambda h: fast(h, target).loss, leaves, hidden))
    yield {
        "promise": "torch.compile(fullgraph=True) gives the same gradients",
        "held": same(expected, compiled),
    }


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


def external(out: Path, budget_s: float) -> Iterator[Record]:
    """Parity on the device and compute-sanitizer, side by side in processes of their own."""
    verify = [sys.executable, "-m", "zipfmax", "verify", "--grid", "quick", "--impl", "zipfmax:triton"]
    verify += ["--against", "definition", "--against", "torch", "--device", "cuda"]
    me = [sys.executable, "-m", "zipfmax.bench.gpu", str(out), "--phase", "small"]
    commands = {
        f"verify {dtype}": [*verify, "--cells", f"*{dtype}*", "--out", str(out / f"parity-{dtype}")]
        for dtype in ("float32", "bfloat16", "float16")
    }
    for tool in ("memcheck", "racecheck"):
        commands[f"compute-sanitizer {tool}"] = [
            "compute-sanitizer",
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            *me,
        ]
    running = {}
    for name, command in commands.items():
        log = (out / f"{name.replace(' ', '-')}.log").open("w")
        running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT), " ".join(command)
    deadline = time.monotonic() + budget_s
    for name, (process, line) in running.items():
        try:
            status = process.wait(max(1.0, deadline - time.monotonic()))
            yield {"promise": name, "held": status == 0, "status": status, "command": line}
        except subprocess.TimeoutExpired:
            process.kill()
            yield {
                "promise": name,
                "held": None,
                "status": f"stopped after {budget_s:.0f} s",
                "command": line,
            }


def main() -> None:
    """Run the phases, each guarded: what failed is recorded, and the next one runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--phase", nargs="+", default=["promises", "external", "times", "sweep"])
    parser.add_argument("--budget", type=float, default=110.0, help="seconds for parity and the sanitizer")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("zipfmax.bench.gpu: needs a GPU, and torch sees none", file=sys.stderr)
        sys.exit(2)
    if arguments.phase == ["small"]:
        small_case()
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    machine = {"gpu": torch.cuda.get_device_name(0), "torch": torch.__version__, "argv": sys.argv[1:]}
    (arguments.out / "run.json").write_text(json.dumps(machine, indent=1) + "\n")
    phases: dict[str, Callable[[], Iterator[Record]]] = {
        "promises": promises,
        "times": times,
        "sweep": sweep,
        "external": lambda: external(arguments.out, arguments.budget),
    }
    table: list[str] = []
    for phase in arguments.phase:
        with (arguments.out / f"{phase}.jsonl").open("a") as file:
            try:
                for record in phases[phase]():
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                    table.append(_line(record))
            except Exception as error:  # recorded, and the next phase still runs
                traceback.print_exc()
                file.write(json.dumps({"phase": phase, "error": f"{type(error).__name__}: {error}"}) + "\n")
                table.append(f"{phase}: {type(error).__name__}: {str(error).splitlines()[0]}")
    print(machine["gpu"], machine["torch"], *table, sep="\n")


def _line(record: Record) -> str:
    if "promise" in record:
        return f"{record['held']!s:5} {record['promise']} {record.get('status', '')}"
    shape = f"V={record['n_classes']} d={record['in_features']} N={record['batch_size']} {record['cutoffs']}"
    what = f"{shape} {record['dtype']} s={record['skew']} {record['impl']}:"
    if record["status"] != "ok":
        return f"{what} {record['reason']}"
    return f"{what} {record['median_s'] * 1e3:.3f} ms, {record['temporary_bytes'] / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
