"""The pictures of head and tails: where the labels fall, where the time goes, and what bounds each part."""

from __future__ import annotations

import pandas as pd

from zipfmax_reports import part_figures, tables
from zipfmax_reports.elements import Format, Picture, Table, text
from zipfmax_reports.part_figures import OTHER
from zipfmax_reports.parts import parts_of, timed_parts
from zipfmax_reports.reproduction import sweep_command
from zipfmax_reports.style import amount, count, percent, seconds, size

_PANELS = 4
"""Panels beside each other that can still be read."""

_PART: dict[str, tuple[str, Format]] = {
    "task": ("task", text),
    "n_classes": ("classes", count),
    "labels_name": ("labels", text),
    "part": ("part", text),
    "part_rows": ("rows", count),
}
"""The columns that say which part of which cell a line of a table is."""

HOW_SPLIT = (
    "Measured beside the samples, on one batch: the step with every label in the shortlist is the head, with "
    "routing and loss; what one tail's labels add to it is that tail; the fastest of a few passes. These "
    "parts need not add up: “other” is the rest of the whole step, below zero where parts share work."
)


def occupancy(rows: pd.DataFrame, name: str) -> Picture:
    """Shares of the labels in head and tails."""
    first = rows.drop_duplicates(["n_classes", "labels_name"])
    drawn = tables.drawable(first, sizes=_PANELS)
    columns = {
        "n_classes": ("classes", count),
        "labels_name": ("labels", text),
        "cutoffs": ("cutoffs", text),
        "occupancy": ("head, then tails", lambda shares: ", ".join(map(percent, shares))),
    }
    return Picture(
        name="occupancy",
        title="Where the labels fall",
        reading="The share of a batch's labels in the head and in each tail. A row is only charged for the "
        "head and for the tail that its label is in.",
        description="Stacked bars: the more skewed the labels, the larger the head's share.",
        caption=f"As drawn for {name} in the timed batches." + tables.left_out(first, drawn),
        figure=part_figures.occupancy(drawn),
        table=Table.of("Occupancy of head and tails", first, columns),
        command=sweep_command(first, [name]),
    )


def time_split(rows: pd.DataFrame, name: str, caption: str) -> list[Picture]:
    """Where the time of a step goes; nothing for a run in which it was not split."""
    split = _timed(rows)
    if split.empty:
        return []
    other = split.groupby("case", sort=False).agg({"share": "sum", "seconds": "sum"})
    rest = split.drop_duplicates("case").set_index("case", drop=False)
    rest = rest.assign(
        part=OTHER,
        part_rows=float("nan"),
        part_limit_s=float("nan"),
        part_efficiency=float("nan"),
        share=1 - other["share"],
        seconds=rest["parts_whole_s"] - other["seconds"],
    )
    whole = pd.concat([split, rest], ignore_index=True)
    columns: dict[str, tuple[str, Format]] = {
        **_PART,
        "seconds": ("time", seconds),
        "share": ("of the step", percent),
        "part_limit_s": ("its bare products", seconds),
        "part_efficiency": ("limit / measured", percent),
        "parts_passes": ("passes", count),
    }
    order = {part: place for place, part in enumerate(dict.fromkeys(whole["part"]))}
    listed = whole.sort_values(
        ["task", "n_classes", "labels_name", "part"],
        key=lambda column: column.map(order) if column.name == "part" else column,
        kind="stable",
    )
    drawn = tables.drawable(whole, sizes=_PANELS)
    return [
        Picture(
            name="time",
            title="Where the time goes",
            reading=HOW_SPLIT,
            description="Stacked bars: the share of a step's time in the head, each tail, and the rest.",
            caption=f"{name}; {caption}" + tables.left_out(whole, drawn),
            figure=part_figures.time_split(drawn),
            table=Table.of(f"The time of {name} by head and tails", listed, columns),
            command=sweep_command(rows, [name]),
        )
    ]


def rooflines(rows: pd.DataFrame, name: str, caption: str) -> list[Picture]:
    """Of whole cells, and of the parts of `name` where they were timed; nothing where no part is known."""
    known = rows.assign(parts=rows.apply(parts_of, axis="columns", result_type="reduce"))
    known = known[known["parts"].map(len) > 0]
    if known.empty:
        return []
    return [_roofline(known, caption), *_part_roofline(rows[rows["impl"] == name], name, caption)]


def _roofline(rows: pd.DataFrame, caption: str) -> Picture:
    """Every cell's products against what the machine was measured to reach on the same shapes."""
    flops = rows["parts"].map(lambda parts: sum(part.flops for part in parts))
    moved = rows["parts"].map(lambda parts: sum(part.bytes for part in parts))
    rows = rows.assign(
        intensity=flops / moved,
        flops_per_s=flops / rows["median_s"],
        limit_flops_per_s=flops / rows["limit_s"],
    )
    each = rows.drop_duplicates("case").explode("parts")
    total = each["case"].map(dict(zip(rows["case"], flops, strict=True)))
    each = each.assign(
        part=[part.name for part in each["parts"]],
        part_rows=[part.rows for part in each["parts"]],
        width=[part.width for part in each["parts"]],
        columns=[part.classes for part in each["parts"]],
        part_flops=[part.flops for part in each["parts"]],
        part_bytes=[part.bytes for part in each["parts"]],
        part_intensity=[f"{part.intensity:.3g}" for part in each["parts"]],
        share=[part.flops for part in each["parts"]] / total,
    )
    columns: dict[str, tuple[str, Format]] = {
        **_PART,
        "width": ("width", count),
        "columns": ("columns", count),
        "part_flops": ("FLOPs", amount),
        "share": ("share of the cell's", percent),
        "part_bytes": ("bytes", size),
        "part_intensity": ("FLOPs per byte", text),
        "limit_s": ("the whole cell's limit", seconds),
    }
    drawn = tables.drawable(rows)
    return Picture(
        name="roofline",
        title="Roofline: products against what this machine reaches",
        reading="A mark for each cell: how many operations its matrix products do a second, against how "
        "many they do for each byte that they move. The bars are only the same products, measured in the "
        "same run. The table splits each cell into head and tails.",
        description="Achieved operations a second against arithmetic intensity, with the measured limit.",
        caption=caption + tables.left_out(rows, drawn),
        figure=part_figures.roofline(drawn),
        table=Table.of(caption, each, columns),
        command=sweep_command(rows, list(dict.fromkeys(rows["impl"]))),
    )


def _part_roofline(rows: pd.DataFrame, name: str, caption: str) -> list[Picture]:
    split = _timed(rows)
    split = split[(split["seconds"] > 0) & (split["part_limit_s"] > 0)]
    if split.empty:
        return []
    split = split.assign(
        flops_per_s=split["part_flops"] / split["seconds"],
        limit_flops_per_s=split["part_flops"] / split["part_limit_s"],
        shown_intensity=split["intensity"].map("{:.3g}".format),
    )
    columns: dict[str, tuple[str, Format]] = {
        **_PART,
        "shown_intensity": ("FLOPs per byte", text),
        "flops_per_s": ("FLOPs a second", amount),
        "limit_flops_per_s": ("at the limit", amount),
        "part_efficiency": ("limit / measured", percent),
    }
    drawn = tables.drawable(split)
    return [
        Picture(
            name="roofline-parts",
            title="Roofline of head and tails",
            reading="The same for each part: a head is bound by operations, a tail with few rows by the "
            "weights that it reads.",
            description="Operations a second of head and tails against their arithmetic intensity.",
            caption=f"{name}; {caption}" + tables.left_out(split, drawn),
            figure=part_figures.roofline(drawn, "part", "part"),
            table=Table.of(f"Rooflines of the parts of {name}", split, columns),
            command=sweep_command(rows, [name]),
        )
    ]


def _timed(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each timed part of each cell, with what it computes; no rows where nothing was split."""
    found = rows.assign(timed=rows.apply(timed_parts, axis="columns", result_type="reduce"))
    found = found[found["timed"].map(len) > 0].explode("timed", ignore_index=True)
    timed = list(found["timed"])
    return found.assign(
        part=[item.part.name for item in timed],
        part_rows=[item.part.rows for item in timed],
        part_flops=[item.part.flops for item in timed],
        intensity=[item.part.intensity for item in timed],
        seconds=[item.seconds for item in timed],
        share=[item.share for item in timed],
        part_limit_s=[float("nan") if item.limit_s is None else item.limit_s for item in timed],
        part_efficiency=[item.efficiency for item in timed],
    )
