"""What a gate found, for the terminal, for JUnit's readers and for a job summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

from zipfmax_reference.console import print_table
from zipfmax_reference.records import Finding

SUMMARY_LIMIT = 64_000
"""Bytes of a job summary; forges cut off or refuse longer ones."""


def verdict(findings: Sequence[Finding]) -> str:
    """One line that says it all."""
    counts = Counter(finding.outcome for finding in findings)
    words = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))
    return f"{'FAILED' if any(finding.failed for finding in findings) else 'passed'}: {words}"


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


def junit(findings: Sequence[Finding]) -> str:
    """JUnit XML: a test case a cell, failed where the gate fails."""
    failures = sum(finding.failed for finding in findings)
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(
        root, "testsuite", name="zipfmax gate", tests=str(len(findings)), failures=str(failures), errors="0"
    )
    for finding in findings:
        case = ElementTree.SubElement(suite, "testcase", classname=finding.impl, name=finding.case)
        if finding.failed:
            failure = ElementTree.SubElement(case, "failure", type=finding.outcome, message=finding.text)
            failure.text = finding.update or finding.text
        else:
            ElementTree.SubElement(case, "system-out").text = finding.text
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def summary(findings: Sequence[Finding], notes: Sequence[str]) -> str:
    """Markdown, failures first; cut with a line that says so before it passes the limit."""
    lines = [f"## zipfmax gate {verdict(findings)}", ""]
    lines += [f"- {note}" for note in notes] + [""] * bool(notes)
    lines += ["| outcome | case | implementation | found |", "|---|---|---|---|"]
    used = sum(len(line.encode()) + 1 for line in lines)
    ordered = sorted(findings, key=lambda finding: (not finding.failed, finding.outcome == "ok"))
    for done, finding in enumerate(ordered):
        line = f"| {finding.outcome} | `{finding.case}` | `{finding.impl}` | {finding.text} |"
        if used + len(line.encode()) > SUMMARY_LIMIT - 100:
            lines += ["", f"and {len(ordered) - done} more cells, left out to stay under the size limit"]
            break
        lines.append(line)
        used += len(line.encode()) + 1
    return "\n".join(lines) + "\n"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
