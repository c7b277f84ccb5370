"""The sections of the page, each from a run's tables: its lead, figures, tables and reasons."""

from __future__ import annotations

import re

import pandas as pd

from zipfmax_reports import figures, part_pictures, tables
from zipfmax_reports.elements import Details, Picture, Section, Table, text
from zipfmax_reports.reproduction import sweep_command
from zipfmax_reports.style import count, factor, percent, seconds, size
from zipfmax_reports.summary import STATUS_WORDS, condition_text, name_of

_PREDICTED = r"^(predicted )(\d[\d.e+-]*)(?= s for)"
"""The one number in which the reasons of cells past the budget differ."""

_MOST_CELLS = 500
"""Rows of the table of all cells."""

_SPEED_COLUMNS = {
    "task": ("task", text),
    "n_classes": ("classes", count),
    "labels_name": ("labels", text),
    "speedup": ("speedup", factor),
    "low": ("95 % from", factor),
    "high": ("to", factor),
    "median_s": ("median", seconds),
    "baseline_s": ("baseline", seconds),
}


def speed(table: pd.DataFrame) -> Section:
    """Speedups of the subject over full softmax and over its peers."""
    if table.empty:
        return Section("")
    name, condition = tables.subject(table), tables.main_condition(table)
    section = Section(
        f"How many times faster {name} is than full softmax (a linear layer and cross entropy over every "
        "class). Above the dashed line it is faster, below it slower; bars are 95 % intervals."
    )
    for baseline in tables.baselines(table):
        rows = tables.under(tables.ratios(table, baseline), condition)
        rows = rows[rows["impl"] == name]
        if not rows.empty:
            section.figures += _speed_figures(rows, name, baseline, condition_text(condition))
    return section


def _speed_figures(rows: pd.DataFrame, name: str, baseline: str, condition: str) -> list[Picture]:
    other = name_of(baseline)
    command = sweep_command(rows, [name, "full" if baseline == tables.BEST_FULL else baseline])
    caption, drawn = f"{name} over {other}; {condition}.", tables.drawable(rows)
    data = Table.of(caption, rows, _SPEED_COLUMNS)
    extremes = _extremes(rows)
    by_vocabulary = Picture(
        name=f"vocabulary-{_slug(baseline)}",
        title=f"Speedup over {other}, by vocabulary size",
        reading="A line for each distribution of the labels; real word frequencies are dashed.",
        description=f"Lines of speedup against vocabulary size, one per label distribution. {extremes}",
        caption=caption + tables.left_out(rows, drawn),
        figure=figures.speedup_by_vocabulary(drawn, other),
        table=data,
        command=command,
        chart="vocabulary" if baseline == "full" else None,
    )
    if baseline != "full":
        return [by_vocabulary]
    by_skew = Picture(
        name="skew",
        title=f"Speedup over {other}, by Zipf skew",
        reading="A line for each vocabulary. Word-frequency lists have no exponent: they stand at the right.",
        description=f"Lines of speedup against the Zipf exponent, one per vocabulary size. {extremes}",
        caption=caption + tables.left_out(rows, drawn),
        figure=figures.speedup_by_skew(drawn, other),
        table=data,
        command=command,
        chart="skew",
    )
    heat = Picture(
        name="heat",
        title=f"Speedup over {other}, vocabulary by skew",
        reading="Purple is faster, orange is slower, and the deeper the more; the number is the speedup.",
        description=f"A grid of speedups, label distributions down, vocabulary sizes across. {extremes}",
        caption=caption + tables.left_out(rows, drawn),
        figure=figures.speedup_heat_map(drawn),
        table=_grid(rows, caption),
        command=command,
        chart="heat",
    )
    pictures = [by_vocabulary, by_skew, heat]
    if rows["occupancy"].map(figures.has_items).any():
        pictures.append(
            Picture(
                name="real",
                title="Real word frequencies beside synthetic ones",
                reading="What matters of a distribution is how many labels the shortlist catches. Stars are "
                "real word frequencies, the other points Zipf's law.",
                description=f"Speedup against the share of labels in the shortlist. {extremes}",
                caption=caption + tables.left_out(rows, drawn),
                figure=figures.speedup_by_head_share(drawn, other),
                table=Table.of(
                    caption,
                    rows.assign(
                        share=rows["occupancy"].map(lambda s: s[0] if figures.has_items(s) else None)
                    ),
                    {
                        "task": ("task", text),
                        "n_classes": ("classes", count),
                        "labels_name": ("labels", text),
                        "share": ("in the shortlist", percent),
                        "speedup": ("speedup", factor),
                    },
                ),
                command=command,
            )
        )
    return pictures


def why(table: pd.DataFrame) -> Section:
    """Occupancy, limit and memory: what the time is made of."""
    if table.empty:
        return Section("")
    name, condition = tables.subject(table), tables.main_condition(table)
    rows = tables.under(table[table["ok"]], condition)
    own = rows[rows["impl"] == name]
    section = Section(
        "A skewed distribution sends most labels to the short head, so most of the vocabulary is never "
        "scored. What is left is matrix products, and memory that an implementation may or may not need."
    )
    caption = f"{condition_text(condition)}."
    filled = own[own["occupancy"].map(figures.has_items)]
    if not filled.empty:
        section.figures.append(part_pictures.occupancy(filled, name))
    section.figures += part_pictures.time_split(own, name, caption)
    limited = rows[rows["limit_s"].notna()]
    if not limited.empty:
        section.figures.append(_efficiency(limited, caption))
        section.figures += part_pictures.rooflines(limited, name, caption)
    weighed = table[table["ok"] & (table["peak_bytes"] > 0)]
    if not weighed.empty:
        section.figures.append(_memory(weighed, condition))
    return section


def _efficiency(rows: pd.DataFrame, caption: str) -> Picture:
    columns = {
        "task": ("task", text),
        "n_classes": ("classes", count),
        "labels_name": ("labels", text),
        "impl": ("implementation", text),
        "limit_s": ("limit", seconds),
        "median_s": ("measured", seconds),
        "efficiency": ("limit / measured", percent),
    }
    names = list(dict.fromkeys(rows["impl"]))
    return Picture(
        name="efficiency",
        title="How near the limit",
        reading="The limit is the time of the same shapes' bare matrix products into warm buffers, measured "
        "in the same run. At 1 nothing is left to gain without fewer products. Bars span the label "
        "distributions.",
        description="Limit over measured time against vocabulary size, a line per implementation.",
        caption=caption,
        figure=figures.efficiency(rows),
        table=Table.of(caption, rows, columns),
        command=sweep_command(rows, names),
    )


def _memory(table: pd.DataFrame, condition: pd.Series) -> Picture:
    """Against batch size where the run varies it, otherwise against vocabulary size."""
    free = tables.under(table, condition.drop(["batch_size"]))
    batches = free.groupby(["n_classes", "task", "labels_name"])["batch_size"].transform("nunique")
    classes = free.loc[batches == batches.max(), "n_classes"].max()
    by_batch = batches.max() > 1
    free = free[(batches > 1) & (free["n_classes"] == classes)]
    rows = free if by_batch else tables.under(table, condition)
    axis, word = ("batch_size", "batch size") if by_batch else ("n_classes", "vocabulary size")
    columns = {
        "task": ("task", text),
        "n_classes": ("classes", count),
        "batch_size": ("batch", count),
        "labels_name": ("labels", text),
        "impl": ("implementation", text),
        "peak_bytes": ("peak temporary memory", size),
    }
    labels = ", ".join(tables.label_order(rows))
    caption = f"{count(classes)} classes; {labels}." if by_batch else f"{condition_text(condition)}."
    return Picture(
        name="memory",
        title=f"Memory, by {word}",
        reading="The most bytes that a step allocates beyond weights, their gradients and the input's.",
        description=f"Peak temporary memory against {word}, a line per implementation; logarithmic axes.",
        caption=caption,
        figure=figures.peak_memory(rows, axis),
        table=Table.of(caption, rows, columns),
        command=sweep_command(rows, list(dict.fromkeys(rows["impl"]))),
    )


def missing(table: pd.DataFrame) -> Section:
    """The cells that show no time, with their reasons."""
    if table.empty:
        return Section("This run timed nothing; `zipfmax sweep` does.")
    rows = table[~table["ok"]]
    if rows.empty:
        return Section(f"None: all {count(len(table))} cells were measured.")
    words = rows["status"].map(STATUS_WORDS).fillna(rows["status"])
    parts = ", ".join(f"{count(number)} {word}" for word, number in words.value_counts(sort=False).items())
    section = Section(f"{count(len(rows))} of {count(len(table))} cells: {parts}. None of them counts above.")
    rows = rows.assign(words=words, reason=rows["reason"].fillna("no reason recorded"))
    rows["kind"] = rows["reason"].str.replace(_PREDICTED, r"\1…", regex=True)
    columns = {
        "impl": ("implementation", text),
        "words": ("outcome", text),
        "reason": ("reason", text),
        "case": ("cells", count),
    }
    keys = ["impl", "words", "kind"]
    grouped = rows.groupby(keys, sort=False).agg({"case": "nunique", "reason": _in_short}).reset_index()
    section.tables.append(Table.of("Cells without a time, by reason", grouped, columns))
    listed = {"case": ("cell", text), **{name: columns[name] for name in ("impl", "words", "reason")}}
    section.details.append(Details("Each of them", Table.of("Cells without a time", rows, listed)))
    return section


def _in_short(reasons: pd.Series) -> str:
    """The one reason, or the range of the predicted times in which several differ."""
    if reasons.nunique() == 1:
        return str(reasons.iloc[0])
    times = sorted(reasons.str.extract(_PREDICTED)[1], key=float)
    least, most = times[0], times[-1]
    return str(re.sub(_PREDICTED, rf"\g<1>{least} to {most}", reasons.iloc[0]))


def all_cells(table: pd.DataFrame) -> Table | None:
    """The timing records with limit and efficiency, as many as a page can hold; those without a time last."""
    if table.empty:
        return None
    rows = table.sort_values("ok", ascending=False, kind="stable")
    for baseline in ("full", "torch"):
        for column in (f"speedup_vs_{baseline}", f"speedup_vs_{baseline}_low", f"speedup_vs_{baseline}_high"):
            rows[column] = pd.to_numeric(rows[column], errors="coerce") if column in rows else float("nan")
    rows["words"] = rows["status"].map(STATUS_WORDS).fillna(rows["status"])
    rows["gradients"] = rows["exact"].map({True: "exact", False: "inexact"})
    rows["samples"] = rows["samples_s"].map(lambda s: float(len(s)) if figures.has_items(s) else 0.0)
    columns = {
        "case": ("cell", text),
        "impl": ("implementation", text),
        "words": ("outcome", text),
        "gradients": ("gradients", text),
        "median_s": ("median", seconds),
        "samples": ("samples", count),
        "speedup_vs_full": ("over full", factor),
        "speedup_vs_full_low": ("from", factor),
        "speedup_vs_full_high": ("to", factor),
        "speedup_vs_torch": ("over torch.nn", factor),
        "limit_s": ("limit", seconds),
        "efficiency": ("limit / measured", percent),
        "peak_bytes": ("peak memory", size),
        "settings": ("settings", text),
        "delegates": ("work done by", text),
        "occupancy": ("occupancy", lambda s: ", ".join(map(percent, s)) if figures.has_items(s) else ""),
    }
    return Table.of("Every cell.", rows, columns, _MOST_CELLS)


def _grid(rows: pd.DataFrame, caption: str) -> Table:
    grid = rows.pivot_table(index=["task", "labels_name"], columns="n_classes", values="speedup", sort=False)
    grid = grid.reindex(columns=sorted(grid.columns))
    headings = tuple(f"{int(classes):,} classes" for classes in grid.columns)
    body = [
        (*map(str, index), *map(factor, values))
        for index, values in zip(grid.index, grid.to_numpy(), strict=True)
    ]
    return Table(caption, ("task", "labels", *headings), body, frozenset(headings))


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def _extremes(rows: pd.DataFrame) -> str:
    least, most = rows.nsmallest(1, "speedup").iloc[0], rows.nlargest(1, "speedup").iloc[0]
    ends = [
        f"{factor(row['speedup'])} ({row['task']}, {count(row['n_classes'])} classes, {row['labels_name']})"
        for row in (least, most)
    ]
    return f"From {ends[0]} to {ends[1]}."
