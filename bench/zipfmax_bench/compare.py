"""`zipfmax compare BASE_REF`: a git revision measured interleaved with the working tree, for a pull request.

Both are of the repository of the working directory, whichever zipfmax is installed. The revision is checked out
into a worktree, and each side's workers run in an environment that sees the side's packages and this
environment's others, so both compute with the same torch.
"""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from zipfmax.errors import UsageError
from zipfmax_bench import gate_report, judge, messages, presets, ratios, suite
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
MESSAGES = "bench/zipfmax_bench/messages.py"
"""The file that says which protocol a revision's workers follow."""
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
    """Measure a revision beside the working tree; 1 if the tree is surely slower, twice, or does more work.

    Args:
        base: a git revision, such as `main`.
        threads: of every worker; all usable cores by default.
        threshold: relative slowdown that is let pass.
        junit, summary: files to write, JUnit XML and Markdown.

    Raises:
        UsageError: not in a checkout of zipfmax, no such revision, or one that cannot be measured.
    """
    check_writable(junit, summary)
    if not 0 <= threshold < 1:
        raise UsageError(f"--threshold should be a share between 0 and 1, got {threshold:g}")
    console = terminal()
    cases = presets.cases(suite.AXES["quick"])
    repository = repository_here()
    with environment_of(base, repository) as then, environment(repository) as now:
        notes = [f"{base} is {_named(repository, base)}; this revision is {working_tree(repository)}"]
        console.print(notes[0], highlight=False, markup=False, soft_wrap=True)
        findings = examine(cases, base, (then, now), threads or usable_cores(), threshold)
    gate_report.show(findings, notes, console)
    if junit is not None:
        write_text(junit, gate_report.junit(findings))
    if summary is not None:
        write_text(summary, gate_report.summary(findings, notes))
    return 1 if any(finding.failed for finding in findings) else 0


def repository_here() -> Path:
    """The checkout of zipfmax that the working directory is in.

    Raises:
        UsageError: it is in none.
    """
    top = _run(["git", "rev-parse", "--show-toplevel"], "compare needs a git repository: run it in one")
    source = Path(top) / MESSAGES
    _check_protocol(source.read_text() if source.is_file() else "", f"the checkout {top}")
    return Path(top)


def _check_protocol(source: str, what: str) -> None:
    """Refuse workers that do not understand this engine's requests, from the text of their `messages`."""
    found = re.search(r"^PROTOCOL = (\d+)$", source, re.MULTILINE)
    if found is None or int(found[1]) != messages.PROTOCOL:
        theirs = f"protocol {found[1]}" if found else "an older protocol"
        raise UsageError(
            f"{what} cannot be measured: its workers follow {theirs} and this zipfmax follows {messages.PROTOCOL} "
            f"(PROTOCOL in {MESSAGES})"
        )


def working_tree(repository: Path) -> str:
    """The checkout and its commit in words, and whether files differ from the commit."""
    described = _named(repository, "--dirty")
    commit = described.removesuffix("-dirty")
    return f"the working tree of {repository} at {commit}{', with changes' if commit != described else ''}"


def _named(repository: Path, what: str) -> str:
    return _run(["git", "-C", str(repository), "describe", "--always", what], "it cannot be described")


@contextmanager
def environment_of(revision: str, repository: Path) -> Iterator[str]:
    """A Python interpreter that imports zipfmax of a revision, as long as the context lasts.

    Args:
        revision: as git takes it.
        repository: a checkout.

    Raises:
        UsageError: no such revision, or one that cannot be measured.
    """
    commit = _run(
        ["git", "-C", str(repository), "rev-parse", "--verify", f"{revision}^{{commit}}"],
        f"no revision {revision!r} in {repository}",
    )
    shown = subprocess.run(
        ["git", "-C", str(repository), "show", f"{commit}:{MESSAGES}"],
        capture_output=True,
        text=True,
        check=False,
    )
    _check_protocol(shown.stdout, f"revision {revision!r}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        _run(
            ["git", "-C", str(repository), "worktree", "add", "--detach", str(source), commit],
            f"revision {revision!r} cannot be checked out",
        )
        try:
            with environment(source) as python:
                yield python
        finally:
            _run(
                ["git", "-C", str(repository), "worktree", "remove", "--force", str(source)],
                f"the worktree {source} cannot be removed",
            )


@contextmanager
def environment(checkout: Path) -> Iterator[str]:
    """A Python interpreter that imports zipfmax from a checkout, as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False)
        site = sysconfig.get_path("purelib", "venv", {"base": folder})
        # The checkout's own packages, and after them this environment's: torch and the rest.
        paths = [*(str(checkout / root) for root in SOURCE_ROOTS), sysconfig.get_path("purelib")]
        Path(site, "checkout.pth").write_text("\n".join(paths) + "\n")
        yield str(Path(folder) / "bin" / "python")


def examine(
    cases: Sequence[Case],
    base: str,
    pythons: tuple[str, str],
    threads: int,
    threshold: float,
    policy: SamplingPolicy = POLICY,
) -> list[Finding]:
    """One finding a case; what is slower, or may be, has been measured again.

    Args:
        cases: to measure.
        base: what the other revision is called.
        pythons: interpreters that import the other revision and this one.
        threads: of every worker.
        threshold: relative slowdown that is let pass.
        policy: how long to measure each case.
    """

    def measured(keys: Sequence[str]) -> dict[str, Finding]:
        chosen = [case for case in cases if case.id in keys]
        return _measured(chosen, base, pythons, threads, threshold, policy)

    return list(judge.twice(measured([case.id for case in cases]), measured).values())


def _measured(
    cases: Sequence[Case],
    base: str,
    pythons: tuple[str, str],
    threads: int,
    threshold: float,
    policy: SamplingPolicy,
) -> dict[str, Finding]:
    """A finding for each case's id, from processes of their own."""
    other = f"{IMPLEMENTATION}@{base}"
    names = [other, IMPLEMENTATION]
    findings = {}
    interpreters = dict(zip(names, pythons, strict=True))
    with Engine.of_processes(names, threads, PROCESSES, pythons=interpreters) as engine:
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


def _run(command: Sequence[str], failure: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"{failure}: {last}")
    return done.stdout.strip()
