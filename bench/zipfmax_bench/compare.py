"""`zipfmax compare BASE_REF`: another git revision measured interleaved with this one, for a pull request.

The revision is checked out into a worktree, and an environment of its own sees that and this environment's
other packages, so both compute with the same torch. Its workers take turns with this one's.
"""

from __future__ import annotations

import subprocess
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from zipfmax.errors import UsageError
from zipfmax_bench import gate_report, judge, presets, ratios, suite
from zipfmax_bench.baseline import FIGURES
from zipfmax_bench.engine import Engine, Measurement, SamplingPolicy
from zipfmax_bench.executors import usable_cores
from zipfmax_bench.judge import Change
from zipfmax_bench.timings import seconds_by_round
from zipfmax_reference.console import terminal
from zipfmax_reference.records import Finding, Outcome
from zipfmax_reference.records.files import check_writable, write_text
from zipfmax_reference.runs.case import Case

IMPLEMENTATION = "zipfmax"
SOURCE_ROOTS = ("impl", "reference", "bench")
OLDEST_WORKER = "bench/zipfmax_bench/snapshot.py"
"""A file that came with the requests that the engine makes now."""
PROCESSES = 3
POLICY = SamplingPolicy(seconds=3.0, least=9, most=60)


def compare(
    base: str,
    *,
    threads: int | None = None,
    threshold: float = judge.THRESHOLD,
    junit: Path | None = None,
    summary: Path | None = None,
) -> int:
    """Measure a revision beside this one and return 1 if this one is surely slower, twice, or does more work.

    Args:
        base: a git revision, such as `main`.
        threads: of every worker; all usable cores by default.
        threshold: relative slowdown that is let pass.
        junit, summary: files to write, JUnit XML and Markdown.

    Raises:
        UsageError: no such revision, or one that cannot be measured.
    """
    check_writable(junit, summary)
    console = terminal()
    cases = presets.cases(suite.AXES["quick"])
    with environment_of(base) as python:
        findings = examine(cases, base, python, threads or usable_cores(), threshold)
    gate_report.show(findings, [], console)
    if junit is not None:
        write_text(junit, gate_report.junit(findings))
    if summary is not None:
        write_text(summary, gate_report.summary(findings, []))
    return 1 if any(finding.failed for finding in findings) else 0


@contextmanager
def environment_of(revision: str, repository: Path | None = None) -> Iterator[str]:
    """A Python interpreter that imports zipfmax of a revision, as long as the context lasts.

    Args:
        revision: as git takes it.
        repository: a checkout; by default that of the working directory.

    Raises:
        UsageError: not in a git repository, no such revision, or one that cannot be measured.
    """
    repository = repository or Path(
        _run(
            ["git", "rev-parse", "--show-toplevel"],
            "compare needs a git repository: run it in one",
        )
    )
    commit = _run(
        ["git", "-C", str(repository), "rev-parse", "--verify", f"{revision}^{{commit}}"],
        f"no revision {revision!r} in {repository}",
    )
    if _fails(["git", "-C", str(repository), "cat-file", "-e", f"{commit}:{OLDEST_WORKER}"]):
        raise UsageError(f"revision {revision!r} cannot be measured: it is older than {OLDEST_WORKER}")
    with tempfile.TemporaryDirectory() as folder:
        source, environment = Path(folder) / "source", Path(folder) / "venv"
        _run(
            ["git", "-C", str(repository), "worktree", "add", "--detach", str(source), commit],
            f"revision {revision!r} cannot be checked out",
        )
        try:
            venv.create(environment, with_pip=False)
            python = environment / "bin" / "python"
            site = sysconfig.get_path("purelib", "venv", {"base": str(environment)})
            # The revision's own packages, and after them this environment's: torch and the rest.
            paths = [*(str(source / root) for root in SOURCE_ROOTS), sysconfig.get_path("purelib")]
            Path(site, "revision.pth").write_text("\n".join(paths) + "\n")
            yield str(python)
        finally:
            _run(
                ["git", "-C", str(repository), "worktree", "remove", "--force", str(source)],
                f"the worktree {source} cannot be removed",
            )


def examine(
    cases: Sequence[Case],
    base: str,
    python: str,
    threads: int,
    threshold: float,
    policy: SamplingPolicy = POLICY,
) -> list[Finding]:
    """One finding a case; what is slower, or may be, has been measured again.

    Args:
        cases: to measure.
        base: what the other revision is called.
        python: interpreter that imports it.
        threads: of every worker.
        threshold: relative slowdown that is let pass.
        policy: how long to measure each case.
    """

    def measured(keys: Sequence[str]) -> dict[str, Finding]:
        chosen = [case for case in cases if case.id in keys]
        return _measured(chosen, base, python, threads, threshold, policy)

    return list(judge.twice(measured([case.id for case in cases]), measured).values())


def _measured(
    cases: Sequence[Case], base: str, python: str, threads: int, threshold: float, policy: SamplingPolicy
) -> dict[str, Finding]:
    """A finding for each case's id, from processes of their own."""
    other = f"{IMPLEMENTATION}@{base}"
    names = [IMPLEMENTATION, other]
    findings = {}
    with Engine.of_processes(names, threads, PROCESSES, pythons={other: python}) as engine:
        for case in cases:
            found = engine.measure(dict.fromkeys(names, case), policy)
            findings[case.id] = verdict(case, base, found[other], found[IMPLEMENTATION], threshold)
    return findings


def verdict(case: Case, base: str, then: Measurement, now: Measurement, threshold: float) -> Finding:
    """What became of a case between two revisions. More counted work fails; less is only reported."""

    def found(outcome: Outcome, text: str, doubtful: bool = False) -> Finding:
        return Finding(case=case.id, impl=IMPLEMENTATION, outcome=outcome, text=text, doubtful=doubtful)

    for who, measurement in ((base, then), ("this revision", now)):
        if not measurement.ok:
            return found("unmeasured", f"{who}: {measurement.status}: {measurement.reason}")
    changes = _work_changes(then, now)
    grown = [text for text, grew in changes if grew]
    ratio = ratios.speedup(seconds_by_round(then), seconds_by_round(now))
    if ratio is None or ratio.low is None or ratio.high is None:
        return found("unmeasured", "too few rounds")
    change = Change(base, *_slowdown(ratio), ratio.floor or 0.0)
    text = "; ".join([str(change), *(text for text, _ in changes)])
    if grown:
        return found("changed", text)
    return found(change.outcome(threshold), text, change.doubtful(threshold))


def _slowdown(ratio: ratios.Ratio) -> tuple[float, float]:
    half_width = ratio.half_width
    assert half_width is not None
    return -ratio.log, half_width


def _work_changes(then: Measurement, now: Measurement) -> list[tuple[str, bool]]:
    """Each counted figure that differs, in words, and whether it grew."""
    found = []
    for figure in FIGURES:
        before, after = getattr(then.work, figure), getattr(now.work, figure)
        if before != after:
            found.append((f"{figure} {before} -> {after}", before is None or (after or 0) > before))
    return found


def _fails(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


def _run(command: Sequence[str], failure: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"{failure}: {last}")
    return done.stdout.strip()
