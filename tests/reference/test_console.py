"""Tables keep their columns wherever they are printed."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

import zipfmax_bench
import zipfmax_reference
import zipfmax_reports
from zipfmax_reference.console import print_table

PACKAGES = (zipfmax_reference, zipfmax_bench, zipfmax_reports)
SOURCES = [file for package in PACKAGES for file in sorted(Path(package.__path__[0]).rglob("*.py"))]


@pytest.mark.parametrize(("in_terminal", "lines"), [(False, 5), (True, 7)])
def test_a_wide_table_is_whole_in_a_pipe_and_folded_in_a_terminal(in_terminal, lines):
    file = io.StringIO()
    table = Table("first", "last")
    table.add_row("word " * 30, "the end")
    print_table(Console(file=file, width=80, force_terminal=in_terminal, no_color=True), table)
    assert len(file.getvalue().splitlines()) == lines
    assert "the end" in file.getvalue()


def test_every_table_goes_through_the_helper():
    past = [
        f"{file}: {line.strip()}"
        for file in SOURCES
        if file.name != "console.py"
        for line in file.read_text().splitlines()
        if re.search(r"\.print\(\w*table\b", line)
    ]
    assert not past
