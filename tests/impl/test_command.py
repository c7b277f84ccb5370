"""The `zipfmax` command finds what is installed, imports what it runs, and ends with one clear line."""

import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import typer
from typer.main import get_command

from zipfmax import command
from zipfmax.errors import UsageError, one_line, unknown


def zipfmax_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "zipfmax", *arguments], capture_output=True, text=True, check=False
    )


def test_help_lists_every_command_with_its_purpose_and_exits_with_0():
    done = zipfmax_command("--help")
    assert done.returncode == 0
    listed = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert listed.keys() == command.commands().keys() >= {"verify", "mutants", "sweep", "plan", "report"}
    assert all(listed.values())


def test_help_imports_neither_torch_nor_typer_nor_anything_of_the_harness():
    code = (
        "import sys; from zipfmax import command; command.usage();"
        "print({m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'typer', 'rich', 'pandas'});"
        "print([m for m in sys.modules if m.startswith('zipfmax_') and '.' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "[]"]


def test_every_command_can_be_loaded_and_says_what_its_options_do():
    for name, entry in command.commands().items():
        assert command.summary(entry) == entry.load().__doc__.partition("\n")[0]
        for parameter in get_command(command.application(name)).params:
            assert parameter.help, (name, parameter.name)


def test_help_groups_options_under_an_example_and_names_the_implementations():
    shown = zipfmax_command("sweep", "--help").stdout
    headings = [line for line in shown.splitlines() if re.match(r"\w.*, as in .*:$", line)]
    assert len(headings) == 4
    assert re.search(r"--impl .*zipfmax:tiled.*full:chunked.*path/file.py:Class", shown, re.S)
    assert "    zipfmax sweep --out runs/mine --resume\n" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mutnats",), ["unknown command 'mutnats'", "did you mean mutants?"]),
        (("sweep", "--rond", "3"), ["No such option: --rond", "--rounds", "zipfmax sweep --help"]),
        (("sweep", "--classes", "1e12"), ["--classes", "integer"]),
        (("plan",), ["Missing option '--features'"]),
        (("verify", "--device", "tpu"), ["unknown device 'tpu'", "cuda"]),
        (("verify", "--resume"), ["--resume needs --out"]),
        (("no-such-command",), ["unknown command 'no-such-command'", "choose one of:", "sweep"]),
        (("--no-such-option",), ["unknown option '--no-such-option'", "--help"]),
        (("sweep", "--rounds", "0"), ["--rounds", "positive"]),
        (("verify", "--cells", ""), ["--cells is empty"]),
        (("sweep", "--preset="), ["--preset is empty"]),
        (("report", ""), ["an argument is empty"]),
    ],
)
def test_wrong_use_exits_with_2_and_one_line(arguments, words):
    done = zipfmax_command(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line


def test_a_name_that_does_not_exist_gets_the_nearest_one_and_all():
    assert unknown("dtype", "flaot32", ["float64", "float32"]) == (
        "unknown dtype 'flaot32'; did you mean float32? choose one of: float64, float32"
    )
    assert unknown("grid", "huge", ["quick", "full"]) == "unknown grid 'huge'; choose one of: quick, full"


def test_an_error_is_told_in_one_line_with_its_type():
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(UsageError("what was wrong")) == "what was wrong"
    assert one_line(ValueError("long " * 100)).endswith("long long ...")
    assert len(one_line(ValueError("long " * 100))) == 300


def test_version_is_that_of_the_distribution():
    assert zipfmax_command("--version").stdout.strip() == command.version("zipfmax")


@pytest.mark.parametrize(
    ("module", "extra"),
    [("typer", "harness"), ("pytest_benchmark", "harness"), ("paddle", "paddle"), ("wordfreq", "labels")],
)
def test_a_command_whose_packages_are_missing_says_what_to_install(module, extra, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {module!r}", name=f"{module}.part")

    monkeypatch.setattr(command, "application", missing)
    with pytest.raises(UsageError, match=rf"verify needs .* {module}.*pip install 'zipfmax\[{extra}\]'"):
        command.run(["verify"])


def test_a_missing_module_that_no_extra_installs_is_a_fault_and_is_traced(monkeypatch):
    entry = EntryPoint("broken", "zipfmax.no_such_module:run", command.GROUP)
    monkeypatch.setattr(command, "commands", lambda: {"broken": entry})
    with pytest.raises(ModuleNotFoundError):
        command.run(["broken"])


def test_a_shell_is_told_the_commands_and_the_options():
    for words, expected in (("zipfmax swe", "sweep"), ("zipfmax compile --qu", "--quick")):
        environment = {
            **os.environ,
            command.COMPLETING: "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        done = subprocess.run(
            [sys.executable, "-m", "zipfmax"], capture_output=True, text=True, check=False, env=environment
        )
        assert done.stdout.split() == [expected]
    script = zipfmax_command("--show-completion", "bash").stdout
    assert f"{command.COMPLETING}=complete_bash" in script


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (None, 0, ""),
        (
            UsageError("no such thing; choose one of: a, b"),
            2,
            "zipfmax: no such thing; choose one of: a, b\n",
        ),
        (typer.Exit(1), 1, ""),
    ],
)
def test_main_turns_outcomes_into_exit_statuses(monkeypatch, capsys, raised, status, line):
    made = typer.Typer()

    @made.command()
    def only():
        if raised is not None:
            raise raised

    monkeypatch.setattr(command, "application", lambda name: made)
    monkeypatch.setattr(sys, "argv", ["zipfmax", "only"])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == status
    assert capsys.readouterr().err == line
