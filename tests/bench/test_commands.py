"""Options that exclude each other say so, and a file that cannot be written is refused before the work."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from zipfmax.command import application
from zipfmax.errors import UsageError

PLAN = ("plan", "--zipf", "1", "--classes", "100", "--features", "8", "--batch", "4")
COUNTED = Path(__file__)
MAKEFILE = COUNTED.parents[2] / "Makefile"
COUNTS = ("plan", "--features", "8", "--batch", "4", "--counts", str(COUNTED))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*PLAN, "--json", "--python"), "--json and --python exclude each other"),
        ((*PLAN, "--plot", "/proc/nothing/plan.svg"), "cannot write /proc/nothing/plan.svg"),
        ((*PLAN, "--plot", "plan.foo"), "cannot draw into plan.foo: its ending should be one of"),
        ((*PLAN, "--min-projection", "0"), "min_projection should be a positive integer, got 0"),
        ((*PLAN, "--div-value", "1e12"), "div_value 1e+12 leaves nothing of in_features 8"),
        (
            (*COUNTS, "--counts-format", "xls"),
            "unknown format of counts 'xls'; choose one of: text",
        ),
        (
            (*COUNTS, "--tokenizer", "absent.json"),
            "tokenizer absent.json cannot be read: No such file or directory",
        ),
        ((*COUNTS, "--tokenizer", "words.txt"), "a tokenizer should be a file tokenizer.json"),
        ((*COUNTS, "--tokenizer", "t.json", "--counts-format", "text"), "it goes without a format of counts"),
        ((*PLAN, "--counts-format", "csv"), "--counts-format and --tokenizer go with --counts FILE"),
        (
            (*COUNTS[:5], "--labels", f"counts:xls@{COUNTED}"),
            "xls is not a format: text, token-count, count-token, csv",
        ),
        (("sweep", "--replay", "--device", "cpu"), "--replay times replays of CUDA graphs"),
        (("sweep", "--world", "2", "--precision", "2%"), "--precision does not go with --world"),
        (("sweep", "--world", "2", "--task", "train", "--task", "predict"), "forward and train, not predict"),
        (("sweep", "--resume", "--out", "/nothing/here"), "no run to go on with at /nothing/here"),
        (("verify", "--world", "0"), "--world should be from 2 to 256, got 0"),
        (
            ("verify", "--world", "2", "--impl", "torch"),
            "split over ranks, got --impl torch",
        ),
        (("verify", "--world", "2", "--impl", "zipfmax@2"), "names its ranks itself: leave --world out"),
        (("verify", "--impl", "absent.py"), "absent.py names no class: give it as absent.py:Class"),
        (("verify", "--impl", f"{MAKEFILE}:Layer"), "is no Python file: its name should end with .py"),
        (("verify", "--impl", "torch", "--out", str(COUNTED)), "is a file: a run directory is a folder"),
        (("mutants", "--world", "2", "--grid", "full"), "--world has cells of its own"),
        (("sweep", "--batch", "1000000000000"), "1,000,000,000,000 rows of 256 features, in 16 bits, take"),
        (("sweep", "--processes", "1000000"), "--processes should be at most 256, got 1000000"),
        (("sweep", "--world", "100000"), "--world should be from 2 to 256, got 100000"),
        (("mutants", "--world", "1"), "--world should be from 2 to 256, got 1"),
        (("train", "--layer", "full", "--cutoffs", "3,5"), "they do not go with --layer full"),
        (("train", "--layer", "full", "--div-value", "2"), "they do not go with --layer full"),
        (("train", "--vocabulary", "50"), "--vocabulary keeps words of a text: it goes with --text"),
        (("train", "--features", "10000000"), "weights of"),
        (("gate", "--self-test", "--update"), "--self-test measures its own runs"),
        (("gate", "--self-test", "--threshold", "0.1"), "--self-test measures its own runs"),
        (("gate", "run", "--baseline", "b", "--update", "--junit", "j"), "it goes without --junit"),
        (("gate", "run", "--baseline", "b", "--junit", "/proc/nothing/j"), "cannot write /proc/nothing/j"),
        (("compare", "main", "--summary", "/proc/nothing/s"), "cannot write /proc/nothing/s"),
        (("compare", "main", "--threshold", "nan"), "--threshold should be a share"),
        (("train", "--epochs", "1", "--steps", "1"), "--epochs and --steps exclude each other"),
        (
            ("train", "--text", str(COUNTED), "--vocabulary", "-5"),
            "--vocabulary should be at least 2 words, got -5",
        ),
        ((*PLAN, "--threads", "1000000000000"), "--threads should be from 1 to 4096"),
        (("report", ".", "--output", "/proc/nothing/page"), "is not a run directory"),
        (("mutants", "--timing", "--grid", "full"), "--timing has cases of its own"),
        (
            ("verify", "--impl", "torch", "--save-results", "/proc/nothing"),
            "cannot write /proc/nothing/results.npz",
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_the_work(arguments, message):
    name, *rest = arguments
    result = CliRunner().invoke(application(name), rest)
    assert isinstance(result.exception, UsageError), result.output
    assert message in str(result.exception)
    assert not result.stdout  # nothing is told of a result before the refusal
