"""`pytest --benchmark` runs the suite on top of pytest-benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from zipfmax_bench.suite import Cell, Clock
from zipfmax_reference.records import Timing
from zipfmax_reference.runs.case import Case


def run(*arguments: str, cwd=None) -> subprocess.CompletedProcess[str]:
    # A worker of xdist says so in the environment, and pytest-benchmark would then switch itself off.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=cwd,
        check=False,
        env=environment,
    )


@pytest.fixture(scope="module")
def benchmarked(tmp_path_factory):
    """Two implementations of one task, run outside the checkout as from an installed package."""
    folder = tmp_path_factory.mktemp("benchmarked")
    done = run(
        *("-m", "pytest", "--pyargs", "zipfmax_bench", "--benchmark", "--benchmark-threads", "1"),
        *("-k", "predict and (seed0-torch or seed0-full)", "--benchmark-json", "out.json"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "out.json").read_text())


def test_ids_and_groups_are_case_ids(benchmarked):
    case = "predict-V10000-d64-N128-c1000,4000-div4-nobias-float32-cpu-zipf:1.0-seed0"
    names = {benchmark["name"] for benchmark in benchmarked["benchmarks"]}
    assert names == {f"bench_predict[{case}-torch]", f"bench_predict[{case}-full]"}
    assert {benchmark["group"] for benchmark in benchmarked["benchmarks"]} == {case}


def test_every_benchmark_says_what_it_is_worth_beside_its_times(benchmarked):
    for benchmark in benchmarked["benchmarks"]:
        info = benchmark["extra_info"]
        assert info["speedup_vs_full"] > 0
        assert info["speedup_vs_torch"] > 0
        assert 0 <= info["parity_error"] <= 1
        assert sum(info["occupancy"]) == pytest.approx(1)
        assert info["peak_bytes"] > 0
        assert benchmark["stats"]["median"] == pytest.approx(info["median_s"])
        assert benchmark["stats"]["rounds"] == info["n_rounds"]


def test_the_machine_info_holds_the_threads_and_the_gpus(benchmarked):
    about = benchmarked["machine_info"]["zipfmax"]
    assert about["threads"] == 1
    assert "gpus" in about
    assert about["versions"]["torch"]


def test_without_the_flag_no_benchmark_is_collected(tmp_path):
    done = run("-m", "pytest", "--pyargs", "zipfmax_bench", "--collect-only", "-q", cwd=tmp_path)
    assert done.returncode == 5, done.stdout  # pytest's status for nothing collected


def test_the_plugin_imports_neither_torch_nor_zipfmax():
    code = "import zipfmax_bench.pytest_plugin, sys; print({'torch', 'numpy', 'zipfmax'} & set(sys.modules))"
    assert run("-c", code).stdout.strip() == "set()"


def test_without_pytest_benchmark_the_plugin_is_silent_until_it_is_asked(tmp_path):
    (tmp_path / "test_one.py").write_text("def test_one():\n    pass\n")
    plain = run("-m", "pytest", "-p", "no:benchmark", "-q", cwd=tmp_path)
    assert plain.returncode == 0, plain.stdout + plain.stderr
    assert "benchmark" not in plain.stdout + plain.stderr
    asked = run("-m", "pytest", "-p", "no:benchmark", "--benchmark", cwd=tmp_path)
    assert asked.returncode == 4
    assert "pip install 'zipfmax[harness]'" in asked.stderr


def test_parallel_benchmarks_are_refused_in_one_line(tmp_path):
    done = run("-m", "pytest", "--benchmark", "-n", "2", cwd=tmp_path)
    assert done.returncode == 4
    assert "one benchmark at a time" in done.stderr


def test_the_clock_hands_the_samples_over_one_by_one():
    clock = Clock([0.5, 0.25])
    readings = [clock()]
    for _ in range(2):
        clock.advance()
        readings.append(clock())
    assert readings == [0.0, 0.5, 0.75]


def test_a_cell_leaves_the_samples_to_pytest_benchmark():
    class Benchmark:
        extra_info: dict = {}  # noqa: RUF012
        calls = 0

        def pedantic(self, function, rounds):
            for _ in range(rounds):
                function()
            self.calls += rounds

    case = Case(60, 12, 9, (7, 20))
    timing = Timing(
        **case.to_fields(),
        case=case.id,
        impl="torch",
        status="ok",
        samples_s=[1.0, 2.0, 3.0],
        samples_round=[0, 1, 2],
    )
    benchmark, cell = Benchmark(), Cell(timing, parity_error=0.5)
    cell.hand_to(benchmark)
    assert (benchmark.calls, cell.clock()) == (3, 6.0)
    noted = benchmark.extra_info
    assert (noted["case"], noted["impl"], noted["parity_error"]) == (case.id, "torch", 0.5)
    assert not any(name.startswith("samples_") for name in noted)
