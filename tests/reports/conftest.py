"""A made-up run directory for the tests of the page: plausible shapes, seeded noise, nothing measured.

`python tests/reports/conftest.py DIR` writes one to look at.
"""

from __future__ import annotations

import itertools
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zipfmax_reports import elements, static, svg

VOCABULARIES = {10_000: (1000, 4000), 50_000: (2000, 10_000), 267_735: (20_000, 60_000)}
LABELS = ("uniform", "zipf:0.8", "zipf:1.0", "zipf:1.3", "wordfreq:en")
IMPLEMENTATIONS = ("zipfmax", "torch", "paddle", "full")
TENSORS = ("output", "loss", "grad.input", "grad.head.weight", "grad.tail.0.0.weight", "grad.tail.0.1.weight")
WIDTH, BATCH = 256, 1024


def machine() -> dict[str, Any]:
    return {
        "cpu": "No real processor (made-up figures)",
        "cores": 2,
        "memory_bytes": 8 * 2**30,
        "threads": 2,
        "omp_num_threads": "2",
        "gpus": [],
        "os": "Linux",
        "python": "3.11.0",
    }


def write_run(
    directory: Path, *, seed: int = 0, pace: float = 1.0, dtypes: tuple[str, ...] = ("float32", "bfloat16")
) -> Path:
    """Write a run of every file; `pace` divides the subject's times, to make a second run differ."""
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    meta = {
        "format": 1,
        "created": "2026-01-02T03:04:05+00:00",
        "arguments": {"preset": "quick"},
        "command": "zipfmax sweep --preset quick --out made-up",
        "machine": machine(),
        "versions": {
            "zipfmax": "0.1.0",
            "torch": "2.13.0",
            "numpy": "2.3.0",
            "paddle": "3.3.1",
            "triton": None,
        },
        "commit": "0123456789abcdef0123456789abcdef01234567",
    }
    (directory / "run.json").write_text(json.dumps(meta, indent=2))
    write_lines(directory / "timings.jsonl", timings(rng, pace, dtypes))
    write_lines(directory / "parity.jsonl", parity(rng))
    write_lines(directory / "mutants.jsonl", mutants())
    write_lines(directory / "plans.jsonl", plans(read_lines(directory / "timings.jsonl")))
    return directory


def write_gpu_run(directory: Path) -> Path:
    """A run as a GPU gives it: bfloat16, CUDA graphs, millions of classes, cells that fail in every way."""
    write_run(directory)
    meta = json.loads((directory / "run.json").read_text())
    meta["machine"] |= {"gpus": ["NVIDIA H100 80GB HBM3 (made-up figures)"]}
    meta["command"] = "zipfmax sweep --preset gpu --out made-up"
    (directory / "run.json").write_text(json.dumps(meta))
    rng, records = np.random.default_rng(2), []
    for classes in (10_000, 100_000, 1_000_000, 10_000_000):
        for labels in ("zipf:0", "zipf:0.5", "zipf:1.0", "zipf:1.5"):
            found = cell(rng, 40.0, "train", "bfloat16", classes, (classes // 50, classes // 10), labels)
            for record in found:
                if record["impl"] == "paddle":
                    record |= {"impl": "full:compiled", **timed_like(rng, record)}
                record |= {"device": "cuda", "case": record["case"].replace("-cpu-", "-cuda-")}
                record |= {"replayed": 15 * (record["impl"] == "zipfmax"), "throttled": 1}
                records.append(record)
    failures = {
        "full": ("out_of_memory", "OutOfMemoryError: CUDA out of memory. Tried to allocate 76.29 GiB."),
        "full:compiled": ("failed", "while its work was counted: BackendCompilerFailed: backend='inductor'"),
        "torch": ("over_budget", "predicted 61 s for 5 rounds, past the budget of 60 s"),
    }
    for record in records:
        if record["n_classes"] == 10_000_000 and record["impl"] in failures:
            status, reason = failures[record["impl"]]
            record |= dict.fromkeys(NUMBERS) | {"status": status, "reason": reason, "samples_s": []}
    write_lines(directory / "timings.jsonl", records)
    (directory / "plans.jsonl").unlink()
    return directory


def write_large_run(directory: Path) -> int:
    """The sweep of many vocabularies and skews under one condition; returns its number of timing lines."""
    write_run(directory)
    rng = np.random.default_rng(3)
    sizes = np.unique(np.geomspace(5000, 2_000_000, 36).astype(int)).tolist()
    records = []
    for task, classes, skew in itertools.product(("forward", "train"), sizes, np.linspace(0, 2.4, 35)):
        shape = classes, (classes // 20, classes // 4), f"zipf:{skew:.2f}"
        for record in cell(rng, 1.0, task, "float32", *shape):
            record["samples_s"] = list(record["median_s"] * rng.lognormal(0, 0.03, size=30))
            records.append(record)
    write_lines(directory / "timings.jsonl", records)
    return len(records)


NUMBERS = ("median_s", "peak_bytes", "flops", "limit_s", "speedup_vs_full", "speedup_vs_torch")


def timed_like(rng: np.random.Generator, record: dict[str, Any]) -> dict[str, Any]:
    """The fields of a cell that ran, for one that the made-up run skips."""
    samples = list(5e-8 * record["n_classes"] * rng.lognormal(0, 0.03, size=15))
    return {
        "status": "ok",
        "reason": None,
        "samples_s": samples,
        "median_s": float(np.median(samples)),
        "peak_bytes": 4 * record["n_classes"],
        "limit_s": None,
        "occupancy": None,
    }


def write_lines(path: Path, records: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def timings(rng: np.random.Generator, pace: float, dtypes: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for task in ("forward", "train"):
        for dtype in dtypes:
            for classes, cutoffs in VOCABULARIES.items():
                for labels in LABELS:
                    yield from cell(rng, pace, task, dtype, classes, cutoffs, labels)


def cell(
    rng: np.random.Generator,
    pace: float,
    task: str,
    dtype: str,
    classes: int,
    cutoffs: tuple[int, ...],
    labels: str,
) -> Iterator[dict[str, Any]]:
    fields = {
        "n_classes": classes,
        "in_features": WIDTH,
        "batch_size": BATCH,
        "cutoffs": list(cutoffs),
        "div_value": 4.0,
        "head_bias": False,
        "dtype": dtype,
        "device": "cpu",
        "labels": labels,
        "seed": 0,
        "task": task,
    }
    shape = f"V{classes}-d{WIDTH}-N{BATCH}-c{','.join(map(str, cutoffs))}"
    case = f"{task}-{shape}-div4-nobias-{dtype}-cpu-{labels}-seed0"
    shares = occupancy(labels, classes, cutoffs)
    products = 3 if task == "train" else 1
    head = 2 * BATCH * WIDTH * (cutoffs[0] + len(cutoffs)) * products
    tails = sum(
        2 * BATCH * share * (WIDTH // 4 ** (i + 1)) * (high - low + WIDTH) * products
        for i, (share, low, high) in enumerate(zip(shares[1:], cutoffs, (*cutoffs[1:], classes), strict=True))
    )
    full = 2 * BATCH * WIDTH * classes * products
    flops = {"zipfmax": head + tails, "torch": head + tails, "paddle": head + tails, "full": full}
    slowness = {"zipfmax": 1.25 / pace, "torch": 2.4, "paddle": 3.4, "full": 1.3}
    middle = {name: flops[name] / 2.5e11 * slowness[name] + 4e-4 for name in IMPLEMENTATIONS}
    draws = {name: middle[name] * rng.lognormal(0, 0.03, size=15) for name in IMPLEMENTATIONS}
    for name in IMPLEMENTATIONS:
        record = {**fields, "case": case, "impl": name, "status": "ok", "reason": None}
        record["command"] = (
            f"zipfmax sweep --impl {name} --classes {classes} --labels {labels} --tasks {task}"
        )
        if name == "paddle" and dtype == "bfloat16":
            yield {**record, "status": "skipped", "reason": "paddle has no bfloat16 product on a CPU"}
            continue
        if (
            name == "full"
            and classes == 267_735
            and task == "train"
            and dtype == "bfloat16"
            and labels == "uniform"
        ):
            yield {**record, "status": "over_budget", "reason": "predicted 61 s, the budget is 60 s"}
            continue
        record |= {
            "samples_s": list(draws[name]),
            "median_s": float(np.median(draws[name])),
            "peak_bytes": int(
                4 * BATCH * (classes if name == "full" else cutoffs[0]) * (0.1 if name == "zipfmax" else 2)
            ),
            "flops": int(flops[name]),
            "limit_s": flops[name] / 2.5e11,
            "occupancy": None if name == "full" else shares,
        }
        if name == "zipfmax":
            record |= split(record["median_s"], record["limit_s"], shares)
        for base in ("full", "torch"):
            logs = np.log(draws[base] / draws[name])
            spread = 2 * logs.std() / np.sqrt(len(logs))
            record[f"speedup_vs_{base}"] = float(np.exp(np.median(logs)))
            record[f"speedup_vs_{base}_low"] = float(np.exp(np.median(logs) - spread))
            record[f"speedup_vs_{base}_high"] = float(np.exp(np.median(logs) + spread))
        yield record


def split(whole_s: float, limit_s: float, shares: list[float]) -> dict[str, Any]:
    """Half of the step in the head, a tenth in no part, the rest by the labels of the tails."""
    tails = np.array(shares[1:]) / sum(shares[1:])
    parts = np.array([0.5, *(0.4 * tails)])
    rows = [round(BATCH * share) for share in shares[1:]]
    return {
        "parts_s": list(whole_s * parts),
        "parts_whole_s": whole_s,
        "parts_rows": [BATCH - sum(rows), *rows],
        "parts_passes": 3,
        "limit_parts_s": list(0.8 * limit_s * parts),
    }


def occupancy(labels: str, classes: int, cutoffs: tuple[int, ...]) -> list[float]:
    exponent = {"uniform": 0.0, "wordfreq:en": 1.08}.get(labels)
    exponent = float(labels.split(":")[1]) if exponent is None else exponent
    mass = np.arange(1, classes + 1, dtype=np.float64) ** -exponent
    edges = (0, *cutoffs, classes)
    return [float(mass[a:b].sum() / mass.sum()) for a, b in itertools.pairwise(edges)]


def parity(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for impl in ("zipfmax", "torch", "paddle"):
        for against in ("definition", "torch", "paddle"):
            if impl == against:
                continue
            for dtype in ("float32", "float64"):
                for number in range(6):
                    case = f"train-V{100 + number}-d16-N32-c10,50-div4-nobias-{dtype}-cpu-zipf:1.0-seed0"
                    for tensor in TENSORS:
                        used = float(rng.lognormal(-2.2, 0.7)) * (tensor != "loss")
                        budget = 1e-6 if dtype == "float32" else 1e-15
                        yield {
                            "case": case,
                            "impl": impl,
                            "against": against,
                            "tensor": tensor,
                            "status": "pass",
                            "error": min(used, 0.97) * budget,
                            "budget": budget,
                            "reference_error": budget / 2.5,
                            "reason": None,
                        }


def mutants() -> Iterator[dict[str, Any]]:
    found = {"tensor": "output", "case": "forward-V60", "error": 3e-3, "budget": 1e-6}
    nothing = dict.fromkeys(("tensor", "case", "error", "budget"))
    for name, fault in (
        ("slots_reversed", "cluster slots reversed"),
        ("bias_dropped", "the head's bias dropped"),
    ):
        yield {
            "mutant": name,
            "fault": fault,
            "cells": 40,
            "cells_failed": 12,
            "caught": True,
            "reason": None,
        } | found
    control = {
        "mutant": "control",
        "fault": "none",
        "cells": 40,
        "cells_failed": 0,
        "caught": False,
        "reason": None,
    }
    yield control | nothing


def plans(records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A plan for each timed case of zipfmax in float32, its prediction 10 % above what was measured."""
    for record in records:
        if record["impl"] != "zipfmax" or record["dtype"] != "float32":
            continue
        names = ("case", "n_classes", "in_features", "batch_size", "div_value", "cutoffs", "labels", "task")
        predicted = 1.1 * record["median_s"]
        firsts = [record["cutoffs"][0] // 2, record["cutoffs"][0], record["cutoffs"][0] * 2]
        points = [
            {"first_cutoff": first, "predicted_s": predicted * (1 + abs(i - 1))}
            for i, first in enumerate(firsts)
        ]
        yield {name: record[name] for name in names} | {
            "predicted_s": predicted,
            "full_s": 9 * predicted,
            "curve": {"1": points, "2": points},
        }


@pytest.fixture(scope="session", name="write_run")
def _write_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture(scope="session", name="write_large_run")
def _write_large_run() -> Callable[[Path], int]:
    return write_large_run


@pytest.fixture(scope="session", name="write_gpu_run")
def _write_gpu_run() -> Callable[[Path], Path]:
    return write_gpu_run


@pytest.fixture(scope="session", autouse=True)
def _equal_figures_are_drawn_once() -> Iterator[None]:
    """Most pages of the tests have most figures in common, and drawing takes most of a page's time."""
    drawn: dict[tuple[bytes, ...], str] = {}

    def inline(figure: Any, *texts: str) -> str:
        key = (pickle.dumps(figure), *(text.encode() for text in texts))
        if key not in drawn:
            drawn[key] = svg.inline_svg(static.draw(figure), *texts)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements, "draw", lambda figure: figure)
        patch.setattr(elements, "inline_svg", inline)
        yield


@pytest.fixture
def no_figure_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what a page says in words: drawing its figures takes seconds."""
    monkeypatch.setattr(elements, "inline_svg", lambda *_: "<svg></svg>")
    monkeypatch.setattr(elements, "draw", lambda _: None)


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def edit_lines() -> Callable[[Path, Callable[[dict[str, Any]], dict[str, Any]]], None]:
    """Rewrite a JSON-lines file by a function of each record."""

    def edit(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        write_lines(path, [change(record) for record in read_lines(path)])

    return edit


if __name__ == "__main__":
    print(write_run(Path(sys.argv[1])))
