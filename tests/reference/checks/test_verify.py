import json
import os
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from zipfmax.command import application
from zipfmax.errors import UsageError
from zipfmax_reference.checks import findings, verify
from zipfmax_reference.console import terminal
from zipfmax_reference.contestants import registry
from zipfmax_reference.records import Parity, RunDirectory
from zipfmax_reference.runs import grid as grids
from zipfmax_reference.runs.case import PROTOCOL, Case
from zipfmax_reference.truth import oracle

CELLS = "V203-*-div1.5-bias-float32"
ONE = ("definition",)


def options(**fields):
    return verify.Options(**{"cells": CELLS, "impl": ("zipfmax:eager",), "against": ONE, **fields})


@pytest.fixture
def wrong_layer(tmp_path):
    file = tmp_path / "[" / "a]" / "mine.py"  # the path holds what closes a tag of rich's markup
    file.parent.mkdir(parents=True)
    file.write_text(
        textwrap.dedent("""
            import torch

            class Layer(torch.nn.AdaptiveLogSoftmaxWithLoss):
                def predict(self, hidden):
                    return super().predict(hidden).clamp(max=1)
        """)
    )
    return f"{file}:Layer"


def test_a_right_implementation_gives_status_0_and_a_table(capsys):
    assert verify.run(options()) == 0
    shown = capsys.readouterr().out
    assert "zipfmax:eager" in shown
    assert "FAILED" not in shown
    assert shown.splitlines()[-1].startswith(
        "verdict: passed, 4 cells of zipfmax:eager within the budgets against definition; the worst error is "
    )


def test_a_wrong_layer_gives_status_1_and_the_command_that_shows_it(wrong_layer, capsys):
    assert verify.run(options(impl=("torch", wrong_layer))) == 1
    shown = capsys.readouterr().out.splitlines()
    failures = [line for line in shown if line.startswith("FAILED")]
    assert failures
    assert all("predict" in line and wrong_layer in line for line in failures)
    assert shown[-1].startswith("verdict: FAILED, ")
    assert shown[-1].endswith(f" wrong: {wrong_layer}")
    command = shlex.split(next(line for line in shown if line.startswith("  zipfmax verify")))
    again = CliRunner().invoke(application(command[1]), command[2:])
    assert again.exit_code == 1
    assert "FAILED" in again.output


def failed(case, tensor, cause=None, error=2.0, impl="mine.py:Layer"):
    return {
        "impl": impl,
        "case": case,
        "tensor": tensor,
        "against": "definition",
        "dtype": "float32",
        "status": "fail",
        "error": error,
        "budget": 1.0,
        "cause": cause,
        "reason": None,
        "where": "row 3",
        "grain": "row",
        "parts": [],
    }


def test_failures_are_grouped_by_cause_with_one_command_each_and_at_most_ten_are_shown():
    rare = [failed(f"V{n}", f"tensor.{n}") for n in range(11)]
    alike = [
        failed(f"V{n}", tensor, "no gradient", n) for n in range(2, 5) for tensor in ("a", "b", "c", "d")
    ]
    shown = list(
        findings.lines(
            [*rare, *alike], {"mine.py:Layer": set()}, lambda impl, case: f"{impl} {case}", "see FILE"
        )
    )
    assert shown[0] == (
        "FAILED mine.py:Layer, a and 3 other tensors: row 3 is off by 4, 1 is allowed (row); "
        "likely cause: no gradient (3 cells, against definition)"
    )
    assert shown[1] == "  mine.py:Layer V4"
    assert len(shown) == 2 * findings.MOST + 1
    assert shown[-1] == "and 2 other causes: see FILE"


def test_a_table_keeps_its_columns_in_a_pipe(wrong_layer, capsys):
    verify.run(options(impl=(wrong_layer,)))
    heading = next(line for line in capsys.readouterr().out.splitlines() if "implementation" in line)
    assert "worst error/budget" in heading


def test_every_record_is_left_in_the_run_directory(tmp_path):
    verify.run(options(against=("definition", "torch")), out=tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    records = directory.rows(Parity)
    cases = {case.id for case in grids.matching(grids.grid("quick"), CELLS)}
    assert {r["case"] for r in records} == cases
    assert {r["against"] for r in records} == {"definition", "torch"}
    assert directory.meta.arguments["cells"] == CELLS


def test_processes_that_share_the_cases_find_what_one_finds(tmp_path, monkeypatch, wrong_layer):
    chosen = options(impl=("torch", wrong_layer), against=("definition", "torch"))
    assert verify.run(chosen, out=tmp_path / "one") == 1
    monkeypatch.setattr(verify.processes, "worth", lambda cases, device: 2)
    assert verify.run(chosen, out=tmp_path / "shared") == 1

    def verdicts(name):
        records = RunDirectory(tmp_path / name).rows(Parity)
        return [tuple(r[key] for key in ("case", "impl", "against", "tensor", "status")) for r in records]

    assert verdicts("shared") == verdicts("one")


def test_a_resumed_run_ends_with_the_cells_of_an_unbroken_one(tmp_path, monkeypatch):
    verify.run(options(), out=tmp_path / "whole")
    whole = RunDirectory(tmp_path / "whole").rows(Parity)

    checked = []
    check = oracle.Oracle.check

    def interrupted(self, implementation):
        if len(checked) == 2:
            raise KeyboardInterrupt
        checked.append(self.case.id)
        return check(self, implementation)

    monkeypatch.setattr(oracle.Oracle, "check", interrupted)
    assert verify.run(options(), out=tmp_path / "broken") == verify.INTERRUPTED
    monkeypatch.setattr(oracle.Oracle, "check", check)
    torn = tmp_path / "broken" / "parity.jsonl"
    torn.write_text(torn.read_text()[:-30])
    assert verify.run(options(), out=tmp_path / "broken", resume=True) == 0

    def keys(records):
        return {(r["case"], r["tensor"], r["status"]) for r in records}

    assert keys(RunDirectory(tmp_path / "broken").rows(Parity)) == keys(whole)


def test_a_resumed_run_computes_no_finished_cell_again(tmp_path, monkeypatch):
    verify.run(options(), out=tmp_path / "run")
    checked = []
    check = oracle.Oracle.check
    monkeypatch.setattr(
        oracle.Oracle, "check", lambda self, i: checked.append(self.case.id) or check(self, i)
    )
    verify.run(options(), out=tmp_path / "run", resume=True)
    last = RunDirectory(tmp_path / "run").rows(Parity)[-1]["case"]
    assert checked == [last]  # it may have been cut off between two of its lines


def test_a_failure_found_before_the_interruption_still_fails(tmp_path, wrong_layer, capsys):
    wrong = options(impl=(wrong_layer,))
    verify.run(wrong, out=tmp_path / "run")
    assert verify.run(wrong, out=tmp_path / "run", resume=True) == 1
    file = Path(wrong_layer.rpartition(":")[0])
    file.write_text(file.read_text().replace("max=1", "max=10_000"))
    with pytest.raises(
        UsageError, match=r"mine\.py:Layer, or a file that it imports, has changed.*another --out"
    ):
        verify.run(wrong, out=tmp_path / "run", resume=True)


def test_a_missing_framework_is_skipped_in_plain_words(monkeypatch, capsys):
    from zipfmax_reference.contestants import paddle_nn

    monkeypatch.setattr(paddle_nn, "find_spec", lambda name: None)
    assert verify.run(options(against=("definition", "paddle"))) == 0
    assert "against paddle, 4 cells: paddle: paddle is not installed" in capsys.readouterr().out


def test_an_implementation_that_can_do_nothing_here_is_shown_with_its_reason(monkeypatch, capsys):
    from zipfmax_reference.contestants import paddle_nn

    monkeypatch.setattr(paddle_nn, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="nothing was judged: paddle is not installed"):
        verify.run(options(impl=("paddle",)))
    shown = capsys.readouterr().out
    assert "skipped: paddle against definition, 4 cells: paddle is not installed" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--grid", "huge"],
        ["--impl", "torhc"],
        ["--against", "torhc"],
        ["--cells", "V7-"],
        ["--impl", "nothing.py:"],
        ["--impl", "nosuch.module:Layer"],
        ["--device", "banana"],
        ["--device", "cuda:"],
    ],
)
def test_wrong_use_is_told_in_one_line_with_status_2(arguments, monkeypatch, capsys):
    from zipfmax.command import main

    monkeypatch.setattr(sys, "argv", ["zipfmax", "verify", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_rule_that_is_not_promised_is_named(capsys):
    promises_less = "zipfmax_reference.checks.faults_backward:Early"
    case = Case(40, 12, 17, (7, 20), task=PROTOCOL)
    tally = verify.Tally()
    for record in oracle.check(case, registry.implementation(promises_less), ONE):
        tally.add(record)
    tally.show(terminal(width=200), options())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped")]
    assert len(lines) == 3  # its graph's context can be neither copied nor pickled
    assert lines[0].startswith(
        f"skipped: {promises_less}, a second derivative is right, 1 cell: not promised: "
    )


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        verify.run(options(), out=tmp_path)


def test_what_is_written_is_json_alone(tmp_path):
    verify.run(options(), out=tmp_path / "run")
    for line in (tmp_path / "run" / "parity.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_by_default_every_backend_of_the_device_is_verified():
    names = verify.Options().implementations()
    assert names[0] == "zipfmax"
    assert "zipfmax:eager" in names
    assert "zipfmax:triton" not in names
    assert "zipfmax:triton" in verify.Options(device="cuda").implementations()


TRAINED = {"output", "loss", "grad.input", "grad.head.bias", "grad.tail.2.1.weight"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "cells", "dtype", "tensors"),
    [
        ("quick", "V60-*-div1.5-bias", "float32", {*TRAINED, "log_prob", "predict"}),
        ("full", "train-V97-*-div1.5-bias-bfloat16", "bfloat16", TRAINED),
        ("full", "log_prob-V97-*-N33-*-div1.5-bias-float16", "float16", {"log_prob"}),
    ],
)
def test_the_triton_kernels_hold_under_their_interpreter(grid, cells, dtype, tensors, tmp_path):
    pytest.importorskip("triton")
    command = [
        "verify",
        "--grid",
        grid,
        "--cells",
        cells,
        "--impl",
        "zipfmax:triton",
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "zipfmax", *command, "--against", "definition", "--against", "torch"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    records = RunDirectory(tmp_path / "run").rows(Parity)
    passed = {(r["tensor"], r["against"]) for r in records if r["status"] == "pass"}
    assert passed >= {(tensor, against) for tensor in tensors for against in ("definition", "torch")}
    unserved = {(r["dtype"], r["reason"].rpartition(", ")[2]) for r in records if r["tensor"] == oracle.WHOLE}
    assert unserved == ({("float64", "not in float64")} if grid == "quick" else set())
    assert {r["dtype"] for r in records if r["status"] == "pass"} == {dtype}
