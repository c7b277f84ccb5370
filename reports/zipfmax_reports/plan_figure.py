"""The figures of plans: predicted time against the first cutoff, and plans against a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.backend_bases import FigureCanvasBase

from zipfmax.errors import UsageError
from zipfmax_reports.figure import Axis, Figure, Look, Marks, ReferenceLine, Series
from zipfmax_reports.static import draw
from zipfmax_reports.style import count

CHOSEN, FULL = "the plan", "full softmax"


def plan_figure(record: Mapping[str, Any]) -> Figure:
    """Describe a plan's record, as `zipfmax plan --json` prints it; the choice is marked."""
    points = [
        {"line": f"{n_tails} tail" + ("s" if n_tails != "1" else ""), "cutoffs": "", **point}
        for n_tails, curve in record["curve"].items()
        for point in curve
    ]
    lines = tuple(dict.fromkeys(point["line"] for point in points))
    first, full_s, words = record["cutoffs"][0], record["full_s"], ", ".join(map(count, record["cutoffs"]))
    points.append(
        {"line": CHOSEN, "cutoffs": words, "first_cutoff": first, "predicted_s": record["predicted_s"]}
    )
    rows = pd.DataFrame(points)
    rows = rows.assign(predicted_ms=1e3 * rows["predicted_s"], curve=rows["line"] != CHOSEN)
    rows["chosen"] = ~rows["curve"]
    times = [*rows["predicted_ms"], 1e3 * full_s]
    # Below the star there is space for its cutoffs.
    limits = 0.7 * 1e3 * min(record["predicted_s"], full_s), 1.2 * max(times)
    looks = {name: Look(position, Look.at(position).marker, 3.5) for position, name in enumerate(lines)}
    return Figure(
        "Predicted time of a step against the first cutoff, a line for each number of tails.",
        rows,
        x=Axis("first_cutoff", "first cutoff: classes in the shortlist", "log", "count"),
        y=Axis("predicted_ms", "predicted time of a step, ms", "log", limits=limits, grid=True),
        marks=(Marks("line", where="curve"), Marks("points", where="chosen", text="cutoffs")),
        series=Series("line", (*lines, CHOSEN), looks={**looks, CHOSEN: Look("ink", "star", 14.0)}),
        rules=(ReferenceLine("y", 1e3 * full_s, FULL),),
        size=(7.0, 4.2),
        title=f"{record['labels']}, {record['n_classes']:,} classes, d = {record['in_features']}, "
        f"N = {record['batch_size']:,}, {record['task']}",
    )


def proof_figure(rows: pd.DataFrame) -> Figure:
    """Times of plan, literature and full softmax over the best of a search, a row for each cell."""
    names = rows["labels_name"] + ", " + rows["n_classes"].map(count) + " classes"
    columns = {"over_best": CHOSEN, "literature": "the literature's cutoffs", "full": FULL}
    cells = rows.assign(cell=names, place=range(len(rows)))
    return Figure(
        "Times over the best of the search, a row for each cell.",
        cells.rename(columns=columns).melt(["cell", "place"], list(columns.values()), "partition", "over"),
        x=Axis("over", "time over the best of the search", "log", "factor", grid=True),
        y=Axis("place", scale="category", ticks=dict(enumerate(names))),
        marks=(Marks("points"),),
        series=Series("partition", tuple(columns.values())),
        rules=(ReferenceLine("x"),),
        size=(8.2, 1.3 + 0.24 * len(rows)),
    )


@dataclass(frozen=True)
class FigureFile:
    """Writes a figure of a record into a file, whose ending chooses the format."""

    described: Callable[[Mapping[str, Any]], Figure]

    def check(self, path: Path) -> None:
        """See that Matplotlib writes files with that ending.

        Raises:
            UsageError: it does not.
        """
        formats = FigureCanvasBase.get_supported_filetypes()
        if path.suffix.removeprefix(".").lower() not in formats:
            raise UsageError(
                f"cannot draw into {path}: its ending should be one of {', '.join(sorted(formats))}"
            )

    def __call__(self, record: Mapping[str, Any], path: Path) -> None:
        """Write the figure.

        Raises:
            UsageError: a format that Matplotlib does not write, or a place that cannot be written.
        """
        self.check(path)
        drawing = draw(self.described(record))
        try:
            drawing.savefig(path)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error


write_plan_figure = FigureFile(plan_figure)
