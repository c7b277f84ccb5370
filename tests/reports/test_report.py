"""`zipfmax report`: files written, exit statuses, and what the page and the summary say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from zipfmax.command import application
from zipfmax.errors import UsageError
from zipfmax_reports import tables
from zipfmax_reports.report import write_report
from zipfmax_reports.runs import read_run
from zipfmax_reports.style import THEMES, factor

Edit = Callable[[Path, Callable[[dict[str, Any]], dict[str, Any]]], None]


class Text(HTMLParser):
    """The words of a page, without scripts and styles, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self._hidden = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style")
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


undrawn = pytest.mark.usefixtures("no_figure_is_drawn")


def test_the_command_prints_the_path_of_the_page(run_directory: Path) -> None:
    done = CliRunner().invoke(application("report"), [str(run_directory)])
    assert done.exit_code == 0
    assert done.stdout.strip() == str(run_directory / "index.html")
    assert (run_directory / "index.html").stat().st_size > 100_000


def test_wrong_use_is_one_line_and_exit_status_two(run_directory: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zipfmax", "report", str(tmp_path / "nowhere")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("zipfmax: ")
    unwritable = [str(run_directory), "--output", "/proc/nowhere/page.html"]
    refused = CliRunner().invoke(application("report"), unwritable).exception
    assert isinstance(refused, UsageError)
    assert "\n" not in str(refused)


def test_no_directory_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one"):
        write_report([])


def test_the_page_names_no_file_to_load(run_directory: Path) -> None:
    page = Text(write_report([run_directory]).read_text())
    loading = [
        item
        for item in page.attributes
        if item[1] in ("src", "srcset", "data") or item[:2] == ("link", "href")
    ]
    assert loading == []
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert all(link.startswith("#") for link in links)
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)


@undrawn
def test_skipped_and_over_budget_cells_are_listed_with_their_reasons(run_directory: Path) -> None:
    text = Text(write_report([run_directory]).read_text()).text
    assert "31 of 240 cells: 30 cannot do it, 1 over budget." in text
    assert "paddle has no bfloat16 product on a CPU" in text
    assert "predicted 61 s, the budget is 60 s" in text


@undrawn
def test_a_half_written_line_is_noted_on_the_page(run_directory: Path) -> None:
    with (run_directory / "timings.jsonl").open("a") as file:
        file.write('{"case": "tr')
    assert "the last line (line 241) is half-written" in Text(write_report([run_directory]).read_text()).text


def test_no_speedup_of_a_wrong_implementation_is_written_anywhere(
    run_directory: Path, edit_lines: Edit
) -> None:
    """The measured speedup is made a number that occurs nowhere else; then it must occur nowhere."""

    def spoil(record: dict[str, Any]) -> dict[str, Any]:
        if record["impl"] != "zipfmax":
            return record
        return record | {"status": "parity_failed", "reason": "grad.input", "speedup_vs_full": 777.7}

    edit_lines(run_directory / "timings.jsonl", spoil)
    figures, summary = run_directory / "figures", run_directory / "summary.md"
    page = write_report([run_directory], figures=figures, markdown=summary)
    for path in (page, summary, *figures.glob("*.svg")):
        assert not re.search(r"(?<![\d.])777\.7(?!\d)|778×", path.read_text())
    text = Text(page.read_text()).text
    assert "zipfmax exceeds its error budget in 60 of" in text
    assert "wrong result" in text


@undrawn
def test_a_run_that_only_verified_and_one_that_only_timed_have_pages(run_directory: Path) -> None:
    (run_directory / "timings.jsonl").rename(run_directory / "aside")
    assert "zipfmax sweep does" in Text(write_report([run_directory]).read_text()).text.replace("`", "")
    (run_directory / "aside").rename(run_directory / "timings.jsonl")
    (run_directory / "parity.jsonl").unlink()
    text = Text(write_report([run_directory]).read_text()).text
    assert "Unchecked" in text
    assert "This run holds no comparison with a reference" in text


@pytest.mark.slow
def test_every_figure_is_written_in_both_schemes_as_svg_and_png(run_directory: Path) -> None:
    folder = run_directory / "figures"
    write_report([run_directory], figures=folder)
    names = {path.name.rsplit("-", 1)[0] for path in folder.iterdir()}
    assert {"vocabulary-full", "skew", "heat", "real", "efficiency", "memory", "strip", "roofline"} <= names
    assert len(list(folder.iterdir())) == 4 * len(names)
    for name in names:
        for theme in THEMES:
            svg = ElementTree.parse(folder / f"{name}-{theme.name}.svg").getroot()
            assert svg[0].tag.endswith("title")
            assert svg[0].text
            assert theme.surface in ElementTree.tostring(svg, encoding="unicode")
            assert (folder / f"{name}-{theme.name}.png").read_bytes().startswith(b"\x89PNG")


@undrawn
def test_the_markdown_summary_holds_the_numbers_and_escapes_what_it_quotes(
    run_directory: Path, edit_lines: Edit
) -> None:
    hostile = "<b>x|y</b>`"

    def rename(record: dict[str, Any]) -> dict[str, Any]:
        return record | ({"impl": hostile} if record["impl"] == "paddle" else {})

    edit_lines(run_directory / "parity.jsonl", rename)
    path = run_directory / "summary.md"
    write_report([run_directory], markdown=path)
    text = path.read_text()
    table = tables.cells(read_run(run_directory))
    rows = tables.under(tables.ratios(table, "full"), tables.main_condition(table))
    row = rows[(rows["impl"] == "zipfmax") & (rows["task"] == "train") & (rows["labels"] == "zipf:1.3")]
    cells = " | ".join(factor(value) for value in row.sort_values("n_classes")["speedup"])
    assert f"| train | Zipf 1.3 | {cells} |" in text
    assert "<b>" not in text
    assert r"&lt;b&gt;x\|y&lt;/b&gt;\`" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert all(width in (11, 6) for width in widths)


@undrawn
def test_several_runs_stand_beside_each_other_on_one_page(
    write_run: Callable[..., Path], tmp_path: Path
) -> None:
    runs = [write_run(tmp_path / name / "run", seed=seed) for seed, name in enumerate(("first", "second"))]
    text = Text(write_report(runs, tmp_path / "page.html").read_text()).text
    assert "The runs beside each other" in text
    assert "first/run" in text
    assert "second/run" in text
    assert "run by run" in text


@undrawn
def test_a_run_of_one_kind_of_check_alone_has_a_page(run_directory: Path) -> None:
    for path in run_directory.glob("*.jsonl"):
        path.unlink()
    line = '{"kind": "the same code", "runs": 200, "failed": 1, "required": "at most 1%", "share": 0.005}'
    (run_directory / "selftest.jsonl").write_text(line.replace("}", ', "holds": true}') + "\n")
    text = Text(write_report([run_directory]).read_text()).text
    assert "How often the regression gate is wrong" in text
    assert "the same code 200 1 0.5 % at most 1% ✓ yes" in text


@undrawn
def test_a_page_has_the_plan_proof_and_one_error_of_the_model_that_of_cells_nobody_fitted(
    run_directory: Path,
) -> None:
    cell = {"labels": "zipf:1", "n_classes": 5000, "in_features": 64, "batch_size": 128, "task": "train"}
    times = {"full_s": 4e-2, "full_predicted_s": 4e-2}

    def write(name: str, *records: dict[str, Any]) -> None:
        lines = "".join(json.dumps(cell | record) + "\n" for record in records)
        (run_directory / f"{name}.jsonl").write_text(lines)

    proof = {"predicted_s": 2e-3, "plan_s": 1.8e-3, "best_s": 2e-3, "literature_s": 5e-3, "tried": 9, **times}
    proof |= {"plan": [40, 300], "best": [39, 312], "literature": [350, 1250]}
    write("plan_proof", proof, proof)  # the second was written on resuming
    about = {"dtype": "float32", "source": "bundled: one", "machine": {"hardware": "another", "threads": 2}}
    plan = {"cutoffs": [40, 300], "measured_s": 1e-3, **times, **about}
    write(
        "plan_error",
        *({**plan, "labels": f"zipf:{n}", "predicted_s": 1e-3 * (1 + n / 10)} for n in (1, 2, 3)),
    )
    plans = {"bundled": [40], "plans": [[40]] * 3 + [[50]], "alone": [[9]] * 4, "errors": [0.1] * 4}
    write("plan_agreement", {**plans, **about})
    text = Text(write_report([run_directory]).read_text()).text
    assert "1 cell. Beside the best of the search the plan takes -10.0 % in the median" in text
    assert "off by 10.0 % in the median" not in text  # which the sweep's own plans are
    assert "3 cells, off by 20.0 % in the median and 28.0 % at the 90th percentile." in text
    assert "Cost model bundled: one; measured on another, 2 threads." in text
    assert "In each of 1 cell at least 3 of 4 calibrations made the same plan." in text


@undrawn
def test_reasons_that_differ_in_a_predicted_time_are_one_line_with_its_range(
    run_directory: Path, edit_lines: Edit
) -> None:
    predicted = iter(range(9, 1000))

    def refuse(record: dict[str, Any]) -> dict[str, Any]:
        if record["status"] != "skipped":
            return record
        reason = f"predicted {next(predicted) + 0.5:g} s for 3 rounds, past the budget of 9 s"
        return record | {"status": "over_budget", "reason": reason}

    edit_lines(run_directory / "timings.jsonl", refuse)
    text = Text(write_report([run_directory]).read_text()).text
    assert "paddle over budget predicted 9.5 to 38.5 s for 3 rounds, past the budget of 9 s 30" in text
