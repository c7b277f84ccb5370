"""The pytest plugin behind `pytest --benchmark`: options, and which files to collect.

pytest loads it in every run of every project of the environment: it imports neither torch nor zipfmax, and
does nothing unless `--benchmark` is given.
"""

from __future__ import annotations

from pathlib import Path

import pytest

SIZES = ("quick", "full")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register `--benchmark` and what goes with it.

    Example: `pytest --benchmark --benchmark-size quick --benchmark-json out.json`.
    """
    group = parser.getgroup("zipfmax", "benchmarks of adaptive softmax")
    group.addoption(
        "--benchmark",
        action="store_true",
        help="run zipfmax's benchmarks and nothing else; without it they are not collected",
    )
    group.addoption(
        "--benchmark-size",
        choices=SIZES,
        default="quick",
        help="quick: one small vocabulary, under two minutes; full: the shapes of the literature",
    )
    group.addoption(
        "--zipfmax-impl",
        action="append",
        default=[],
        metavar="FILE.py:CLASS",
        help="a layer of your own, benchmarked beside torch.nn's and full softmax; may be repeated",
    )
    group.addoption(
        "--benchmark-threads",
        type=int,
        default=None,
        metavar="N",
        help="threads of every implementation; OMP_NUM_THREADS or all usable cores by default",
    )
    group.addoption(
        "--benchmark-processes",
        type=int,
        default=1,
        metavar="N",
        help="replicate processes of each implementation, which take the rounds in turns",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """With `--benchmark`: run benchmarks only, and look for them in the package unless told where.

    Example: `pytest --benchmark` in any folder, or `pytest --pyargs zipfmax_bench --benchmark`.
    """
    if not config.getoption("--benchmark"):
        if config.getoption("--zipfmax-impl"):
            raise pytest.UsageError("--zipfmax-impl goes with --benchmark")
        return
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError(
            "--benchmark needs pytest-benchmark, which is disabled or not installed: "
            "pip install 'zipfmax[harness]'"
        )
    if config.getoption("numprocesses", None):
        raise pytest.UsageError("--benchmark runs one benchmark at a time: leave out -n")
    config.option.benchmark_only = True
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")
    if config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args[:] = [str(_suite())]


def _suite() -> Path:
    """Folder of the benchmark files, found without importing them."""
    from importlib.util import find_spec

    spec = find_spec("zipfmax_bench")
    if spec is None or spec.origin is None:
        raise pytest.UsageError("--benchmark: the package zipfmax_bench is not installed")
    return Path(spec.origin).parent
