"""From a run's records to the tables that the page shows: cells, ratios between implementations, conditions.

A cell whose parity failed keeps its row and its reason and loses every number that could be read as a speed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from zipfmax_reports.runs import Run

BEST_FULL = "full:best"
"""Baseline: the fastest of the full-softmax implementations whose gradients are exact, for the same case."""

CONDITION = [
    "dtype",
    "device",
    "batch_size",
    "in_features",
    "div_value",
    "head_bias",
    "partition",
    "seed",
    "logits",
]
"""What is equal for all cells on one line of a figure; task, vocabulary and labels are axes."""

_MOST_CUTOFFS = 4
"""Partitions of different vocabularies whose cutoffs are listed in a name."""

_SPEED_COLUMNS = (
    *("median_s", "samples_s", "peak_bytes", "efficiency"),
    *("parts_s", "parts_whole_s", "parts_passes", "limit_parts_s"),
)


def cells(run: Run) -> pd.DataFrame:
    """The timing records with every column that figures need; `ok` marks those that may show a speed.

    Adds `labels_name`, `skew` (NaN for real frequencies), `efficiency` (limit_s / median_s), `partition`
    (the cutoffs of a cell and of those that go with it in other vocabularies), `logits` (their standard deviation, in
    words) and `exact` (whether the implementation's gradients are).
    """
    table = run.timings.copy()
    if table.empty:
        return table
    numbers = [
        *("n_classes", "median_s", "peak_bytes", "flops", "limit_s", "batch_size", "in_features"),
        *("parts_whole_s", "parts_passes"),
    ]
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce")
    failed = failed_parity(run.parity)
    # A cell that was not timed anyway keeps its own status and reason.
    wrong = pd.MultiIndex.from_frame(table[["case", "impl"]]).isin(failed) & (table["status"] == "ok")
    if wrong.any():
        table.loc[wrong, "reason"] = "parity.jsonl holds a failed comparison of this cell"
        table.loc[wrong, "status"] = "parity_failed"
    table["replayed"] = pd.to_numeric(table["replayed"], errors="coerce").gt(0)
    table["ok"] = (table["status"] == "ok") & table["median_s"].gt(0)
    table["efficiency"] = table["limit_s"] / table["median_s"]
    for column in _SPEED_COLUMNS:
        table[column] = table[column].where(table["ok"])
    for column in [name for name in map(str, table) if name.startswith("speedup_vs_")]:
        table[column] = table[column].where(table["ok"] & table["exact"])
    table["skew"] = table["labels"].map(skew)
    table["labels_name"] = table["labels"].map(labels_name)
    table["partition"] = _partition(table)
    table["logits"] = pd.to_numeric(table["logit_std"], errors="coerce").map(_spread)
    return table


def _spread(logit_std: float) -> str:
    return "about 2" if math.isnan(logit_std) else f"{logit_std:g}"


def failed_parity(parity: pd.DataFrame, against: str = "every") -> pd.MultiIndex:
    """The (case, implementation) pairs with a tensor that failed.

    Args:
        parity: the comparisons.
        against: "every" counts a tensor that failed against all the references that it was compared with, as
            `zipfmax sweep` does before it times a cell; "any" counts each failure.
    """
    if parity.empty:
        return pd.MultiIndex.from_arrays([[], []], names=["case", "impl"])
    compared = parity[parity["status"].isin(["pass", "fail"])]
    tensors = (compared["status"] == "fail").groupby([compared[key] for key in ("case", "impl", "tensor")])
    failed = tensors.all() if against == "every" else tensors.any()
    return pd.MultiIndex.from_frame(failed[failed].index.to_frame()[["case", "impl"]].drop_duplicates())


def skew(labels: str) -> float:
    """Zipf's exponent of a label distribution: 0 for uniform labels, NaN for real frequencies."""
    if labels == "uniform":
        return 0.0
    if labels.startswith("zipf:"):
        return float(pd.to_numeric(labels.removeprefix("zipf:"), errors="coerce"))
    return float("nan")


def labels_name(labels: str) -> str:
    """A label distribution in words."""
    if labels == "uniform":
        return "uniform"
    kind, _, rest = labels.partition(":")
    names = {
        "zipf": f"Zipf {rest}",
        "wordfreq": f"words, {rest}",
        "counts": f"counts, {rest.rsplit('/')[-1]}",
    }
    return names.get(kind, labels)


def label_order(table: pd.DataFrame) -> list[str]:
    """The names of the label distributions: by skew, then the real ones by name."""
    distinct = table[["labels_name", "skew"]].drop_duplicates()
    return list(distinct.sort_values(["skew", "labels_name"], na_position="last")["labels_name"])


def drawable(rows: pd.DataFrame, sizes: int = 7, labels: int = 7) -> pd.DataFrame:
    """The rows of at most so many vocabularies and label distributions: both ends, and evenly between them.

    More lines than that no reader tells apart, and no static figure needs.
    """
    kept_sizes = evenly(sorted(rows["n_classes"].unique()), sizes)
    kept_labels = evenly(label_order(rows), labels)
    return rows[rows["n_classes"].isin(kept_sizes) & rows["labels_name"].isin(kept_labels)]


def left_out(rows: pd.DataFrame, drawn: pd.DataFrame) -> str:
    """A sentence on what `drawable` left out, with a space before it; empty where that is nothing."""
    parts = [
        f"{drawn[column].nunique()} of {rows[column].nunique()} {words}"
        for column, words in (("n_classes", "vocabularies"), ("labels_name", "label distributions"))
        if drawn[column].nunique() < rows[column].nunique()
    ]
    return f" Drawn: {' and '.join(parts)}, evenly chosen." if parts else ""


def evenly(values: Sequence[Any], most: int) -> list[Any]:
    """At most `most` (two or more) of the values, evenly through their order, with both ends."""
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]


def subject(table: pd.DataFrame) -> str:
    """The implementation that the page is about: zipfmax, else one of its backends, else the first other."""
    names = list(dict.fromkeys(table["impl"]))
    own = [name for name in names if name == "zipfmax"] or [
        name for name in names if name.startswith("zipfmax")
    ]
    others = [name for name in names if not _is_baseline(name)]
    return str((own or others or names)[0])


def baselines(table: pd.DataFrame) -> list[str]:
    """What an implementation is compared with, full softmax first."""
    names = list(dict.fromkeys(table["impl"]))
    full = [name for name in names if name == "full"]
    exact = table.loc[is_baseline(table, BEST_FULL), "impl"].nunique()
    best = [BEST_FULL] if exact > 1 else []
    rest = [name for name in ("torch", "paddle", "tensorflow") if name in names]
    return full + best + rest


def ratios(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The shown cells with `speedup`, `low` and `high` over `baseline`: how many times less time each takes.

    The measured paired ratio and its interval are taken where the record holds them; otherwise the ratio of
    the medians, with no interval. Cells whose baseline has no time have no row, nor have those of an
    implementation whose gradients are inexact.
    """
    base = table[table["ok"] & is_baseline(table, baseline)]
    fastest = base.loc[base.groupby("case")["median_s"].idxmin(), ["case", "median_s", "impl"]]
    fastest = fastest.rename(columns={"median_s": "baseline_s", "impl": "fastest"})
    others = table["exact"] & ~is_baseline(table, baseline)
    rows = table[table["ok"] & others].merge(fastest, on="case")
    for column, suffix in (("speedup", ""), ("low", "_low"), ("high", "_high")):
        rows[column] = float("nan")
        for name in fastest["fastest"].unique():
            measured = _column(rows, f"speedup_vs_{name}{suffix}")
            rows[column] = rows[column].where(rows["fastest"] != name, measured)
    rows["speedup"] = rows["speedup"].fillna(rows["baseline_s"] / rows["median_s"])
    return rows.drop(columns="fastest").assign(baseline=baseline)


def all_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """`ratios` over every baseline, below each other."""
    return pd.concat(
        [ratios(table, baseline) for baseline in baselines(table)] or [table.iloc[:0]], ignore_index=True
    )


def main_condition(table: pd.DataFrame) -> pd.Series:
    """The condition with the most shown cells of the subject; equal ones as `pandas` meets them first."""
    rows = table[table["ok"] & (table["impl"] == subject(table))]
    rows = rows if not rows.empty else table
    sizes = rows.groupby(CONDITION, dropna=False, sort=False).size()
    best = sizes.sort_values(ascending=False, kind="stable").index[0]
    return pd.Series(best, index=CONDITION)


def under(table: pd.DataFrame, condition: pd.Series) -> pd.DataFrame:
    """The rows of `table` that were measured under `condition`."""
    keep = pd.Series(True, index=table.index)
    for name, value in condition.items():
        keep &= table[str(name)].isna() if pd.isna(value) else table[str(name)] == value
    return table[keep]


def tasks(table: pd.DataFrame) -> list[str]:
    """The tasks that were timed, training first."""
    order = ("train", "forward", "log_prob", "predict", "topk")
    known = [task for task in order if task in set(table["task"])]
    return known + sorted(set(table["task"]) - set(order))


def parity_by_implementation(parity: pd.DataFrame) -> pd.DataFrame:
    """A row per implementation, reference and dtype: comparisons passed, failed, skipped, and the worst.

    `worst` is the largest error in units of its budget, `worst_tensor` and `worst_case` where it occurred.
    """
    if parity.empty:
        return pd.DataFrame()
    rows = with_used_budget(parity)
    keys = ["impl", "against", "dtype"]
    counts = (
        rows.pivot_table(
            index=keys, columns="status", values="case", aggfunc="count", fill_value=0, sort=False
        )
        .reindex(columns=["pass", "fail", "skipped"], fill_value=0)
        .reset_index()
    )
    cells_run = rows.groupby(keys, sort=False)["case"].nunique().rename("cells").reset_index()
    finite = rows[rows["used"].notna()]
    worst = finite.loc[finite.groupby(keys, sort=False)["used"].idxmax(), [*keys, "used", "tensor", "case"]]
    worst = worst.rename(columns={"used": "worst", "tensor": "worst_tensor", "case": "worst_case"})
    return counts.merge(cells_run, on=keys).merge(worst, on=keys, how="left")


def with_used_budget(parity: pd.DataFrame) -> pd.DataFrame:
    """The comparisons with `used`, the error in units of its budget (above 1 is a failure), and a dtype."""
    rows = parity.copy()
    for column in ("error", "budget", "reference_error"):
        rows[column] = pd.to_numeric(rows[column], errors="coerce")
    used = rows["error"] / rows["budget"]
    rows["used"] = used.where(rows["budget"] > 0, other=rows["error"].where(rows["error"] == 0))
    return rows


def binned(rows: pd.DataFrame, per_decade: int = 20) -> pd.DataFrame:
    """Comparisons with nearly equal `used` taken together, so that any number of them is a small picture.

    A row per implementation, reference, dtype, tensor, status and bin of log10(used); `used` is the largest
    of the bin, `comparisons` their number and `case` where the largest occurred.
    """
    rows = rows[rows["used"].notna()]
    logs = rows["used"].clip(lower=1e-12).map(math.log10)
    keys = ["impl", "against", "dtype", "tensor", "status"]
    groups = rows.assign(bin=(logs * per_decade).round()).groupby([*keys, "bin"], sort=False)
    largest = rows.loc[groups["used"].idxmax(), [*keys, "used", "case"]]
    return largest.assign(comparisons=groups.size().to_numpy()).reset_index(drop=True)


def places(rows: pd.DataFrame) -> dict[str, float]:
    """Where each label distribution stands on a skew axis: its exponent, or a place of its own beyond."""
    distinct = rows[["labels_name", "skew"]].drop_duplicates("labels_name").set_index("labels_name")["skew"]
    last = distinct.max() if distinct.notna().any() else 0.0
    real = sorted(distinct.index[distinct.isna()])
    return {**distinct.dropna().to_dict(), **{name: last + 0.45 * (i + 1) for i, name in enumerate(real)}}


def cutoffs_text(cutoffs: object) -> str:
    """Cutoffs in short, as the first class of each tail: 20k/60k."""
    return "/".join(_short(int(cutoff)) for cutoff in cutoffs) if isinstance(cutoffs, Sequence) else ""


def _partition(table: pd.DataFrame) -> pd.Series:
    """The first cutoffs of each vocabulary belong together, so do the second, and so on."""
    text = table["cutoffs"].map(cutoffs_text)
    number = text.groupby(table["n_classes"]).transform(lambda group: pd.factorize(group)[0])
    names = {}
    for position, rows in table.assign(text=text).groupby(number):
        listed = list(dict.fromkeys(rows.sort_values("n_classes", kind="stable")["text"]))
        cut = [listed[0], "…", listed[-1]] if len(listed) > _MOST_CUTOFFS else listed
        names[position] = ", ".join(cut)
    if len(set(names.values())) < len(names):  # two groups of which the ends are equal
        names = {position: f"{name} ({position + 1})" for position, name in names.items()}
    return number.map(names)


def _short(number: int) -> str:
    for scale, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= scale and number % (scale // 100) == 0:
            return f"{number / scale:g}{unit}"
    return str(number)


def _column(rows: pd.DataFrame, name: str) -> pd.Series:
    if name not in rows:
        return pd.Series(float("nan"), index=rows.index)
    return pd.to_numeric(rows[name], errors="coerce")


def is_baseline(table: pd.DataFrame, baseline: str) -> pd.Series:
    """Which of the cells stand for a baseline."""
    if baseline == BEST_FULL:
        return table["impl"].str.startswith("full") & table["exact"]
    return table["impl"] == baseline


def _is_baseline(name: str) -> bool:
    return name.startswith(("full", "sampled")) or name in ("torch", "paddle", "tensorflow", "definition")


def ratios_of_runs(
    timed: Sequence[tuple[str, pd.DataFrame]], baseline: str, name: str, condition: pd.Series
) -> pd.DataFrame:
    """`ratios` of one implementation under a condition, of several runs together, with each run's name in `run`.

    Args:
        timed: name and `cells` of every run.
    """
    parts = []
    for run, table in timed:
        rows = under(ratios(table, baseline), condition)
        parts.append(rows[rows["impl"] == name].assign(run=run))
    return pd.concat(parts, ignore_index=True)
