"""What a gate found, for the terminal, for JUnit's readers and for a job summary or a pull request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

from zipfmax_reference.console import print_table
from zipfmax_reference.records import Finding
from zipfmax_reference.records.files import write_text

SUMMARY_LIMIT = 64_000
"""Bytes of a job summary or a comment; forges cut off or refuse longer ones."""

MARK = "<!-- zipfmax gate -->"
"""First line of the Markdown, by which a later run finds the comment that it replaces."""


@dataclass(frozen=True)
class Left:
    """What a gate leaves behind.

    Attributes:
        junit: file of JUnit XML to write.
        summary: file of Markdown to write.
        fail_undecided: whether a cell that ended undecided makes the exit status 1.
    """

    junit: Path | None = None
    summary: Path | None = None
    fail_undecided: bool = False


def tell(findings: Sequence[Finding], notes: Sequence[str], console: Console, left: Left) -> int:
    """Print what was found, write the files, and return the exit status."""
    show(findings, notes, console)
    if left.junit is not None:
        write_text(left.junit, junit(findings, left.fail_undecided))
    if left.summary is not None:
        write_text(left.summary, summary(findings, notes))
    return int(any(fails(finding, left.fail_undecided) for finding in findings))


def fails(finding: Finding, fail_undecided: bool) -> bool:
    """Whether a finding makes the exit status 1."""
    return finding.failed or (fail_undecided and finding.outcome == "undecided")


def verdict(findings: Sequence[Finding]) -> str:
    """One line that says it all: FAILED, or undecided where a cell is, or passed; and how many of each."""
    counts = Counter(finding.outcome for finding in findings)
    words = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))
    failed = any(finding.failed for finding in findings)
    return f"{'FAILED' if failed else 'undecided' if counts['undecided'] else 'passed'}: {words}"


def show(findings: Sequence[Finding], notes: Sequence[str], console: Console) -> None:
    """A table of all that is not plainly as before, the lines that would update it, and the verdict."""
    notable = [finding for finding in findings if finding.outcome != "ok"]
    if notable:
        table = Table("outcome", "case", "impl", "what was found", show_lines=True)
        for finding in notable:
            table.add_row(finding.outcome, finding.case, finding.impl, finding.text)
        print_table(console, table)
    for finding in notable:
        if finding.update:
            _say(
                console, f"if that is meant, the baseline's line becomes (or use --update):\n{finding.update}"
            )
    for note in notes:
        _say(console, f"note: {note}")
    _say(console, verdict(findings))


def junit(findings: Sequence[Finding], fail_undecided: bool = False) -> str:
    """JUnit XML: a test case a cell, failed where the exit status says so, skipped where undecided."""
    failures = sum(fails(finding, fail_undecided) for finding in findings)
    skipped = sum(finding.outcome == "undecided" for finding in findings) if not fail_undecided else 0
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name="zipfmax gate",
        tests=str(len(findings)),
        failures=str(failures),
        errors="0",
        skipped=str(skipped),
    )
    for finding in findings:
        case = ElementTree.SubElement(suite, "testcase", classname=finding.impl, name=finding.case)
        if fails(finding, fail_undecided):
            failure = ElementTree.SubElement(case, "failure", type=finding.outcome, message=finding.text)
            failure.text = finding.update or finding.text
        elif finding.outcome == "undecided":
            ElementTree.SubElement(case, "skipped", message=f"undecided: {finding.text}")
        else:
            ElementTree.SubElement(case, "system-out").text = finding.text
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def summary(findings: Sequence[Finding], notes: Sequence[str]) -> str:
    """Markdown, failures first; cut with a line that says so before it passes the limit."""
    lines = [MARK, f"## zipfmax gate {verdict(findings)}", ""]
    lines += [f"- {note}" for note in notes] + [""] * bool(notes)
    lines += ["| outcome | case | implementation | found |", "|---|---|---|---|"]
    used = sum(len(line.encode()) + 1 for line in lines)
    ordered = sorted(findings, key=_rank)
    for done, finding in enumerate(ordered):
        line = f"| {finding.outcome} | `{finding.case}` | `{finding.impl}` | {finding.text} |"
        if used + len(line.encode()) > SUMMARY_LIMIT - 100:
            lines += ["", f"and {len(ordered) - done} more cells, left out to stay under the size limit"]
            break
        lines.append(line)
        used += len(line.encode()) + 1
    return "\n".join(lines) + "\n"


def _rank(finding: Finding) -> tuple[bool, bool, bool]:
    return not finding.failed, finding.outcome != "undecided", finding.outcome == "ok"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
