"""The documentation and the README say what is there: their Python runs, and their commands and options exist."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from zipfmax.command import application, commands

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "reports" / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
BLOCK = re.compile(r"^(?:<!-- needs: (?P<needs>\w+) -->\n)?```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.M | re.S)


def blocks(page, *kinds):
    text = page.read_text(encoding="utf-8")
    return [
        (found, text[: found.start("code")].count("\n"))
        for found in BLOCK.finditer(text)
        if found["kind"] in kinds
    ]


def code(page):
    """Lines of shell and inline code, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(found["code"] for found, _ in blocks(page, "sh", "yaml"))
    shell = re.sub(r"(^|\s)#.*", "", shell)
    return [*shell.replace("\\\n", " ").splitlines(), *re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))]


@pytest.mark.filterwarnings("ignore")  # warnings are what some of it shows
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem
)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    torch.manual_seed(0)
    with torch.compiler.set_stance("force_eager"):  # that compiling works is tested elsewhere, and is slow
        for found, line in blocks(page, "python"):
            program = compile("\n" * line + found["code"], str(page), "exec")
            if found["needs"] is None or find_spec(found["needs"]):
                exec(program, names)


def check(line):
    """Fail unless the commands, options, modules and targets that a line of code names are there."""
    if found := re.search(r"(?:^|\s|/)zipfmax ([a-z].*)", line):
        name, *words = shlex.split(found[1])
        parameters = get_command(application(name)).params
        known = {option for one in parameters for option in (*one.opts, *one.secondary_opts)} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line
    for module in re.findall(r"python -m ([\w.]+)", line):
        assert find_spec(module), line
    for target in re.findall(r"^make ([a-z]+)", line):
        assert f"\n{target}:" in MAKEFILE, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_option_of_a_page_is_there(page):
    for line in code(page):
        check(line)


@pytest.mark.parametrize("name", commands())
def test_the_help_of_a_command_has_examples_that_exist(name):
    help_ = commands()[name].load().__doc__
    examples = re.findall(rf"^ {{8}}.*?(zipfmax {name}\b.*?)(?: {{3,}}.*)?$", help_, re.M)
    assert examples or name == "doctor"
    for line in examples:
        check(line)


@pytest.mark.parametrize("wrong", ["zipfmax sweep --round 3", "zipfmax plan --zipf 1 --no", "make nothing"])
def test_a_command_or_an_option_that_is_not_there_would_be_found(wrong, tmp_path):
    page = tmp_path / "page.md"
    continued = wrong.replace(" --", " \\\n  --")
    page.write_text(f"```sh\n{continued}\n```\n")
    with pytest.raises(AssertionError, match=re.escape(wrong.split()[-2])):
        test_every_command_and_option_of_a_page_is_there(page)
