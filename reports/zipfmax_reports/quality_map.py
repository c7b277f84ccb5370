"""Where a whole step is faster: the measured parts of a step added up, and measured whole steps laid over them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from zipfmax_reference.records import StudyLayer, StudyMap, StudyTrunk
from zipfmax_reports.elements import Picture, Table, text
from zipfmax_reports.figure import Axis, Figure, Look, Marks, Panels, ReferenceLine, Series
from zipfmax_reports.style import count, factor, seconds

MEASURED = "measured whole step"
DEEPER = 8
"""Trunks up to so many times the deepest that was measured are drawn, by the slope of the last two."""


def map_picture(
    cells: Sequence[StudyMap], trunks: Sequence[StudyTrunk], layers: Sequence[StudyLayer]
) -> Picture | None:
    """The map; None where no cell has both times and a trunk of its width."""
    rows = map_rows(cells, trunks)
    if rows.empty:
        return None
    measured = measured_rows(layers, rows)
    columns = {
        "panel": ("", text),
        "classes": ("vocabulary", text),
        "mflops": ("trunk, MFLOP a token", lambda value: f"{value:.3g}"),
        "trunk_s": ("trunk", seconds),
        "inputs_s": ("inputs", seconds),
        "full_s": ("full softmax", seconds),
        "adaptive_s": ("zipfmax", seconds),
        "speedup": ("whole step", factor),
    }
    first = cells[0]
    lead = map_sentence(rows)
    return Picture(
        name="quality-map",
        title="Where a whole step is faster",
        reading="How many times as fast a whole training step is with zipfmax as with the fastest exact full "
        "softmax, against the cost of what lies below it. Lines are sums of parts, each measured by itself; marks "
        "are whole steps. Below the dashed line it is slower.",
        description=f"Speedup of a whole step against the trunk's operations a token. {lead}",
        caption=f"{lead} N {count(first.rows)}, {first.dtype}, {first.device}, customary cutoffs, labels by Zipf's "
        f"law; trunks deeper than {max((trunk.depth for trunk in trunks), default=0)} layers are extrapolated.",
        figure=map_figure(pd.concat([rows, measured], ignore_index=True)),
        table=Table.of("The map, part by part", pd.concat([rows, measured], ignore_index=True), columns),
        command="zipfmax study --map --out DIR",
    )


def map_rows(cells: Sequence[StudyMap], trunks: Sequence[StudyTrunk]) -> pd.DataFrame:
    """A row for each vocabulary, width and trunk: the parts' seconds and the whole step's speedup."""
    rows = []
    for cell in cells:
        if cell.full_s is None or cell.adaptive_s is None:
            continue
        own = [trunk for trunk in trunks if trunk.in_features == cell.in_features and trunk.rows == cell.rows]
        for flops, trunk_s in _with_deeper(sorted((trunk.flops, trunk.step_s) for trunk in own)):
            below = trunk_s + (cell.inputs_s or 0.0)
            rows.append(
                {
                    "panel": f"d {cell.in_features}",
                    "classes": f"V {count(cell.n_classes)}",
                    "mflops": flops / 1e6,
                    "trunk_s": trunk_s,
                    "inputs_s": cell.inputs_s,
                    "full_s": cell.full_s,
                    "adaptive_s": cell.adaptive_s,
                    "speedup": (below + cell.full_s) / (below + cell.adaptive_s),
                }
            )
    return pd.DataFrame(rows)


def _with_deeper(found: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """(FLOPs, seconds) of trunks, and of deeper ones on the line through the last two."""
    places: list[tuple[float, float]] = [(float(flops), seconds) for flops, seconds in found]
    if len(places) < 2:
        return places
    (low, low_s), (high, high_s) = places[-2:]
    factors = (2.0, 4.0, float(DEEPER))
    slope = (high_s - low_s) / (high - low)
    return [*places, *((high * times, high_s + slope * high * (times - 1)) for times in factors)]


def measured_rows(layers: Sequence[StudyLayer], rows: pd.DataFrame) -> pd.DataFrame:
    """The whole steps of a study, full softmax's over zipfmax's, where the map has a panel of their width."""
    full = next((layer for layer in layers if layer.layer == "full" and layer.step_s), None)
    own = next((layer for layer in layers if layer.layer == "zipfmax" and layer.step_s), None)
    if full is None or own is None or full.step_s is None or own.step_s is None:
        return pd.DataFrame()
    panel = f"d {own.in_features}"
    if panel not in set(rows["panel"]):
        return pd.DataFrame()
    return pd.DataFrame(
        [
            {
                "panel": panel,
                "classes": f"{MEASURED}, V {count(own.n_classes)}",
                "mflops": own.trunk_flops / 1e6,
                "trunk_s": float("nan"),
                "inputs_s": float("nan"),
                "full_s": full.step_s - (full.bare_step_s or 0.0),
                "adaptive_s": own.step_s - (own.bare_step_s or 0.0),
                "speedup": full.step_s / own.step_s,
            }
        ]
    )


def map_figure(rows: pd.DataFrame) -> Figure:
    """Speedup of the whole step against the trunk's FLOPs a token; a line per vocabulary, a panel per width."""
    names = list(dict.fromkeys(rows["classes"]))
    looks = {name: Look("ink", "star", 13.0) for name in names if name.startswith(MEASURED)}
    return Figure(
        "Speedup of a whole step against the trunk's operations a token, a line per vocabulary.",
        rows,
        x=Axis("mflops", "trunk, forward MFLOP a token", "log"),
        y=Axis("speedup", "whole step, full softmax / zipfmax", "log", "factor", grid=True),
        marks=(Marks("line"),),
        series=Series("classes", tuple(names), "", looks),
        rules=(ReferenceLine("y", 1.0, "break-even"),),
        panels=Panels("panel", {name: name for name in dict.fromkeys(rows["panel"])}),
    )


def map_sentence(rows: pd.DataFrame) -> str:
    """Where adaptive softmax wins and where it does not, over the map's cells."""
    by_vocabulary = rows.groupby("classes", sort=False)["speedup"].agg(["min", "max"])
    parts = [
        f"{name}: {factor(row['min'])} to {factor(row['max'])}" for name, row in by_vocabulary.iterrows()
    ]
    slower = [name for name, row in by_vocabulary.iterrows() if row["min"] < 1]
    lost = f"It is slower in some cells of {', '.join(map(str, slower))}." if slower else "No cell is slower."
    return f"Whole steps are {'; '.join(parts)} as fast. {lost}"
