from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

from zipfmax_reports import sections, tables
from zipfmax_reports.elements import Picture
from zipfmax_reports.runs import read_run


def picture(found: list[Picture], name: str) -> Picture:
    return next(item for item in found if item.name == name)


def test_memory_stands_against_batch_size_where_the_run_varies_it(
    run_directory: Path, write_run: Callable[..., Path], tmp_path: Path
) -> None:
    assert picture(sections.why(tables.cells(read_run(run_directory))).figures, "memory").title == (
        "Memory, by vocabulary size"
    )
    path = run_directory / "timings.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    doubled = [
        line | {"batch_size": 2048, "case": line["case"].replace("N1024", "N2048"), "peak_bytes": 7 * 2**20}
        for line in lines
        if line["status"] == "ok"
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *doubled]))
    memory = picture(sections.why(tables.cells(read_run(run_directory))).figures, "memory")
    assert memory.title == "Memory, by batch size"
    rows = [dict(zip(memory.table.columns, row, strict=True)) for row in memory.table.rows]
    assert {row["classes"] for row in rows} == {"267,735"}
    assert {row["peak temporary memory"] for row in rows if row["batch"] == "2,048"} == {"7 MiB"}


def test_a_figure_s_command_names_its_own_cells(run_directory: Path) -> None:
    found = sections.speed(tables.cells(read_run(run_directory))).figures
    words = shlex.split(str(picture(found, "vocabulary-torch").command))
    given = [(option, value) for option, value in zip(words[2::2], words[3::2], strict=True)]
    assert [value for option, value in given if option == "--classes"] == ["10000", "50000", "267735"]
    assert [value for option, value in given if option == "--impl"] == ["zipfmax", "torch"]
    assert ("--cutoffs", "20000,60000") in given
    assert ("--dtype", "float32") in given
