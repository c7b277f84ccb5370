"""A sweep records every cell once, whatever becomes of it and however often it is killed."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from zipfmax import timers
from zipfmax.command import application
from zipfmax.errors import UsageError
from zipfmax_bench import presets, sweep_options
from zipfmax_bench.sweep import run
from zipfmax_bench.sweep_options import SweepOptions
from zipfmax_reference.contestants import registry
from zipfmax_reference.records import Parity, Plan, RunDirectory
from zipfmax_reference.runs.invocation import invocation

FAULTY = Path(__file__).parent / "faulty.py"
COMMAND = [sys.executable, "-m", "zipfmax", "sweep"]
SMALL = ["--classes", "60", "--cutoffs", "10,30", "--features", "16", "--batch", "8", "--threads", "1"]
SMALL_OPTIONS = {"classes": (60,), "cutoffs": ("10,30",), "features": (16,), "batch": (8,), "threads": 1}


def sweep(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=1200)
    assert done.returncode == expect, done.stderr + done.stdout
    return done


def sweep_here(out: Path, resume: bool = False, **chosen) -> int:
    """As `sweep`, started by this process; with `in_process` the implementations are in it too."""
    return run(SweepOptions(**{**({} if resume else SMALL_OPTIONS), **chosen}), out, resume)


def lines(directory: Path, kind: str = "timings") -> list[dict]:
    return [json.loads(line) for line in (directory / f"{kind}.jsonl").read_text().splitlines()]


def options(flag: str, *values: str) -> list[str]:
    return [word for value in values for word in (flag, value)]


@pytest.mark.slow
def test_a_killed_sweep_resumes_to_the_same_cells_as_an_unbroken_one(tmp_path, in_process):
    chosen = [
        *SMALL,
        *options("--labels", "zipf:1.0", "uniform"),
        *options("--impl", "torch", "zipfmax:eager", "full"),
        *("--rounds", "3"),
    ]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    impl = ("torch", "zipfmax:eager", "full")
    sweep_here(whole, labels=("zipf:1.0", "uniform"), impl=impl, rounds=3)

    process = subprocess.Popen([*COMMAND, *chosen, "--out", str(broken)], stdout=subprocess.DEVNULL)
    timings = broken / "timings.jsonl"
    deadline = time.monotonic() + 600
    while not timings.exists() or timings.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = timings.read_bytes()
    assert 3 <= finished.count(b"\n") < 12, "it was killed in the middle"

    with timings.open("ab") as stream:  # as if the kill had come in the middle of a line
        stream.write(b'{"case": "half-wri')
    sweep_here(broken, resume=True)
    assert timings.read_bytes().startswith(finished), "finished cells stay as they were"
    cells = [(line["case"], line["impl"], line["status"]) for line in lines(broken)]
    assert Counter(cells) == Counter((line["case"], line["impl"], line["status"]) for line in lines(whole))
    assert len(cells) == 2 * 2 * 3


def test_a_sweep_goes_on_in_the_directory_of_a_parity_run(tmp_path, in_process):
    directory = RunDirectory.start(tmp_path / "run", invocation({"grid": "quick"}))
    line = {"case": "some", "impl": "torch", "against": "definition", "tensor": "loss", "status": "pass"}
    directory.write(Parity(**line, error=1e-8, budget=1e-7))
    run(
        SweepOptions(**SMALL_OPTIONS, impl=("torch",), labels=("uniform",), rounds=1),
        directory.path,
        resume=True,
    )
    assert {line["status"] for line in lines(directory.path)} == {"ok"}
    assert lines(directory.path, "parity")[0]["case"] == "some"


def test_a_partly_recorded_case_gets_its_speedup_from_rounds_measured_again(tmp_path, in_process):
    out = tmp_path / "run"
    sweep_here(out, impl=("full", "torch"), labels=("uniform",), task=("train",), rounds=3)
    timings = out / "timings.jsonl"
    kept = [line for line in timings.read_text().splitlines(keepends=True) if '"impl": "full"' in line]
    timings.write_text("".join(kept))
    sweep_here(out, resume=True)
    first, second = lines(out)
    assert (first["impl"], second["impl"]) == ("full", "torch")
    assert second["speedup_vs_full"] == 1.0
    assert second["speedup_vs_full_low"] <= 1.0 <= second["speedup_vs_full_high"]


@contextmanager
def imported_here() -> Iterator[None]:
    """A user's class is looked for in this process: starting one takes seconds, and has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_options, "require", registry.implementation)
        yield


@pytest.fixture(scope="module")
def troubled(tmp_path_factory) -> tuple[dict[str, dict], str, Path]:
    """One sweep in worker processes over implementations that go wrong in each way there is.

    Its lines by class or name, what it says on stderr, and its folder.
    """
    out = tmp_path_factory.mktemp("troubled") / "run"
    faults = ("Raises", "RunsOutOfMemory", "Wrong", "Hangs")
    impl = ("full", "full:chunked", "torch", *(f"{FAULTY}:{fault}" for fault in faults))
    chosen = {"impl": impl, "labels": ("zipf:1.0",), "task": ("train",), "rounds": 3, "budget": 6.0}
    with imported_here(), redirect_stderr(io.StringIO()) as told:
        assert sweep_here(out, **chosen) == 1
    return {line["impl"].rpartition("py:")[2]: line for line in lines(out)}, told.getvalue(), out


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("torch", "ok"),
        ("Raises", "failed"),
        ("RunsOutOfMemory", "out_of_memory"),
        ("Wrong", "parity_failed"),
        ("Hangs", "over_budget"),
    ],
)
def test_every_cell_is_recorded_with_what_became_of_it(troubled, name, status):
    line = troubled[0][name]
    assert line["status"] == status
    assert bool(line["reason"]) == (status != "ok")
    if status != "ok":
        assert line["median_s"] is None
        assert line["speedup_vs_full"] is None


def test_a_users_class_that_is_wrong_or_raises_fails_the_command_with_a_line_for_each_cause(troubled):
    _, said, out = troubled
    (told,) = [text for text in said.splitlines() if "Raises" in text]
    assert told.endswith("Raises: failed: ValueError: this layer always raises and says so on two lines")
    (told,) = [text for text in said.splitlines() if "Wrong" in text]
    assert "Wrong: parity failed: " in told
    assert "loss" in troubled[0]["Wrong"]["reason"]
    assert any(line["status"] == "fail" and "Wrong" in line["impl"] for line in lines(out, "parity"))


def test_a_timing_line_holds_what_its_readers_need(troubled):
    line = troubled[0]["torch"]
    assert line["case"] == "train-V60-d16-N8-c10,30-div4-nobias-float32-cpu-zipf:1.0-seed0"
    assert line["cutoffs"] == [10, 30]
    assert line["n_rounds"] == len(line["samples_s"]) == 3
    assert sorted(line["samples_s"])[1] == line["median_s"]
    assert line["occupancy"] == pytest.approx(line["occupancy"])
    assert sum(line["occupancy"]) == pytest.approx(1.0)
    assert line["threads"] == 1
    full = troubled[0]["full"]
    assert full["speedup_vs_full"] == 1.0


def test_a_class_that_only_raises_fails_the_command(tmp_path):
    done = sweep(
        *(*SMALL, "--impl", f"{FAULTY}:Raises", "--task", "train", "--out", str(tmp_path)),
        *(*options("--labels", "zipf:1.0", "uniform"), "--rounds", "2"),
        expect=1,
    )
    (cause,) = done.stderr.splitlines()
    assert cause.endswith(
        "Raises: failed: ValueError: this layer always raises and says so on two lines (2 cells)"
    )


def test_a_class_that_cannot_be_imported_is_wrong_use(tmp_path):
    file = tmp_path / "layer.py"
    file.write_text("import nothing_of_that_name\n")
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(0)\n")
    for impl, words in [
        (f"{tmp_path}/leaves.py:Layer", "cannot be imported: its process ended with status 0"),
        (f"{file}:Layer", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        (f"{FAULTY}:Nothing", "has no class 'Nothing'"),
    ]:
        with pytest.raises(UsageError, match=words):
            sweep_options.require(impl)


def test_a_sweep_over_spreads_of_logits_shows_an_inexact_baseline_as_such(tmp_path, in_process, capsys):
    out = tmp_path / "run"
    run(
        SweepOptions(
            classes=(9001,), features=(8,), batch=(16,), threads=1, rounds=2, impl=("full", "sampled"),
            logit_std=(1.0, 4.0), labels=("zipf:1.0",), task=("train",),
        ),
        out,
        resume=False,
    )  # fmt: skip
    found = {(line["logit_std"], line["impl"]): line for line in lines(out)}
    assert {spread for spread, _ in found} == {1.0, 4.0}
    for spread in (1.0, 4.0):
        full, sampled = (found[spread, name] for name in ("full", "sampled"))
        assert full["case"].endswith(f"-seed0-logit{spread:g}")
        assert (full["exact"], sampled["exact"]) == (True, False)
        assert full["settings"] is None
        assert full["throttled"] is None
        assert sampled["status"] == "ok"
        assert sampled["settings"] == "8,192 log-uniform candidates a step"
    shown = capsys.readouterr().out
    assert "inexact" in shown
    assert "logit std 4" in shown


def test_labels_with_too_few_classes_are_skipped_with_the_reason(tmp_path, in_process):
    counts = tmp_path / "counts.csv"
    counts.write_text("5\n3\n1\n")
    out = tmp_path / "run"
    sweep_here(out, impl=("torch",), labels=(f"counts:{counts}",))
    assert {line["status"] for line in lines(out)} == {"skipped"}
    assert "have 3 classes, fewer than 60" in lines(out)[0]["reason"]


def test_full_softmax_that_ran_out_of_memory_is_not_tried_again_for_other_labels(tmp_path, in_process):
    out = tmp_path / "run"
    chosen = {"impl": ("full", "torch"), "task": ("train",), "rounds": 3}
    sweep_here(out, **chosen, labels=("zipf:1.0",))
    file = out / "timings.jsonl"
    ended = [{**line, "status": "out_of_memory", "reason": "76 GiB", "median_s": None} for line in lines(out)]
    file.write_text("".join(json.dumps(line) + "\n" for line in ended))
    sweep_here(out, resume=True, labels=("zipf:1.0", "zipf:0.5"))
    full, torch = (next(one for one in lines(out)[2:] if one["impl"] == name) for name in ("full", "torch"))
    assert (full["status"], full["reason"]) == ("out_of_memory", "as with other labels before: 76 GiB")
    assert torch["status"] == "ok"  # of an adaptive layer the labels decide the memory


def test_ctrl_c_ends_the_sweep_with_the_command_that_goes_on(tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [*COMMAND, *SMALL, "--impl", f"{FAULTY}:Hangs", "--out", str(out)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (out / "workers.log").exists():
        time.sleep(0.05)
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"zipfmax sweep --resume --out {out}" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "slow"], ["unknown preset 'slow'", "quick, gate, gpu, wikitext103"]),
        (["--impl", "torhc"], ["unknown implementation 'torhc'", "torch"]),
        (["--labels", "zips:1"], ["unknown labels 'zips:1'", "zipf:S"]),
        (["--task", "training"], ["unknown task 'training'", "train"]),
        (["--dtype", "float8"], ["unknown dtype 'float8'", "bfloat16"]),
        (["--device", "tpu"], ["unknown device 'tpu'", "cpu"]),
        (["--cutoffs", "30,10"], ["cutoffs", "increasing"]),
        (["--cutoffs", "ten"], ["cutoffs 'ten'", "2000,10000"]),
        (["--classes", "50", "--cutoffs", "50"], ["cutoffs 50", "below"]),
        (["--precision", "two"], ["--precision", "2%", "'two'"]),
        (["--threads", "1000000000000"], ["--threads should be from 1 to 4096"]),
        (["--rounds", "0"], ["--rounds", "positive", "0"]),
        (["--budget", "-1"], ["--budget", "positive"]),
        (["--rounds", "3", "--precision", "2%"], ["--rounds and --precision exclude each other"]),
        (["--seed", "-1"], ["--seed", "from 0"]),
        (["--budget", "nan"], ["--budget", "positive"]),
        (["--classes", "1000000000000"], ["1,000,000,000,000 classes", "GiB of memory"]),
        (["--div-value", "1e-300"], ["div_value 1e-300", "too wide"]),
        (["--div-value", "1e-6"], ["div_value 1e-06", "GiB of memory"]),
        (["--resume"], ["--resume", "--out"]),
        (["--out", "/proc/nothing"], ["/proc/nothing"]),
    ],
)
def test_wrong_use_says_in_one_line_what_is_allowed_and_leaves_nothing(
    arguments, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(application("sweep"), arguments)
    assert isinstance(result.exception, UsageError)
    message = str(result.exception)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not [*tmp_path.iterdir()]


def test_wrong_use_ends_with_status_2_and_one_line():
    done = sweep("--preset", "slow", expect=2)
    assert done.stderr == "zipfmax: unknown preset 'slow'; choose one of: quick, gate, gpu, wikitext103\n"


@pytest.mark.slow
def test_precision_goes_on_until_the_ratios_are_known_that_well(tmp_path, in_process, monkeypatch):
    times = iter(itertools.cycle([1e-3, 2e-3, 3e-3, 4e-3, 5e-3]))  # of one run each: nothing is steady

    def timer(run):
        run()
        return timers.Seconds(*[next(times)] * 2)

    monkeypatch.setattr(timers, "timer_for", lambda device: timer)
    monkeypatch.setattr(timers, "RUNS_OF_A_SHORT_SAMPLE", 1)
    rounds = []
    for precision in ("90%", "40%"):
        out = tmp_path / precision
        chosen = {"impl": ("full", "torch"), "labels": ("uniform",), "task": ("train",), "budget": 1e9}
        sweep_here(out, **chosen, precision=precision)
        torch = next(line for line in lines(out) if line["impl"] == "torch")
        width = np.log(torch["speedup_vs_full_high"] / torch["speedup_vs_full_low"]) / 2
        assert width <= float(precision.strip("%")) / 100
        assert torch["speedup_vs_full_smallest_effect"] > 0
        assert torch["speedup_vs_full_verdict"] in ("FASTER", "SAME", "SLOWER", "UNRESOLVED")
        rounds.append(torch["n_rounds"])
    assert rounds[0] < rounds[1]


def test_planned_cutoffs_are_recorded_and_used_again_by_a_resumed_sweep(tmp_path):
    cases = presets.cases(presets.axes("quick", classes=(600,), labels=("zipf:1.0",), tasks=("forward",)))
    directory = RunDirectory.start(tmp_path / "run", invocation({}))
    (planned,) = sweep_options.planned_cases(cases, directory, threads=1)
    (line,) = directory.rows(Plan)
    assert tuple(line["cutoffs"]) == planned.cutoffs
    assert line["case"] == planned.id
    other = RunDirectory.start(tmp_path / "other", invocation({}))
    other.write(Plan(**{**line, "cutoffs": [7, 11]}))
    (again,) = sweep_options.planned_cases(cases, other, threads=1)
    assert again.cutoffs == (7, 11)
    assert len(other.read(Plan)) == 1


def test_a_sweep_times_head_and_tails_of_what_is_under_test_apart(tmp_path, in_process):
    out = tmp_path / "run"
    sweep_here(
        out, impl=("zipfmax", "torch", "full"), labels=("uniform",), task=("train", "predict"), rounds=3
    )
    found = {(line["task"], line["impl"]): line for line in lines(out)}
    own = found["train", "zipfmax"]
    assert len(own["parts_s"]) == len(own["parts_rows"]) == len(own["limit_parts_s"]) == 3
    assert sum(own["parts_rows"]) == 8
    assert own["parts_s"][0] > 0
    assert own["parts_whole_s"] > 0
    assert all(seconds >= 0 for seconds in own["limit_parts_s"])
    for other in (found["train", "torch"], found["train", "full"], found["predict", "zipfmax"]):
        assert other["parts_s"] is other["parts_whole_s"] is other["limit_parts_s"] is None
