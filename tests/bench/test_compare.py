"""Two revisions of zipfmax are told apart by time only where it is sure, by work always."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import zipfmax
from zipfmax.errors import UsageError
from zipfmax_bench.compare import CompareOptions, chosen_cells, examine, verdict
from zipfmax_bench.engine import Measurement, Sample, SamplingPolicy
from zipfmax_bench.messages import PROTOCOL, Work
from zipfmax_bench.revisions import MESSAGES, commit_of, repository_here, sides, working_tree
from zipfmax_reference.runs.case import Case

CASE = Case(60, 8, 16, (10, 30))
CHECKOUT = Path(zipfmax.__file__).resolve().parents[2]
WORK = Work(peak_bytes=100, flops=200, launches=10, synchronisations=1)


def measurement(seconds: float, work: Work = WORK) -> Measurement:
    samples = [Sample(i % 4, i, seconds * (1 + 0.001 * (i % 3)), seconds) for i in range(24)]
    return Measurement(samples=samples, work=work)


@pytest.mark.parametrize(("now", "outcome"), [(1.2, "slower"), (1.0, "ok"), (1.03, "ok"), (0.8, "faster")])
def test_time_decides_beyond_the_threshold(now, outcome):
    finding = verdict(CASE, "zipfmax", "main", measurement(1.0), measurement(now), threshold=0.05)
    assert finding.outcome == outcome


@pytest.mark.parametrize(
    ("work", "failed"),
    [
        (Work(peak_bytes=101, flops=200, launches=10, synchronisations=1), True),
        (Work(peak_bytes=100, flops=200, launches=10, synchronisations=2), True),
        (Work(peak_bytes=90, flops=200, launches=9, synchronisations=1), False),
    ],
)
def test_more_work_fails_and_less_is_told(work, failed):
    finding = verdict(CASE, "zipfmax", "main", measurement(1.0), measurement(1.0, work), 0.05)
    assert finding.failed == failed
    assert "->" in finding.text


def test_a_revision_that_cannot_run_fails_by_name():
    broken = Measurement("failed", "ValueError: no")
    finding = verdict(CASE, "zipfmax", "main", broken, measurement(1.0), threshold=0.05)
    assert finding.failed
    assert finding.text == "main: failed: ValueError: no"


def test_an_unknown_revision_is_refused():
    with pytest.raises(UsageError, match="no revision 'nowhere'"):
        commit_of("nowhere", CHECKOUT)


def commit_all(repository):
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "all"],
    ):
        subprocess.run(["git", "-C", repository, *command], check=True, capture_output=True)


def test_outside_of_a_repository_and_where_there_is_nothing_to_compare_one_line_says_so(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UsageError, match="needs a git repository: run it in one"):
        repository_here()
    (tmp_path / "mine.py").write_text("import torch\nclass L(torch.nn.AdaptiveLogSoftmaxWithLoss): pass\n")
    commit_all(tmp_path)
    with pytest.raises(UsageError, match=f"{tmp_path} is not a checkout of zipfmax"):
        chosen_cells(CompareOptions(), repository_here())
    with pytest.raises(UsageError, match="torch is the same in both revisions"):
        chosen_cells(CompareOptions(impl=("torch",)), tmp_path)
    (tmp_path / "new.py").touch()
    with sides("HEAD", tmp_path) as (then, now):
        assert then.implementation("mine.py:L") == f"{then.root}/mine.py:L"
        assert now.implementation("mine.py:L") == f"{tmp_path}/mine.py:L"
        with pytest.raises(UsageError, match=r"new\.py is not in revision 'HEAD'"):
            then.implementation("new.py:L")
        with pytest.raises(UsageError, match="is not in the repository"):
            then.implementation("/elsewhere/mine.py:L")
    (tmp_path / "bench/zipfmax_bench").mkdir(parents=True)
    (tmp_path / MESSAGES).write_text(f"PROTOCOL = {PROTOCOL}\n")
    with pytest.raises(UsageError, match="'HEAD' cannot be measured: its workers follow an older protocol"):
        commit_of("HEAD", tmp_path)


def test_a_revision_whose_workers_understand_other_requests_is_refused_before_anything_runs(other_revision):
    source = other_revision / MESSAGES
    source.write_text(source.read_text().replace(f"PROTOCOL = {PROTOCOL}", "PROTOCOL = 1"))
    with pytest.raises(
        UsageError, match=r"the checkout .* cannot be measured: its workers follow protocol 1 "
    ):
        commit_of("HEAD", other_revision)
    commit_all(other_revision)
    with pytest.raises(UsageError, match=f"'HEAD' .* follow protocol 1 and this zipfmax follows {PROTOCOL}"):
        commit_of("HEAD", other_revision)


def test_all_tasks_and_backends_are_compared_unless_some_are_chosen():
    cells = chosen_cells(CompareOptions(), CHECKOUT)
    assert {impl for _, impl in cells} == {"zipfmax:eager", "zipfmax:tiled"}
    assert {case.task for case in cells.values()} == {"forward", "train", "log_prob", "predict", "topk"}
    few = chosen_cells(CompareOptions(impl=("zipfmax",), task=("topk",), classes=(60,), batch=(8,)), CHECKOUT)
    ((case, impl),) = few
    assert (impl, case.startswith("topk-V60-d64-N8-")) == ("zipfmax", True)


@pytest.fixture
def other_revision(tmp_path):
    """A repository whose commit is this code, but for a layer that waits for its loss in every forward."""
    repository = tmp_path / "repository"
    for name in ("impl/zipfmax", "reference/zipfmax_reference", "bench/zipfmax_bench"):
        shutil.copytree(CHECKOUT / name, repository / name)
    layer = repository / "impl" / "zipfmax" / "module.py"
    layer.write_text(
        layer.read_text()
        + """

_forward = AdaptiveLogSoftmaxWithLoss.forward


def _waiting(self, input, target):
    result = _forward(self, input, target)
    result.loss.detach().item()
    return result


AdaptiveLogSoftmaxWithLoss.forward = _waiting
"""
    )
    commit_all(repository)
    return repository


def test_this_side_is_the_working_directorys_checkout_whatever_is_installed(other_revision, monkeypatch):
    monkeypatch.chdir(other_revision / "impl")
    repository = repository_here()
    assert repository == other_revision
    assert working_tree(repository).startswith(f"the working tree of {repository} at ")
    assert "changes" not in working_tree(repository)
    (repository / "impl" / "zipfmax" / "errors.py").write_text("# changed\n")
    assert working_tree(repository).endswith(", with changes")
    with sides("HEAD", repository) as (_, now):
        program = "import zipfmax; print(zipfmax.__file__)"
        told = subprocess.run([now.python, "-I", "-c", program], check=True, capture_output=True, text=True)
    assert Path(told.stdout.strip()).is_relative_to(repository)


def test_another_revision_is_measured_beside_this_one(other_revision, monkeypatch):
    roots = [str(CHECKOUT / name) for name in ("impl", "reference", "bench")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(roots))  # this code must not hide the other revision's
    monkeypatch.setattr("zipfmax_bench.compare.PROCESSES", 1)
    with sides("HEAD", other_revision) as (then, now):
        where = subprocess.run(
            [then.python, "-I", "-c", "import zipfmax, torch; print(zipfmax.__file__); print(torch.__version__)"],
            check=True, capture_output=True, text=True, cwd="/",
        ).stdout.split()  # fmt: skip
        pair = then, replace(now, python=sys.executable)
        (finding,) = examine({(CASE.id, "zipfmax"): CASE}, pair, 1, 0.99, SamplingPolicy(rounds=3)).values()
    assert Path(where[0]).parent.parts[-3:] == ("source", "impl", "zipfmax")
    assert where[1] == torch.__version__
    assert not finding.failed, finding.text
    assert "launches" in finding.text
    assert "synchronisations" in finding.text
    worktrees = subprocess.run(
        ["git", "-C", other_revision, "worktree", "list"], check=True, capture_output=True, text=True
    ).stdout
    assert len(worktrees.splitlines()) == 1
