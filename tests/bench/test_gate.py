"""The gate fails for what got worse, and for nothing else."""

from __future__ import annotations

import json
import math
import re
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from zipfmax.command import application
from zipfmax.errors import UsageError
from zipfmax_bench import baseline, gate, gate_report, judge
from zipfmax_reference.records import Finding, RunDirectory, Timing
from zipfmax_reference.runs.invocation import invocation

MACHINE = {"cpu": "here", "gpus": [], "threads": 1, "torch": "2", "numpy": "2", "triton": None}


def record(
    case: str = "train-a", impl: str = "zipfmax", ratio: float = 2.0, width: float = 0.01, **more
) -> Timing:
    line = {
        "n_classes": 60, "in_features": 8, "batch_size": 16, "cutoffs": [10], "labels": "uniform", "task": "train",
        "case": case, "impl": impl, "status": "ok", "reason": None, "threads": 1,
        "peak_bytes": 1000, "flops": 5000, "launches": 30, "synchronisations": 2,
    }  # fmt: skip
    for reference in ("full", "torch"):
        line[f"speedup_vs_{reference}"] = ratio
        line[f"speedup_vs_{reference}_low"] = ratio * math.exp(-width)
        line[f"speedup_vs_{reference}_high"] = ratio * math.exp(width)
        line[f"speedup_vs_{reference}_floor"] = None
    return Timing(**{**line, **more})


def keyed(*timings: Timing) -> dict:
    return {(timing.case, timing.impl): timing for timing in timings}


def changed(timing: Timing, **fields) -> Timing:
    return timing.model_copy(update=fields)


def examine(*timings: Timing, rerun=None, beside=None, threshold: float = 0.05) -> list[Finding]:
    expected = baseline.baseline_of([record("train-a"), record("train-b")], MACHINE)
    return gate.examine(expected, keyed(*timings), threshold, rerun, beside)


def judged(timing: Timing) -> Finding:
    """What the baseline says of a cell that was measured once."""
    cell = baseline.cell_of(record("train-a"))
    return judge.judge(cell, timing)


def outcomes(findings) -> list[str]:
    return [finding.outcome for finding in findings]


def test_the_same_run_passes():
    findings = examine(record("train-a"), record("train-b"))
    assert outcomes(findings) == ["ok", "ok"]
    assert not any(finding.failed for finding in findings)


@pytest.mark.parametrize(
    ("ratio", "width", "outcome"),
    [
        (1.8, 0.01, "slower"),
        (1.85, 0.05, "slower"),  # surely slower, and by 8 % as far as is known
        (1.8, 0.2, "undecided"),  # it may be slower, but it has not been shown
        (2.0, 0.12, "undecided"),  # no change was seen, but one of 12 % might be there
        (2.0, 0.08, "ok"),  # 10 % are excluded
        (1.0, 5.0, "undecided"),
        (1.95, 0.001, "ok"),  # surely slower, by less than the threshold
        (2.2, 0.01, "faster"),
    ],
)
def test_a_cell_is_slower_if_it_surely_is_beyond_the_threshold_and_ok_if_twice_that_is_excluded(
    ratio, width, outcome
):
    assert judged(record("train-a", ratio=ratio, width=width)).outcome == outcome


@pytest.mark.parametrize(("floor", "outcome"), [(0.2, "undecided"), (0.08, "ok")])
def test_what_replicates_of_one_program_differ_by_is_no_slowdown_and_a_lot_of_it_leaves_all_open(
    floor, outcome
):
    ratio = 2.0 * math.exp(-0.07)
    noisy = record("train-a", ratio=ratio, speedup_vs_full_floor=floor, speedup_vs_torch_floor=floor)
    assert judged(noisy).outcome == outcome


@pytest.mark.parametrize(("steady", "outcome"), [("full", "ok"), ("torch", "slower")])
def test_a_time_is_judged_against_the_reference_that_varies_least(steady, outcome):
    mixed = record("train-a", ratio=1.8, width=0.03)
    for suffix in ("", "_low", "_high"):
        field = f"speedup_vs_full{suffix}"
        mixed = changed(mixed, **{field: getattr(record(width=0.03), field)})
    narrow = record(ratio=2.0 if steady == "full" else 1.8, width=0.01)
    for suffix in ("_low", "_high"):
        field = f"speedup_vs_{steady}{suffix}"
        mixed = changed(mixed, **{field: getattr(narrow, field)})
    assert judged(mixed).outcome == outcome


def test_a_baseline_alone_convicts_nobody_of_being_slower():
    slow = record("train-a", ratio=1.5)
    rerun, asked = answering(record("train-a", ratio=1.6), record("train-a"))
    suspect = examine(slow, record("train-b"), rerun=rerun)
    passed = examine(slow, record("train-b"), rerun=rerun)
    assert asked == [[CELL]] * 2
    assert outcomes(suspect) == outcomes(examine(slow, record("train-b"))) == ["undecided", "ok"]
    assert not suspect[0].failed
    assert re.search("--base REVISION.*again", suspect[0].text)
    assert outcomes(passed) == ["ok", "ok"]
    assert "not confirmed" in passed[0].text


def answered(*outcomes: str):
    """Measurements of base and head with these outcomes in turn, and the cells that they were asked for."""
    asked, left = [], list(outcomes)

    def beside(keys):
        asked.append(list(keys))
        return {key: Finding(case=key[0], impl=key[1], outcome=left.pop(0), text="beside") for key in keys}

    return beside, asked


@pytest.mark.parametrize(
    ("ratio", "width", "beside", "outcome"),
    [
        (1.5, 0.01, ["slower", "slower"], "slower"),
        (1.5, 0.01, ["slower", "ok"], "ok"),
        (1.5, 0.01, ["ok"], "ok"),  # the machine changed, not the code
        (1.5, 0.01, ["undecided", "undecided"], "undecided"),
        (1.5, 0.01, ["undecided", "slower", "slower"], "slower"),
        (2.0, 0.2, ["ok"], "ok"),
        (2.0, 0.01, [], "ok"),
        (2.4, 0.01, [], "faster"),
    ],
)
def test_what_the_baseline_makes_suspect_is_decided_by_base_and_head_measured_together(
    ratio, width, beside, outcome
):
    measured, asked = answered(*beside)
    finding = examine(record(ratio=ratio, width=width), record("train-b"), beside=measured)[0]
    assert (finding.outcome, asked) == (outcome, [[CELL]] * len(beside))
    assert finding.failed == (outcome == "slower")
    assert ("suspected" in finding.text) == bool(beside)


def test_an_undecided_cell_is_in_the_verdict_and_fails_by_option_only(capsys):
    findings = [
        Finding(case="a", impl="zipfmax", outcome="undecided", text="-91 % to +136 %"),
        Finding(case="b", impl="zipfmax", outcome="ok", text=""),
    ]
    assert gate_report.verdict(findings) == "undecided: 1 ok, 1 undecided"
    for fail_undecided, status, counts in ((False, 0, ("0", "1")), (True, 1, ("1", "0"))):
        suite = ElementTree.fromstring(gate_report.junit(findings, fail_undecided))[0]
        assert (suite.get("failures"), suite.get("skipped")) == counts
        left = gate_report.Left(fail_undecided=fail_undecided)
        assert gate_report.tell(findings, [], gate.terminal(), left) == status
    assert "undecided: 1 ok, 1 undecided" in capsys.readouterr().out


def answering(*answers: Timing):
    """A rerun that gives the records in turn, and the cells that it was asked for."""
    asked, left = [], list(answers)

    def rerun(keys):
        asked.append(list(keys))
        return {key: left.pop(0) for key in keys}

    return rerun, asked


CELL = ("train-a", "zipfmax")


@pytest.mark.parametrize(
    ("answers", "outcome", "words"),
    [
        ([1.8, 1.8], "undecided", "--base REVISION.*in doubt.*then.*again"),
        ([1.8, 2.0], "ok", "not confirmed: in doubt"),
        ([2.0], "ok", "in doubt"),
    ],
)
def test_a_cell_in_doubt_is_measured_again_and_suspect_only_if_then_slower_twice(answers, outcome, words):
    rerun, asked = answering(*(record(ratio=ratio) for ratio in answers))
    finding = examine(record(ratio=1.8, width=0.2), record("train-b"), rerun=rerun)[0]
    assert (finding.outcome, asked) == (outcome, [[CELL]] * len(answers))
    assert re.search(words, finding.text)


@pytest.mark.parametrize(("ratio", "width"), [(2.0, 0.09), (1.97, 0.07), (1.93, 0.02), (2.2, 0.1)])
def test_what_is_surely_not_much_slower_is_not_measured_again(ratio, width):
    rerun, asked = answering()
    assert outcomes(examine(record(ratio=ratio, width=width), record("train-b"), rerun=rerun)) == ["ok"] * 2
    assert asked == []


def test_a_baseline_is_made_of_ratios_that_are_known_well_enough():
    blurred, failed = record("train-a", width=0.1), record("train-c", width=0.1)
    peer = record("train-a", "torch", width=0.1)
    rerun, asked = answering(record("train-a", ratio=1.9), record("train-c", status="failed"))
    found = gate.sharpened(keyed(blurred, record("train-b"), failed, peer), rerun)
    assert asked == [[CELL, ("train-c", "zipfmax")]]
    assert [timing.speedup_vs_full for timing in found.values()] == [1.9, 2.0, 2.0, 2.0]
    assert all(timing.status == "ok" for timing in found.values())


@pytest.mark.parametrize("figure", baseline.FIGURES)
@pytest.mark.parametrize("change", [-1, 1, None])
def test_a_counted_figure_that_differs_fails_in_both_directions(figure, change):
    first = record("train-a")
    other = changed(first, **{figure: None if change is None else getattr(first, figure) + change})
    finding = examine(other, record("train-b"))[0]
    assert finding.outcome == "changed"
    assert finding.failed
    assert figure in finding.text
    assert json.loads(finding.update)["case"] == "train-a"


@pytest.mark.parametrize("status", ["skipped", "parity_failed", "failed", "over_budget", "out_of_memory"])
def test_a_cell_that_was_not_measured_fails_with_its_reason(status):
    finding = examine(record("train-a", status=status, reason="because"), record("train-b"))[0]
    assert finding.failed
    assert "because" in finding.text


def test_a_renamed_cell_is_missing():
    findings = examine(record("train-a2"), record("train-b"))
    assert outcomes(findings) == ["missing", "ok"]
    assert findings[0].failed


def test_a_run_without_the_references_fails():
    ratios = [name for name in Timing.model_fields if name.startswith("speedup")]
    finding = examine(changed(record("train-a"), **dict.fromkeys(ratios)), record("train-b"))[0]
    assert finding.failed
    assert "reference" in finding.text


def test_peers_are_not_kept_and_the_file_reads_back_sorted(tmp_path):
    made = baseline.baseline_of(
        [record("b"), record("a"), record("a", "torch"), record("a", "full")], MACHINE
    )
    file = tmp_path / "baseline.jsonl"
    file.write_text(made.text())
    assert [json.loads(line)["case"] for line in file.read_text().splitlines()[1:]] == ["a", "b"]
    assert baseline.read(file).cells == made.cells


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not a baseline of zipfmax"),
        ("{}", "no format"),
        ('{"format": 99}', "format 99; this zipfmax reads 1"),
        ("{", "cannot be read"),
        ('{"format": 1}\n{"case": 3}', "line 2"),
        ('{"format": 1}\n{"case": "a", "impl": "b", "flops": "many"}', "line 2: flops: .*, got 'many'"),
        ('{"format": 1}\n{"case": "a", "impl": "b", "speedup_vs_torch": 3}', "speedup_vs_torch: .*, got 3"),
        ('{"format": 1}\n{"case": "a", "impl": "b", "speedup": [1, 1, 1]}', "line 2: speedup: Extra"),
        ('{"format": 1}\n{"case": "a", "impl": "b", "speedup_vs_torch": [1, 0, 2]}', "than 0, got 0"),
        ('{"format": 1}\n', "has no cell"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused_in_one_line(tmp_path, content, words):
    file = tmp_path / "baseline.jsonl"
    file.write_text(content)
    with pytest.raises(UsageError, match=words) as caught:
        baseline.read(file)
    assert "\n" not in str(caught.value)


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory.start(tmp_path / "run", invocation({}))
    directory.write(record("train-a"), record("train-b"), record("train-a", "torch"))
    return directory


def invoke(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(application("gate"), [*map(str, arguments)])
    if isinstance(result.exception, UsageError):
        return 2, str(result.exception)
    return result.exit_code, result.output


def test_update_writes_what_then_passes_and_the_reports_say_so(run, tmp_path):
    file, junit, summary = (tmp_path / name for name in ("baseline.jsonl", "junit.xml", "summary.md"))
    assert invoke(run.path, "--baseline", file, "--update")[0] == 0
    status, output = invoke(run.path, "--baseline", file, "--junit", junit, "--summary", summary)
    assert (status, "passed: 2 ok" in output) == (0, True)
    suite = ElementTree.parse(junit).getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "0")
    assert "passed: 2 ok" in summary.read_text()


def test_a_half_written_last_line_is_reported_and_ignored(run, tmp_path):
    file = tmp_path / "baseline.jsonl"
    invoke(run.path, "--baseline", file, "--update")
    with (run.path / "timings.jsonl").open("a") as stream:
        stream.write('{"case": "tra')
    status, output = invoke(run.path, "--baseline", file)
    assert status == 0
    assert "half-written" in output


def test_a_failure_names_the_cell_the_figures_and_the_line_to_update(run, tmp_path):
    file, junit = tmp_path / "baseline.jsonl", tmp_path / "junit.xml"
    invoke(run.path, "--baseline", file, "--update")
    other = RunDirectory.start(tmp_path / "other", invocation({}))
    other.write(record("train-a", flops=5001), record("train-b"))
    status, output = invoke(other.path, "--baseline", file, "--junit", junit)
    assert status == 1
    assert "FAILED: 1 changed, 1 ok" in output
    assert '"flops": 5001' in output
    assert ElementTree.parse(junit).getroot()[0].get("failures") == "1"


def test_a_run_of_another_machine_is_judged_as_it_is(run, tmp_path, monkeypatch):
    file = tmp_path / "baseline.jsonl"
    invoke(run.path, "--baseline", file, "--update")
    other = RunDirectory.start(tmp_path / "other", invocation({}))
    other.write(record("train-a", ratio=1.5), record("train-b"))
    monkeypatch.setattr(gate, "measure_again", lambda found: answering(record(ratio=2.0))[0])
    assert "passed" in invoke(other.path, "--baseline", file)[1]  # what is here disagrees
    there = {**gate.machine.describe(), "cpu": "another"}
    monkeypatch.setattr(gate.machine, "describe", lambda: there)
    _, output = invoke(other.path, "--baseline", file)
    assert "undecided: 1 ok, 1 undecided" in output
    assert "another machine" in output
    status, message = invoke(other.path, "--baseline", file, "--base", "HEAD")
    assert (status, "judge it there" in message) == (2, True)


@pytest.mark.parametrize("name", ["cpu", "gpus", "threads", "torch"])
def test_a_baseline_of_another_machine_torch_or_thread_count_is_refused_unless_forced(run, tmp_path, name):
    file = tmp_path / "baseline.jsonl"
    invoke(run.path, "--baseline", file, "--update")
    header, *cells = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps({**json.loads(header), name: "other"}), *cells]) + "\n")
    status, message = invoke(run.path, "--baseline", file)
    assert status == 2
    assert f"the baseline has {name} other" in message
    assert "--force" in message
    status, output = invoke(run.path, "--baseline", file, "--force")
    assert (status, "passed: 2 ok" in output) == (0, True)


def test_another_numpy_is_only_told(run, tmp_path):
    file = tmp_path / "baseline.jsonl"
    invoke(run.path, "--baseline", file, "--update")
    file.write_text(re.sub('"numpy": "[^"]*"', '"numpy": "0"', file.read_text()))
    status, output = invoke(run.path, "--baseline", file)
    assert (status, "the baseline has numpy 0" in output) == (0, True)


def test_cells_that_the_baseline_lacks_are_counted(run, tmp_path):
    file = tmp_path / "baseline.jsonl"
    invoke(run.path, "--baseline", file, "--update")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert "1 cells of the run are not in the baseline" in invoke(run.path, "--baseline", file)[1]


def test_another_machine_or_version_is_named():
    notes = gate.differences(MACHINE, {**MACHINE, "torch": "3", "cpu": "there"})
    assert notes == ["the baseline has cpu here, this run there", "the baseline has torch 2, this run 3"]


def test_a_benchmark_json_is_read_like_a_run_directory(tmp_path):
    file = tmp_path / "benchmark.json"
    content = {
        "machine_info": {"zipfmax": {"cpu": "here", "gpus": [], "versions": {"torch": "2"}}},
        "benchmarks": [{"extra_info": {**record("train-a").model_dump(), "parity_error": 0.5}}],
    }
    file.write_text(json.dumps(content))
    found = gate.read_run(file)
    assert found.cells == keyed(record("train-a"))
    assert found.machine["torch"] == "2"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("{}", "not a JSON of `pytest --benchmark`: 'benchmarks' is missing"),
        ("[]", "not a JSON of `pytest --benchmark`"),
        ('{"benchmarks": [], "machine_info": {"zipfmax": {"versions": {}}}}', "holds no timing"),
        (
            '{"benchmarks": [{"extra_info": {}}], "machine_info": {"zipfmax": {"versions": {}}}}',
            "benchmark 1 is not a timing of zipfmax: see n_classes",
        ),
        (None, "no run at"),
    ],
)
def test_what_is_no_run_ends_with_status_2(tmp_path, content, words):
    file = tmp_path / "benchmark.json"
    if content is not None:
        file.write_text(content)
    status, message = invoke(file, "--baseline", tmp_path / "b")
    assert status == 2
    assert words in message


def test_an_empty_run_ends_with_status_2(tmp_path):
    RunDirectory.start(tmp_path / "run", invocation({}))
    status, message = invoke(tmp_path / "run", "--baseline", tmp_path / "b")
    assert (status, "holds no timing" in message) == (2, True)


@pytest.mark.parametrize(
    ("timings", "words"),
    [
        ('{"case": "tra', "holds no timing; .*half-written"),
        ('{"case": "tra\n{"case": "a", "impl": "b"}\n', "line 1 is not JSON"),
        ('{"case": "a", "impl": "b"}\n', "line 1: n_classes: Field required"),
        ("[1]\n", "line 1: .*dictionary"),
    ],
)
def test_a_truncated_or_foreign_run_ends_with_status_2(tmp_path, timings, words):
    directory = RunDirectory.start(tmp_path / "run", invocation({}))
    (directory.path / "timings.jsonl").write_text(timings)
    status, message = invoke(directory.path, "--baseline", tmp_path / "b")
    assert status == 2
    assert re.search(words, message)
    assert "\n" not in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["--self-test", "--baseline", "b"],
        ["--self-test", "run"],
        ["--self-test", "--resume"],
        ["--self-test", "--base", "main"],
        ["--self-test", "--runs", "0"],
        ["run", "--runs", "3"],
        ["run", "--resume"],
        ["run", "--baseline", "b", "--out", "c"],
        [],
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments):
    status, message = invoke(*arguments)
    assert status == 2
    assert "--self-test" in message or "--resume" in message or "--runs" in message


def test_a_summary_stays_under_the_limit_with_the_failures_first():
    many = [Finding(case=f"case-{i}", impl="zipfmax", outcome="ok", text="x" * 200) for i in range(1000)]
    worst = Finding(case="worst", impl="zipfmax", outcome="slower", text="very")
    text = gate_report.summary([*many, worst], [])
    assert len(text.encode()) <= gate_report.SUMMARY_LIMIT
    assert text.index("worst") < text.index("case-0")
    assert "more cells, left out" in text
