"""The gate's self-test counts what the gate does, for the cell and the reason that it was planted for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from zipfmax_bench import compare, selftest
from zipfmax_bench.engine import SamplingPolicy
from zipfmax_bench.selftest import CASES, KINDS, OURS, Kind
from zipfmax_reference.records import Finding, RunDirectory, SelfTest, SelfTestRun

KIND = {kind.name: kind for kind in KINDS}
CONTROL, SLOWER = KIND["a layer with nothing planted"], KIND["one cell made 10 % slower"]
TEMPORARY = KIND["one more temporary"]


def finding_of(case: str, impl: str, outcome: str, text: str = "") -> Finding:
    return Finding(case=case, impl=impl, outcome=outcome, text=text)


def found(outcome: str, kind: Kind = TEMPORARY, cell: int = 0, text: str = "peak_bytes 1 -> 2") -> Finding:
    return finding_of(CASES[cell].id, kind.stand_in, outcome, text)


def test_the_figures_are_those_that_were_asked_for():
    assert (CONTROL.runs, SLOWER.runs) == (100, 100)
    assert {kind.name for kind in KINDS if kind.required == "all"} == {
        "one more temporary", "one more host synchronisation", "a renamed cell",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "failures", "holds"),
    [
        (CONTROL, 0, True), (CONTROL, 1, True), (CONTROL, 2, False), (SLOWER, 95, True), (SLOWER, 94, False),
        (TEMPORARY, 5, True), (TEMPORARY, 4, False),
    ],
)  # fmt: skip
def test_a_score_holds_up_to_its_bound(kind, failures, holds):
    runs = [True] * failures + [False] * (kind.runs - failures)
    assert selftest.score(kind, runs).holds == holds


def test_any_failing_cell_is_a_false_alarm():
    ours = [finding_of(case.id, OURS, "ok") for case in CASES]
    assert not selftest.failed(CONTROL, ours)
    assert selftest.failed(CONTROL, [*ours, finding_of(CASES[1].id, "zipfmax:eager", "slower")])


@pytest.mark.parametrize(
    ("finding", "caught"),
    [
        (found("changed"), True),
        (found("slower"), False),  # it failed, and for another reason
        (found("changed", text="flops 1 -> 2"), False),
        (found("changed", cell=1), False),
        (found("changed", kind=CONTROL), False),
    ],
)
def test_a_fault_counts_as_caught_in_its_own_cell_and_for_its_own_reason(finding, caught):
    assert selftest.failed(TEMPORARY, [finding]) == caught


def test_what_is_timed_stands_side_by_side_so_that_a_cut_leaves_some_of_each():
    order = selftest.schedule(KINDS)
    assert len(order) == len(set(order)) == sum(kind.runs for kind in KINDS)
    timed = [kind for kind, _ in order if kind.timed]
    half = timed[: len(timed) // 2]
    assert [kind for kind, _ in order[: len(order) - len(timed)] if kind.timed] == []
    assert half.count(CONTROL) == pytest.approx(50, abs=1)
    assert half.count(SLOWER) == pytest.approx(50, abs=1)


@pytest.fixture
def small(monkeypatch, in_process):
    """One process a side and three samples: enough for what is counted."""
    monkeypatch.setattr(selftest, "PROCESSES", 1)
    monkeypatch.setattr(selftest, "REFERENCES", ("limit",))
    policy = replace(selftest.AXES.policy, rounds=3)
    monkeypatch.setattr(selftest, "AXES", replace(selftest.AXES, policy=policy))
    monkeypatch.setattr(compare, "PROCESSES", 1)
    monkeypatch.setattr(selftest, "RERUN_POLICY", SamplingPolicy(rounds=3))


def test_what_is_suspect_is_measured_beside_the_layer_as_it_was(small):
    key = (CASES[0].id, SLOWER.stand_in)
    finding = selftest.beside_ours([key])[key]
    assert finding.impl == SLOWER.stand_in
    assert "against the layer as it was" in finding.text


def test_runs_that_end_undecided_are_counted_and_no_failures(tmp_path, small, monkeypatch):
    said = [finding_of(case.id, OURS, "undecided") for case in CASES]
    monkeypatch.setattr(selftest, "examine", lambda *_: said)
    kinds = [replace(CONTROL, stand_in=OURS)]
    assert selftest.self_test(tmp_path / "run", kinds=kinds, runs=2) == 0
    (line,) = RunDirectory(tmp_path / "run").read(SelfTest)
    assert (line.runs, line.failed, line.undecided) == (2, 0, 2)


def test_a_resumed_self_test_does_what_is_left_and_keeps_the_rest(tmp_path, small, monkeypatch):
    kinds = [replace(TEMPORARY, runs=1), replace(KIND["a renamed cell"], runs=2)]
    assert selftest.self_test(tmp_path / "run", kinds=kinds[:1]) == 0
    directory = RunDirectory(tmp_path / "run")
    (first,) = directory.rows(SelfTestRun)
    assert "peak_bytes" in first["said"][0]["text"]
    measured = []
    gate_run = selftest.Bench.gate_run
    monkeypatch.setattr(
        selftest.Bench, "gate_run", lambda bench, kind: measured.append(kind.name) or gate_run(bench, kind)
    )
    assert selftest.self_test(tmp_path / "run", resume=True, kinds=kinds) == 0
    assert measured == ["a renamed cell"] * 2
    assert directory.rows(SelfTestRun)[0] == first
    scores = {line["kind"]: line for line in directory.rows(SelfTest)}
    assert [scores[kind.name]["failed"] for kind in kinds] == [1, 2]
    assert all(line["holds"] for line in scores.values())
