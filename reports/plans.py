"""The planned cutoffs of a run: the cost curve, and what the plans predicted against what was measured."""

from __future__ import annotations

import shlex

import pandas as pd

from zipfmax.reports import figures, tables
from zipfmax.reports.commands import sweep_command
from zipfmax.reports.elements import Format, Picture, Table, text
from zipfmax.reports.plan_figure import plan_figure
from zipfmax.reports.style import count, factor, seconds


def plan_pictures(plans: pd.DataFrame, table: pd.DataFrame) -> list[Picture]:
    """The figures of a run's plans; `table` is `tables.cells` of the same run."""
    found = [_curve(plans)]
    if not table.empty and "case" in plans:
        planned = plans.drop_duplicates("case", keep="last").set_index("case")
        rows = table[
            table["ok"] & (table["impl"] == tables.subject(table)) & table["case"].isin(planned.index)
        ]
        if not rows.empty:
            predicted = rows["case"].map(planned["predicted_s"])
            found.append(_predictions(rows.assign(predicted_s=predicted)))
    return found


def _curve(plans: pd.DataFrame) -> Picture:
    """The curve of the largest vocabulary; the others are in the table."""
    record = plans.nlargest(1, "n_classes").iloc[0]
    options = {
        "--labels": record["labels"],
        "--classes": record["n_classes"],
        "--features": record["in_features"],
        "--batch": record["batch_size"],
        "--task": record["task"],
    }
    fields = {str(name): value for name, value in record.items()}
    chosen = [word for name, value in options.items() for word in (name, str(value))]
    columns: dict[str, tuple[str, Format]] = {
        "task": ("task", text),
        "n_classes": ("classes", count),
        "labels": ("labels", text),
        "cutoffs": ("planned cutoffs", text),
        "predicted_s": ("predicted", seconds),
        "full_s": ("full softmax, predicted", seconds),
    }
    return Picture(
        name="plan",
        title="What the choice of cutoffs costs",
        reading="The predicted time of a step against the size of the shortlist, a line for each number of "
        "tails; the star is the plan, the dashed line full softmax.",
        description="Curves of predicted time against the first cutoff, each with a minimum.",
        caption=f"{record['labels']}, {count(record['n_classes'])} classes.",
        draw=lambda theme: plan_figure(fields, theme=theme),
        table=Table.of("Every plan of the run", plans, columns),
        command=shlex.join(["zipfmax", "plan", *chosen]),
    )


def _predictions(rows: pd.DataFrame) -> Picture:
    rows = rows.assign(ratio=rows["predicted_s"] / rows["median_s"])
    error = (rows["ratio"] - 1).abs()
    columns: dict[str, tuple[str, Format]] = {
        "task": ("task", text),
        "n_classes": ("classes", count),
        "labels_name": ("labels", text),
        "cutoffs": ("cutoffs", text),
        "predicted_s": ("predicted", seconds),
        "median_s": ("measured", seconds),
        "ratio": ("predicted / measured", factor),
    }
    caption = f"Median error {100 * error.median():.0f} %, largest {100 * error.max():.0f} %."
    return Picture(
        name="predicted",
        title="What the plans predicted, and what was measured",
        reading="A mark for each planned cell; on the dashed line the prediction was exact.",
        description=f"Predicted against measured time on logarithmic axes. {caption}",
        caption=caption,
        draw=lambda theme: figures.predicted_against_measured(rows, theme=theme),
        table=Table.of(caption, rows, columns),
        command=sweep_command(rows, [tables.subject(rows)]),
    )
