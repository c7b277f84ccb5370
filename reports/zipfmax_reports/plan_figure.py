"""The figures of plans: predicted time against the first cutoff, and plans against a search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zipfmax.errors import UsageError
from zipfmax_reports.panels import factor_ticks, legend
from zipfmax_reports.style import LIGHT, MARKERS, Theme, count, in_colours


@in_colours
def plan_figure(record: Mapping[str, Any], *, theme: Theme = LIGHT) -> Figure:
    """Draw a plan's record, as `zipfmax plan --json` prints it; the choice is marked."""
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    looks = zip(MARKERS, theme.series, strict=True)
    for (marker, colour), (n_tails, points) in zip(looks, record["curve"].items(), strict=False):
        axes.plot(
            [point["first_cutoff"] for point in points],
            [point["predicted_s"] * 1e3 for point in points],
            marker=marker,
            color=colour,
            markersize=3.5,
            linewidth=1.2,
            label=f"{n_tails} tail" + ("s" if n_tails != "1" else ""),
        )
    axes.axhline(
        record["full_s"] * 1e3, color=theme.muted, linestyle="--", linewidth=1.0, label="full softmax"
    )
    first, chosen_ms = record["cutoffs"][0], record["predicted_s"] * 1e3
    axes.plot(
        [first], [chosen_ms], marker="*", markersize=14, color=theme.ink, linestyle="none", label="the plan"
    )
    axes.annotate(
        ", ".join(f"{cutoff:,}" for cutoff in record["cutoffs"]),
        (first, chosen_ms),
        xytext=(8, -14),
        textcoords="offset points",
    )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="first cutoff: classes in the shortlist",
        ylabel="predicted time of a step, ms",
        title=(
            f"{record['labels']}, {record['n_classes']:,} classes, d = {record['in_features']}, "
            f"N = {record['batch_size']:,}, {record['task']}"
        ),
    )
    lowest_ms = min(chosen_ms, record["full_s"] * 1e3)
    axes.set_ylim(bottom=0.7 * lowest_ms)  # space for the cutoffs below the star
    axes.legend()
    return figure


@in_colours
def proof_figure(rows: pd.DataFrame, *, theme: Theme = LIGHT) -> Figure:
    """Times of plan, literature and full softmax over the best of a search, a row for each cell."""
    names = rows["labels_name"] + ", " + rows["n_classes"].map(count) + " classes"
    figure = Figure(figsize=(8.2, 1.3 + 0.24 * len(rows)), layout="constrained")
    axes: Axes = figure.subplots()
    places = range(len(rows) - 1, -1, -1)
    series = (("over_best", "the plan"), ("literature", "the literature's cutoffs"), ("full", "full softmax"))
    for (column, label), marker, colour in zip(series, MARKERS, theme.series, strict=False):
        axes.plot(rows[column], places, marker, color=colour, markersize=6, label=label)
    axes.axvline(1.0, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    factor_ticks(axes.xaxis, *axes.get_xlim())
    axes.set_yticks(places, names)
    axes.set_xlabel("time over the best of the search")
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    legend(figure, [("", axes)], None)
    return figure


def write_plan_figure(record: Mapping[str, Any], path: Path) -> None:
    """Write the figure; the file's ending chooses the format.

    Raises:
        UsageError: a format that Matplotlib does not write, or a place that cannot be written.
    """
    figure = plan_figure(record)
    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise UsageError(f"cannot draw into {path}: its ending should be one of {', '.join(sorted(formats))}")
    try:
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
