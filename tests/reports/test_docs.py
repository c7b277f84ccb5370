"""The documentation and the README say what is there: their Python runs, and their commands and options exist."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from zipfmax.command import application

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "reports" / "docs").glob("*.md"))]
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_option_of_a_page_is_there(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in code(page):
        if found := re.search(r"(?:^|\s|/)zipfmax ([a-z].*)", line):
            name, *words = shlex.split(found[1])
            known = {
                option for parameter in get_command(application(name)).params for option in parameter.opts
            }
            known |= {"--help", "--no-resume"}
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, line
        for module in re.findall(r"python -m ([\w.]+)", line):
            assert find_spec(module), line
        for target in re.findall(r"^make ([a-z]+)", line):
            assert f"\n{target}:" in makefile, line


def test_a_command_or_an_option_that_is_not_there_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    for wrong in (
        "`zipfmax sweep --round 3`",
        "```sh\nzipfmax plan --zipf 1 \\\n  --nothing\n```",
        "`make nothing`",
    ):
        page.write_text(wrong)
        with pytest.raises(AssertionError, match=r"--round|--nothing|make nothing"):
            test_every_command_and_option_of_a_page_is_there(page)
