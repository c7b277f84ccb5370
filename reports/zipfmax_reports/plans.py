"""The planned cutoffs of a run: the cost curve, and what the plans predicted against what was measured."""

from __future__ import annotations

import shlex
from collections import Counter

import pandas as pd

from zipfmax_reference.records.plan import errors
from zipfmax_reports import figures, tables
from zipfmax_reports.elements import Format, Picture, Table, text
from zipfmax_reports.plan_figure import plan_figure, proof_figure
from zipfmax_reports.reproduction import sweep_command
from zipfmax_reports.style import count, factor, seconds
from zipfmax_reports.summary import cells_text


def plan_pictures(plans: pd.DataFrame, table: pd.DataFrame, with_error: bool = True) -> list[Picture]:
    """The figures of a run's plans; `table` is `tables.cells` of the same run.

    The error is left out where the run has it from `zipfmax_bench.plan_error`: a page says one.
    """
    found = [_curve(plans)]
    if with_error and not table.empty and "case" in plans:
        planned = plans.drop_duplicates("case", keep="last").set_index("case")
        rows = table[
            table["ok"] & (table["impl"] == tables.subject(table)) & table["case"].isin(planned.index)
        ]
        if not rows.empty:
            predicted = rows["case"].map(planned["predicted_s"])
            command = sweep_command(rows, [tables.subject(rows)])
            found.append(_predictions(rows.assign(predicted_s=predicted), command))
    return found


def proof_picture(proof: pd.DataFrame) -> Picture:
    """Planned cutoffs beside the best that a brute-force search found, each cell's times over that best."""
    rows = proof.assign(
        over_best=proof["plan_s"] / proof["best_s"],
        literature=proof["literature_s"] / proof["best_s"],
        full=proof["full_s"] / proof["best_s"] if "full_s" in proof else float("nan"),
        labels_name=proof["labels"].map(tables.labels_name),
    )
    columns: dict[str, tuple[str, Format]] = {
        "labels_name": ("labels", text),
        "n_classes": ("classes", count),
        "in_features": ("width", count),
        "batch_size": ("batch", count),
        "plan": ("planned cutoffs", text),
        "plan_s": ("plan", seconds),
        "best": ("best of the search", text),
        "best_s": ("its time", seconds),
        "over_best": ("plan / best", factor),
        "literature": ("literature's / best", factor),
        "full": ("full softmax / best", factor),
    }
    over = rows["over_best"] - 1
    caption = (
        f"{cells_text(len(rows))}. Beside the best of the search the plan takes "
        f"{100 * over.median():+.1f} % in the median, {100 * over.max():+.1f} % at worst."
    )
    return Picture(
        name="proof",
        title="Planned cutoffs against a brute-force search",
        reading="A row for each distribution and shape: how many times the best partition's time the plan, "
        "the literature's cutoffs and full softmax take. Left of 1 the plan beat the search.",
        description=f"Times over the best of the search on a logarithmic axis. {caption}",
        caption=caption,
        figure=proof_figure(rows),
        table=Table.of(caption, rows, columns),
        command="python -m zipfmax_bench.plan_proof",
    )


def error_picture(measured: pd.DataFrame, agreement: pd.DataFrame | None = None) -> Picture:
    """What plans predicted and what was measured, on cells that took no part in the cost model.

    Args:
        measured: a row for each `PlanError`.
        agreement: a row for each `PlanAgreement`, where the run has them.
    """
    rows = measured.assign(
        median_s=measured["measured_s"], labels_name=measured["labels"].map(tables.labels_name)
    )
    machine = measured.iloc[0]["machine"]
    about = (
        f" Cost model {measured.iloc[0]['source']}; measured on {machine.get('hardware', 'a machine unknown')}, "
        f"{machine.get('threads', 'unknown')} threads."
    )
    return _predictions(rows, "python -m zipfmax_bench.plan_error", about + _agreement(agreement))


def _agreement(agreement: pd.DataFrame | None) -> str:
    """How many calibrations plan alike, in a sentence; nothing where that was not counted."""
    if agreement is None or agreement.empty:
        return ""
    agree = [max(Counter(map(tuple, plans)).values()) for plans in agreement["plans"]]
    of = len(agreement.iloc[0]["plans"])
    return (
        f" In each of {cells_text(len(agree))} at least {min(agree)} of {of} calibrations made the same plan."
    )


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
        figure=plan_figure(fields),
        table=Table.of("Every plan of the run", plans, columns),
        command=shlex.join(["zipfmax", "plan", *chosen]),
    )


def _predictions(rows: pd.DataFrame, command: str, about: str = "") -> Picture:
    rows = rows.assign(ratio=rows["predicted_s"] / rows["median_s"])
    median, p90 = errors(list(zip(rows["predicted_s"], rows["median_s"], strict=True)))
    columns: dict[str, tuple[str, Format]] = {
        "task": ("task", text),
        "n_classes": ("classes", count),
        "labels_name": ("labels", text),
        "cutoffs": ("cutoffs", text),
        "predicted_s": ("predicted", seconds),
        "median_s": ("measured", seconds),
        "ratio": ("predicted / measured", factor),
    }
    caption = (
        f"{cells_text(len(rows))}, off by {100 * median:.1f} % in the median and {100 * p90:.1f} % at the 90th "
        f"percentile.{about}"
    )
    return Picture(
        name="predicted",
        title="What the plans predicted, and what was measured",
        reading="A mark for each planned cell; on the dashed line the prediction was exact.",
        description=f"Predicted against measured time on logarithmic axes. {caption}",
        caption=caption,
        figure=figures.predicted_against_measured(rows),
        table=Table.of(caption, rows, columns),
        command=command,
    )
