"""`python -m zipfmax_reference.checks.sensitivity`: the smallest relative error that the budgets catch.

torch.nn's results of one training step are multiplied by 1 + e in one place, and the smallest e that fails the
tensor is found by bisection. Places, each apart: the largest element; the row of a frequent, of a rare and of an
absent class (of output and grad.input, the batch row with that label); all absent classes; the whole tensor.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from zipfmax_reference.contestants import registry
from zipfmax_reference.runs.arrays import Labels
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.drawing import draw_inputs
from zipfmax_reference.truth.contract import Values
from zipfmax_reference.truth.judgement import Truth

CASE = Case(50_000, 128, 256, (2_000, 10_000), head_bias=True)
DTYPES = ("float32", "bfloat16")
PLACES = ("largest element", "frequent", "rare", "absent", "all absent", "whole")
SMALLEST, LARGEST = 1e-9, 10.0
"""Relative errors between which is searched."""
STEPS = 12
"""Halvings of the logarithm's interval: the result is within 0.6 % of the threshold."""

HEADING = """# The smallest relative error that parity catches

`python -m zipfmax_reference.checks.sensitivity --markdown FILE`, about 20 s of CPU time.

The results of torch.nn's layer are multiplied by 1 + e in one place; the table has the smallest e that fails the
tensor. Of output and grad.input the rows are those whose label is frequent or rare; a projection, without classes,
has its first row under "frequent". The cell, in each dtype:
`{case}`.

"""


def places(truth: Truth, tensor: str) -> dict[str, Values]:
    """Masks of a tensor's places that it has, by name."""
    values = truth.values[tensor]
    rows = np.arange(len(values) if values.ndim else 1)
    labels = _labels(truth, tensor, len(rows))
    found = {"whole": np.ones(values.shape, dtype=bool)}
    if values.ndim:
        at = np.unravel_index(int(np.abs(values).argmax()), values.shape)
        found["largest element"] = np.zeros(values.shape, dtype=bool)
        found["largest element"][at] = True
    if labels is None:
        if values.ndim:
            found["frequent"] = _rows(values, rows == 0)
        return found
    times = np.bincount(truth.target, minlength=truth.case.n_classes)
    seen = np.where(labels >= 0, times[labels], -1)
    if (seen > 0).any():
        found["frequent"] = _rows(values, rows == seen.argmax())
        once = seen == seen[seen > 0].min()
        found["rare"] = _rows(values, rows == np.flatnonzero(once)[labels[once].argmax()])
    if (seen == 0).any():
        found["absent"] = _rows(values, rows == np.flatnonzero(seen == 0)[-1])
        found["all absent"] = _rows(values, seen == 0)
    return found


def smallest_caught(truth: Truth, tensor: str, results: Values, place: Values) -> float:
    """The smallest relative error of a place that fails; infinity where none up to `LARGEST` does."""

    def caught(error: float) -> bool:
        wrong = np.where(place, results * (1 + error), results).astype(results.dtype)
        return truth.judge(tensor, wrong).status == "fail"

    return _bisected(caught)


def _bisected(caught: Callable[[float], bool]) -> float:
    if not caught(LARGEST):
        return np.inf
    low, high = np.log10(SMALLEST), np.log10(LARGEST)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if caught(10**middle) else (middle, high)
    return float(10**high)


def _labels(truth: Truth, tensor: str, n_rows: int) -> Labels | None:
    """The label of each row of a tensor, -1 for a cluster's slot; None where rows have none."""
    if tensor in ("output", "grad.input"):
        return truth.target
    labels: Labels | None = truth.classes(tensor, (n_rows, 1))[1]
    return labels


def _rows(values: Values, chosen: Values) -> Values:
    return np.broadcast_to(chosen.reshape(-1, *[1] * (values.ndim - 1)), values.shape)


def examine(case: Case, implementation: str = "torch") -> Iterator[tuple[str, str, float]]:
    """(tensor, place, smallest relative error caught) of a case."""
    inputs = draw_inputs(case)
    truth = Truth.of(case, inputs)
    runner = registry.implementation(implementation).build(case, inputs)
    runner.run()
    results = runner.results()
    for tensor in truth.values:
        masks = places(truth, tensor)
        for place in PLACES:
            if place in masks:
                yield tensor, place, smallest_caught(truth, tensor, results[tensor], masks[place])


def table(case: Case, dtypes: Sequence[str] = DTYPES) -> str:
    """Markdown: a row for each dtype and tensor, a column for each place."""
    lines = ["| dtype | tensor | " + " | ".join(PLACES) + " |", "|---" * (2 + len(PLACES)) + "|"]
    for dtype in dtypes:
        rows: dict[str, dict[str, float]] = {}
        for tensor, place, error in examine(replace(case, dtype=dtype)):
            rows.setdefault(tensor, {})[place] = error
        for tensor, found in rows.items():
            cells = [_text(found[place]) if place in found else "" for place in PLACES]
            lines.append(f"| {dtype} | {tensor} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _text(error: float) -> str:
    return f"> {LARGEST:g}" if np.isinf(error) else f"{error:.1e}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or write it with its heading to a file."""
    parser = argparse.ArgumentParser(
        prog="python -m zipfmax_reference.checks.sensitivity", description=__doc__
    )
    parser.add_argument("--classes", type=int, default=CASE.n_classes)
    parser.add_argument("--markdown", type=Path, help="file to write to")
    given = parser.parse_args(arguments)
    case = replace(CASE, n_classes=given.classes)
    text = table(case)
    if given.markdown is None:
        print(text)
        return
    given.markdown.write_text(HEADING.format(case=case.id) + text + "\n")


if __name__ == "__main__":
    main()
