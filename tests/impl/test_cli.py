"""The door: exit statuses and one clear line, whatever command is behind it."""

import subprocess
import sys

import pytest
import typer

import zipfmax.cli
from zipfmax.errors import UsageError


def zipfmax_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "zipfmax", *arguments], capture_output=True, text=True, check=False
    )


def test_help_lists_the_commands_and_exits_with_0():
    done = zipfmax_command("--help")
    assert done.returncode == 0
    for command in zipfmax.cli.app.registered_commands:
        assert (command.name or command.callback.__name__) in done.stdout


@pytest.mark.parametrize("arguments", [("no-such-command",), ("--no-such-option",)])
def test_wrong_use_exits_with_2_and_no_traceback(arguments):
    done = zipfmax_command(*arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr
    assert "Traceback" not in done.stderr


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
    app = typer.Typer()

    @app.command()
    def only():
        if raised is not None:
            raise raised

    monkeypatch.setattr(zipfmax.cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["zipfmax"])
    with pytest.raises(SystemExit) as exit_:
        zipfmax.cli.main()
    assert exit_.value.code == status
    assert capsys.readouterr().err == line
