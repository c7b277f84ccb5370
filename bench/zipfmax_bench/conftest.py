"""Fixtures of the benchmark files, and what pytest-benchmark's JSON says of the machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from zipfmax.errors import UsageError
from zipfmax_bench import suite
from zipfmax_bench.threads import default_threads
from zipfmax_reference.runs import machine
from zipfmax_reference.runs.case import Case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Spread a benchmark over the cases of its task and the implementations that can do them.

    Example: `bench_train[train-V10000-...-seed0-torch]`.
    """
    if {"case", "name"} <= set(metafunc.fixturenames):
        task = metafunc.module.TASK
        cells = [
            pytest.param(case, name, id=f"{case.id}-{name}")
            for case in suite.cases(metafunc.config.getoption("--benchmark-size"), task)
            for name in suite.implementations(case, _own(metafunc.config))
        ]
        metafunc.parametrize(("case", "name"), cells)


@pytest.fixture(scope="session")
def measured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[suite.Suite]:
    """The session's workers."""
    option = request.config.getoption
    names = {name for _, name in _cells(request.session)}
    with suite.Suite(
        sorted(names),
        option("--benchmark-size"),
        tmp_path_factory.mktemp("zipfmax"),
        option("--benchmark-threads") or default_threads(),
        option("--benchmark-processes"),
    ) as workers:
        yield workers


@pytest.fixture
def cell(request: pytest.FixtureRequest, measured: suite.Suite, case: Case, name: str) -> suite.Cell:
    """The samples of an implementation on a case; ask for it before `benchmark`, whose timer it sets."""
    together = [other for other_case, other in _cells(request.session) if other_case.id == case.id]
    found = measured.cell(case, name, together)
    if found.timing.status != "ok":
        pytest.skip(f"{found.timing.status}: {found.timing.reason}")
    request.node.add_marker(pytest.mark.benchmark(timer=found.clock, group=case.id))
    return found


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add the GPU, the thread count and the versions.

    Example: `machine_info["zipfmax"]["gpus"] == ["NVIDIA H100"]`.
    """
    threads = config.getoption("--benchmark-threads") or default_threads()
    machine_info["zipfmax"] = {
        **machine.describe(),
        "threads": threads,
        "processes": config.getoption("--benchmark-processes"),
        "versions": machine.versions(),
        "commit": machine.commit(),
    }


def _own(config: pytest.Config) -> list[str]:
    """The layers that --zipfmax-impl names.

    Raises:
        pytest.UsageError: one that is not there.
    """
    names: list[str] = config.getoption("--zipfmax-impl")
    try:
        for name in names:
            suite.check_own(name)
    except UsageError as error:
        raise pytest.UsageError(f"--zipfmax-impl: {error}") from error
    return names


def _cells(session: pytest.Session) -> list[tuple[Case, str]]:
    """Case and implementation of every benchmark that was selected."""
    calls = [item.callspec.params for item in session.items if hasattr(item, "callspec")]
    return [(params["case"], params["name"]) for params in calls if {"case", "name"} <= params.keys()]
