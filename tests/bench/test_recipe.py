"""The gate of a repository that is not zipfmax's: the documented recipe, and the action's own scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from zipfmax.command import application
from zipfmax.errors import UsageError
from zipfmax_bench import compare, engine, gate, parity_guard, suite
from zipfmax_bench.engine import SamplingPolicy
from zipfmax_bench.executors import InProcess
from zipfmax_bench.gate_report import MARK

ACTION = Path(__file__).parents[2] / ".github" / "actions" / "gate"
LAYER = """import torch
from helper import spare


class L(torch.nn.AdaptiveLogSoftmaxWithLoss):
    def forward(self, input, target):
        spare(input, self.n_classes)
        return super().forward(input, target)
"""
AS_IT_WAS = "def spare(input, n_classes):\n    pass\n"
WORSE = "def spare(input, n_classes):\n    input.new_empty(len(input), n_classes)\n"
SMALL = ("--classes", "60", "--features", "8", "--batch", "16", "--task", "forward")
STUB = """#!{python}
from zipfmax.command import main
from zipfmax_bench import compare
from zipfmax_bench.engine import SamplingPolicy

compare.PROCESSES, compare.POLICY = 1, SamplingPolicy(rounds=4)
compare.examine.__defaults__ = (compare.POLICY,)
main()
"""
GH = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in *--paginate*) cat "$EARLIER";; esac
"""


def git(repository: Path, *arguments: str) -> None:
    name = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", repository, *name, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of somebody's, with one commit of a layer in it."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "mine.py").write_text(LAYER)
    (scratch / "helper.py").write_text(AS_IT_WAS)
    (scratch / ".gitignore").write_text("out/\n__pycache__/\n")
    git(scratch, "init", "--quiet")
    git(scratch, "add", ".")
    git(scratch, "commit", "--quiet", "--message", "all")
    monkeypatch.chdir(scratch)
    return scratch


def zipfmax(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(application(words[0]), [*words[1:]])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def measure(out: str) -> None:
    layers = ("--impl", "mine.py:L", "--impl", "torch", "--impl", "full")
    how = ("--labels", "zipf:1.0", "--threads", "1", "--rounds", "6", "--out", out)
    status, told = zipfmax("sweep", "--preset", "gate", *layers, *SMALL, *how)
    assert status == 0, told


def test_the_recipe_passes_for_the_same_code(repository, monkeypatch):
    monkeypatch.setattr(compare, "PROCESSES", 1)
    monkeypatch.setattr(gate, "RERUN_POLICY", SamplingPolicy(rounds=4))
    held = ("--baseline", "baseline.jsonl")
    with pytest.MonkeyPatch.context() as here:  # what the gate measures has processes of its own
        for module in (engine, parity_guard):
            here.setattr(module, "WorkerProcess", InProcess)
        measure("out/then")
    assert zipfmax("gate", "out/then", *held, "--update", "--no-rerun")[0] == 0
    left = ("--junit", "out/gate.xml", "--summary", "out/summary.md")
    status, told = zipfmax("gate", "out/then", *held, "--base", "HEAD", "--threshold", "0.9", *left)
    assert status == 0, told
    (case,) = ElementTree.parse("out/gate.xml").getroot()[0]
    assert case.get("classname") == "mine.py:L"


def test_the_action_s_scripts_compare_with_the_base_and_keep_one_comment(repository, tmp_path):
    (repository / "helper.py").write_text(WORSE)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("zipfmax", STUB.format(python=sys.executable)), ("gh", GH)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    files = {
        name: str(tmp_path / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY", "CALLS", "EARLIER")
    }
    Path(files["EARLIER"]).touch()
    environment = {
        **os.environ, **files, "PATH": f"{tools}:{os.environ['PATH']}", "BASE": "HEAD", "IMPL": "mine.py:L",
        "OPTIONS": " ".join((*SMALL, "--threads", "1")), "OUT": str(tmp_path / "out"),
        "REPOSITORY": "some/body", "NUMBER": "7", "SUMMARY": str(tmp_path / "out" / "summary.md"),
    }  # fmt: skip

    def script(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([ACTION / name], env=environment, capture_output=True, text=True, check=False)

    assert script("comment").returncode == 0  # nothing was judged yet
    assert not Path(files["CALLS"]).exists()
    done = script("gate")
    assert done.returncode == 1, done.stdout + done.stderr
    summary = Path(environment["SUMMARY"]).read_text()
    assert summary.startswith(MARK)
    assert "| changed |" in summary
    assert "peak_bytes" in summary
    assert Path(files["GITHUB_STEP_SUMMARY"]).read_text() == summary
    assert f"summary={environment['SUMMARY']}" in Path(files["GITHUB_OUTPUT"]).read_text()
    assert script("comment").returncode == 0
    Path(files["EARLIER"]).write_text("41\n")
    assert script("comment").returncode == 0
    asked = [line for line in Path(files["CALLS"]).read_text().splitlines() if "--method" in line]
    assert [line.split()[2:4] for line in asked] == [
        ["POST", "repos/some/body/issues/7/comments"],
        ["PATCH", "repos/some/body/issues/comments/41"],
    ]
    environment["BASE"] = "nowhere"
    refused = script("gate")
    assert (refused.returncode, "no revision 'nowhere'" in refused.stderr) == (2, True)


def test_pytest_benchmarks_a_layer_of_one_s_own_beside_the_references(repository):
    arguments = ("--benchmark", "--zipfmax-impl", "mine.py:L", "--collect-only", "-q", "-k", "forward")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    collected = [line.rpartition("-")[2] for line in done.stdout.splitlines() if "bench_forward[" in line]
    assert collected == ["mine.py:L]", "full]", "torch]"], done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torch", "torch is no class of your own"),
        ("none.py:L", "no such file: none.py"),
        ("mine.py", "no class"),
    ],
)
def test_what_is_no_layer_of_one_s_own_is_refused(repository, name, words):
    with pytest.raises(UsageError, match=words):
        suite.check_own(name)
