"""Options that exclude each other say so, and a file that cannot be written is refused before the work."""

import pytest
from typer.testing import CliRunner

from zipfmax.command import application
from zipfmax.errors import UsageError

PLAN = ("plan", "--zipf", "1", "--classes", "100", "--features", "8", "--batch", "4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*PLAN, "--json", "--python"), "--json and --python exclude each other"),
        ((*PLAN, "--plot", "/proc/nothing/plan.svg"), "cannot write /proc/nothing/plan.svg"),
        (("gate", "--self-test", "--update"), "--self-test measures its own runs"),
        (("gate", "--self-test", "--threshold", "0.1"), "--self-test measures its own runs"),
        (("gate", "run", "--baseline", "b", "--update", "--junit", "j"), "it goes without --junit"),
        (("gate", "run", "--baseline", "b", "--junit", "/proc/nothing/j"), "cannot write /proc/nothing/j"),
        (("compare", "main", "--summary", "/proc/nothing/s"), "cannot write /proc/nothing/s"),
        (("compare", "main", "--threshold", "nan"), "--threshold should be a share"),
        (("train", "--epochs", "1", "--steps", "1"), "--epochs and --steps exclude each other"),
        (("train", "--vocabulary", "-5"), "--vocabulary should be at least 2 words, got -5"),
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
