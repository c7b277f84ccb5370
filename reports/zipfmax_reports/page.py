"""The page: one HTML file that answers, in this order, is it right, worth it, why, and how to repeat it.

Templates are Jinja2's with autoescape; static figures are Matplotlib's, so the page reads whole without
JavaScript. A content security policy in the page itself allows no request and no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

import zipfmax
from zipfmax_reports import charts, sections, tables
from zipfmax_reports.comparison import compare
from zipfmax_reports.elements import Picture, Section, Table
from zipfmax_reports.plans import error_picture, plan_pictures, proof_picture
from zipfmax_reports.quality import quality
from zipfmax_reports.reproduction import run_commands
from zipfmax_reports.runs import Run
from zipfmax_reports.style import DARK, LIGHT, size
from zipfmax_reports.summary import HEADLINES, by_weight, cells_text, condition_text, statements
from zipfmax_reports.trust import trust

SIGNS = {"good": "✓", "bad": "✗", "mixed": "±", "unknown": "?"}
"""Beside the colour of an answer."""

COMPARISON = ("comparison", "The runs beside each other")
SECTIONS = (
    ("speed", "Is it worth it?"),
    ("quality", "What does it cost in quality?"),
    ("why", "Why?"),
    ("parity", "Can I trust it?"),
    ("missing", "Cells without a time"),
    ("repeat", "How do I repeat it?"),
)


@dataclass(frozen=True)
class Page:
    """Everything that a page, a Markdown summary and a folder of figures show of one or several runs."""

    runs: Sequence[Run]
    table: pd.DataFrame
    comparison: Section | None
    speed: Section
    quality: Section | None
    why: Section
    trust: Section
    missing: Section

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Page:
        """The page of the first run; the others stand beside it in the comparison."""
        run = runs[0]
        table = tables.cells(run)
        return cls(
            runs=runs,
            table=table,
            comparison=compare(runs) if len(runs) > 1 else None,
            speed=sections.speed(table),
            quality=quality(run.study) if run.study is not None else None,
            why=_why(run, table),
            trust=trust(run),
            missing=sections.missing(table),
        )

    @property
    def pictures(self) -> list[Picture]:
        """Every figure, in order."""
        found = [self.comparison, self.speed, self.quality, self.why, self.trust]
        return [picture for section in found if section is not None for picture in section.figures]

    def html(self) -> str:
        """The page as HTML text."""
        scripts = charts.scripts()
        environment = _environment()
        css = environment.get_template("page.css.j2").render(light=LIGHT, dark=DARK)
        return environment.get_template("page.html.j2").render(
            self._context(),
            css=Markup(css),
            condition_line=_condition_line(self.table),
            sections=self._sections(),
            speed=self.speed,
            quality=self.quality,
            why=self.why,
            all_cells=sections.all_cells(self.table),
            facts=facts(self.runs[0]),
            data=charts.packed(charts.payload(self.runs[0], self.table)),
            scripts=[Markup(script) for script in scripts],
            script_hashes=[_hash(script) for script in scripts],
            zipfmax_version=zipfmax.__version__,
        )

    def _sections(self) -> list[tuple[str, str]]:
        shown = [one for one in SECTIONS if one[0] != "quality" or self.quality is not None]
        return shown if self.comparison is None else [COMPARISON, *shown]

    def markdown(self) -> str:
        """A summary in Markdown, short enough for a pull request."""
        heat = next((picture.table for picture in self.speed.figures if picture.name == "heat"), None)
        text = _environment().get_template("summary.md.j2").render(self._context(), heat=heat)
        return text.strip() + "\n"

    def _context(self) -> dict[str, Any]:
        run = self.runs[0]
        names = [part.name for part in self.runs]
        return {
            "title": f"{' and '.join(names)}: parity and speed of adaptive softmax",
            "machine_line": machine_line(run),
            "versions_line": versions_line(run),
            "remarks": [remark for part in self.runs for remark in part.remarks],
            "statements": by_weight(statements(run, self.table)),
            "headlines": HEADLINES,
            "signs": SIGNS,
            "comparison": self.comparison,
            "parity": self.trust,
            "missing": self.missing,
            "commands": [*run_commands(run), shlex.join(["zipfmax", "report", *names])],
        }


def _why(run: Run, table: pd.DataFrame) -> Section:
    section = sections.why(table)
    if "plans" in run.extras:
        section.figures += plan_pictures(
            run.extras["plans"], table, with_error="plan_error" not in run.extras
        )
    if "plan_error" in run.extras:
        section.figures.append(error_picture(run.extras["plan_error"], run.extras.get("plan_agreement")))
    if "plan_proof" in run.extras:
        section.figures.append(proof_picture(run.extras["plan_proof"]))
    return section


def machine_line(run: Run) -> str:
    """The machine in one line: processor or GPU, cores and threads, memory."""
    machine = run.meta.get("machine")
    if not isinstance(machine, dict):
        return "The run does not say what machine it was made on."
    gpus = machine.get("gpus") or []
    parts = [
        *dict.fromkeys(map(str, gpus)),
        str(machine.get("cpu") or "unknown processor"),
        f"{machine['cores']} cores" if machine.get("cores") else "",
        f"{machine['threads']} threads" if machine.get("threads") else "",
        size(machine["memory_bytes"]) if isinstance(machine.get("memory_bytes"), int | float) else "",
        str(machine.get("os") or ""),
        throttling(run.timings),
    ]
    return " · ".join(part for part in parts if part)


def throttling(timings: pd.DataFrame) -> str:
    """Whether the device was slowed down while it was timed, in words: no, yes, or unknown.

    Only a recorded `false` says no; older records hold a count, which was 0 as well where nobody could say.
    """
    timed = timings[timings["status"] == "ok"] if "status" in timings else timings
    if timed.empty:
        return ""
    recorded = list(timed["throttled"]) if "throttled" in timed else [None] * len(timed)
    states = [_throttled(state) for state in recorded]
    slowed, unknown = states.count("yes"), states.count("unknown")
    if slowed:
        return f"throttled in {cells_text(slowed)}, whose slowed samples are left out"
    if unknown:
        return "throttling unknown" + (f" in {cells_text(unknown)}" if unknown < len(states) else "")
    return "not throttled"


def _throttled(state: object) -> str:
    if isinstance(state, bool):
        return "yes" if state else "no"
    return "yes" if isinstance(state, int | float) and state > 0 else "unknown"


def versions_line(run: Run) -> str:
    """What was installed, when the run began, and the commit."""
    versions = run.meta.get("versions")
    installed = {name: v for name, v in versions.items() if v} if isinstance(versions, dict) else {}
    parts = [f"{name} {version}" for name, version in installed.items()]
    if commit := run.meta.get("commit"):
        text = str(commit)
        parts.append(f"commit {text[:10]}{' with local changes' if text.endswith('-dirty') else ''}")
    if created := run.meta.get("created"):
        parts.append(f"run of {str(created)[:16].replace('T', ' ')}")
    return " · ".join(parts)


def facts(run: Run) -> Table:
    """Everything that `run.json` says, a line each."""
    rows: list[tuple[str, ...]] = [pair for pair in _flat(run.meta) if pair[0] != "format"]
    return Table("What the run recorded about itself", ("field", "value"), rows)


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [pair for name, item in value.items() for pair in _flat(item, f"{prefix}{name}.")]
    shown = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return [(prefix.removesuffix("."), shown or "none")]


def _condition_line(table: pd.DataFrame) -> str:
    if table.empty:
        return ""
    condition = tables.main_condition(table)
    return f"Figures of the first screen: {condition_text(condition)}; other conditions below."


def _markdown_text(value: object) -> str:
    """Text that Markdown shows as it is, within a table too."""
    escaped = str(escape(value)).replace("&#39;", "'").replace("&#34;", '"')
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", " ".join(escaped.split()))


def _hash(script: str) -> str:
    """The script's source expression in the content security policy: nothing else may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html", "html.j2"], default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = _markdown_text
    return environment
