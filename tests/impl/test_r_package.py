"""The R package beside the Python one: it installs, and its own tests and examples run on this Python."""

import csv
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "impl" / "r"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

NEEDED = """
for (name in c("reticulate", "testthat")) {
  if (!requireNamespace(name, quietly = TRUE)) { cat("R has no package", name); quit() }
}
if (!reticulate::py_available(initialize = TRUE)) cat("reticulate cannot run", Sys.getenv("RETICULATE_PYTHON"))
"""

TEST = """
arguments <- commandArgs(trailingOnly = TRUE)
results <- testthat::test_dir(arguments[1], package = "zipfmax", load_package = "installed", reporter = "summary",
  stop_on_failure = FALSE)
columns <- c("test", "nb", "failed", "skipped", "error")
write.csv(as.data.frame(results)[columns], arguments[2], row.names = FALSE)
"""


def r(script, *arguments, cwd, python=sys.executable, library="", paths=("impl", "reference")):
    """Run a script of R in a folder, on a Python and with a library of R's."""
    environment = os.environ | {
        "RETICULATE_PYTHON": str(python),
        "R_LIBS": str(library),
        "PYTHONPATH": os.pathsep.join(str(ROOT / path) for path in paths),
    }
    command = ["Rscript", "--vanilla", "-e", script, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A library of R's that holds the package; skips where R, or what the tests need of it, is absent."""
    if shutil.which("Rscript") is None:
        pytest.skip("Rscript is not installed")
    folder = tmp_path_factory.mktemp("library")
    lacks = r(NEEDED, cwd=folder)
    if lacks.returncode != 0 or lacks.stdout:
        pytest.skip(lacks.stdout or lacks.stderr)
    command = ["R", "CMD", "INSTALL", f"--library={folder}", str(PACKAGE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_packages_own_tests_pass_and_none_is_skipped(library, tmp_path):
    table = tmp_path / "results.csv"
    done = r(TEST, PACKAGE / "tests" / "testthat", table, cwd=tmp_path, library=library)
    assert done.returncode == 0, done.stderr
    with table.open(encoding="utf-8") as file:
        results = list(csv.DictReader(file))
    assert len(results) >= 20
    for result in results:
        assert (result["failed"], result["skipped"], result["error"]) == ("0", "FALSE", "FALSE"), done.stdout


def test_a_python_without_zipfmax_is_an_error_that_says_what_to_install(library, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    python = tmp_path / "bare" / "bin" / "python"
    script = "zipfmax::nn_adaptive_log_softmax_with_loss(4, 10, 5)"
    done = r(script, cwd=tmp_path, python=python, library=library, paths=())
    assert done.returncode != 0
    assert "Python cannot import zipfmax: ModuleNotFoundError: No module named 'zipfmax'" in done.stderr
    assert f"{python} -m pip install ." in done.stderr


def test_the_examples_of_readme_and_documentation_run(library, tmp_path):
    pages = (PACKAGE / "README.md", ROOT / "reports/docs/r.md")
    examples = [re.findall(r"```r\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL) for page in pages]
    assert all(examples)
    done = r("\n".join(text for page in examples for text in page), cwd=tmp_path, library=library)
    assert done.returncode == 0, done.stderr


def test_the_version_is_the_python_packages():
    assert f"\nVersion: {PROJECT['project']['version']}\n" in (PACKAGE / "DESCRIPTION").read_text(
        encoding="utf-8"
    )


def test_no_folder_of_the_wheel_holds_the_r_package():
    for folder in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert not PACKAGE.is_relative_to(ROOT / folder)
        assert not [*(ROOT / folder).rglob("*.R"), *(ROOT / folder).rglob("*.Rd")]
