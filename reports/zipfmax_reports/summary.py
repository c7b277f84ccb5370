"""The answers of the first screen, as sentences with their numbers: is it right, is it worth it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from zipfmax_reference.records.study_readings import Interval, as_ratio
from zipfmax_reports import tables
from zipfmax_reports.runs import Run
from zipfmax_reports.study import FULL, RecordedStudy
from zipfmax_reports.style import count, factor, percent, seconds, size

NAMES = {
    "full": "full softmax",
    tables.BEST_FULL: "the best full softmax",
    "torch": "torch.nn's adaptive softmax",
    "paddle": "Paddle's adaptive softmax",
    "tensorflow": "the TensorFlow layer",
    "definition": "the float64 definition",
}
TASK_WORDS = {
    "train": "a training step",
    "forward": "a forward pass",
    "log_prob": "all log-probabilities",
    "predict": "a prediction",
    "topk": "the ten most probable classes",
}


STATUS_WORDS = {
    "ok": "measured",
    "skipped": "cannot do it",
    "failed": "failed",
    "out_of_memory": "out of memory",
    "over_budget": "over budget",
    "parity_failed": "wrong result",
    "implausible": "implausibly fast",
}
"""What became of a cell."""


@dataclass(frozen=True)
class Statement:
    """One answer.

    Attributes:
        question: what a reader asks.
        figure: the number or word to show large.
        text: the sentence that answers it.
        detail: where it holds least and most, and how sure it is.
        mood: "good", "bad", "mixed" or "unknown"; the page adds a word and a sign to its colour.
        link: the id of the section that it comes from.
    """

    question: str
    figure: str
    text: str
    detail: str
    mood: str
    link: str


def statements(run: Run, table: pd.DataFrame) -> list[Statement]:
    """What the first screen says of a run; `table` is `tables.cells(run)`."""
    found = [_parity(run, table)]
    if not table.empty:
        condition = tables.main_condition(table)
        rows = tables.under(table, condition)
        name = tables.subject(table)
        found += [
            _speed(rows, name, baseline)
            for baseline in tables.baselines(table)
            if baseline in ("full", tables.BEST_FULL, "torch")
        ]
        found += _memory(rows, name)
    if run.study is not None:
        found += _quality(run.study)
    return found


_QUESTIONED = {"torch": "torch.nn"}
"""Names of baselines in a question, where they are not `NAMES`."""

HEADLINES = 3
"""Answers that stand beside the figure of the first screen."""


def by_weight(found: list[Statement]) -> list[Statement]:
    """The statements, those of the first screen first: is it right, is it worth it, and one more.

    The third is what it costs in quality where that was measured, else whether it is faster than torch.nn.
    """
    first, others = found[: HEADLINES - 1], found[HEADLINES - 1 :]
    chosen = [one for one in others if one.link == "quality"] or [
        one for one in others if one.question == f"Is it faster than {_QUESTIONED['torch']}?"
    ]
    return [*first, *chosen, *(one for one in others if one not in chosen)]


def name_of(implementation: str) -> str:
    """An implementation's name as it stands in a sentence."""
    return NAMES.get(implementation, implementation)


def condition_text(condition: pd.Series) -> str:
    """A condition in words, without what is usual (no head bias, div_value 4, logits of about 2, ...)."""
    parts = [
        str(condition["dtype"]),
        str(condition["device"]),
        f"batch {count(condition['batch_size'])}",
        f"width {count(condition['in_features'])}",
    ]
    if condition["div_value"] != 4:
        parts.append(f"div_value {condition['div_value']:g}")
    if condition["head_bias"]:
        parts.append("head bias")
    if condition["logits"] != "about 2":
        parts.append(f"logits of standard deviation {condition['logits']}")
    if condition["partition"]:
        parts.append(f"cutoffs {condition['partition']}")
    return ", ".join(parts)


def _parity(run: Run, table: pd.DataFrame) -> Statement:
    question = "Is it right?"
    parity = run.parity
    known = parity if not parity.empty else table
    name = "" if known.empty else tables.subject(known)
    wrong = pd.Series(dtype=str)
    if not table.empty:
        # Another implementation's failure is shown with its cells; it is not a finding about this one.
        wrong = table.loc[(table["status"] == "parity_failed") & (table["impl"] == name), "case"]
    if parity.empty:
        if not wrong.empty:
            text = f"{cells_text(len(wrong))} failed the parity check before they were timed."
            return Statement(question, "No", text, "No speed is shown for them.", "bad", "parity")
        text = "This run holds no comparison with a reference."
        return Statement(question, "Unchecked", text, "zipfmax verify makes one.", "unknown", "parity")
    rows = tables.with_used_budget(parity)
    rows = rows[rows["impl"] == name]
    checked = rows[rows["status"] != "skipped"]
    if checked.empty:
        text = f"Every comparison of {name} was skipped."
        return Statement(question, "Unchecked", text, "The reasons are under parity.", "unknown", "parity")
    peers = _listed([name_of(against) for against in dict.fromkeys(checked["against"])])
    cells = checked["case"].nunique()
    wrong_here = tables.failed_parity(checked).get_level_values("case")
    bad = len({*wrong_here, *wrong})
    worst = _worst(checked)
    if bad:
        text = (
            f"{name} exceeds its error budget in {count(bad)} of {cells_text(cells)} compared with {peers}."
        )
        return Statement(
            question, "No", text, f"{worst} No speed is shown where parity failed.", "bad", "parity"
        )
    detail = f"{count(len(checked))} tensors compared, values and gradients. {worst}{_mutants(run)}"
    disputed = len(tables.failed_parity(checked, "any"))
    if disputed:
        text = (
            f"{name} agrees with {peers} in {count(cells - disputed)} of {cells_text(cells)}; in the other "
            f"{count(disputed)} with one of them and not with another."
        )
        figure = f"{count(cells - disputed)} of {count(cells)}"
        return Statement(question, figure, text, detail, "mixed", "parity")
    text = f"{name} agrees with {peers} in all {cells_text(cells)}."
    return Statement(question, "Yes", text, detail, "good", "parity")


def _worst(checked: pd.DataFrame) -> str:
    if checked["used"].isna().all():
        return ""
    worst = checked.nlargest(1, "used").iloc[0]
    return f"The worst error is {percent(worst['used'])} of its budget ({worst['tensor']}, {worst['dtype']})."


def _mutants(run: Run) -> str:
    mutants = run.extras.get("mutants")
    if mutants is None or "caught" not in mutants:
        return ""
    faults = mutants[mutants["mutant"] != "control"] if "mutant" in mutants else mutants
    return f" {count(faults['caught'].sum())} of {count(len(faults))} planted faults were caught."


def _speed(table: pd.DataFrame, name: str, baseline: str) -> Statement:
    rows = tables.ratios(table, baseline)
    other = name_of(baseline)
    question = f"Is it faster than {_QUESTIONED.get(baseline, other)}?"
    rows = rows[rows["impl"] == name]
    if rows.empty:
        text = f"No cell of {name} has a time beside {other}."
        return Statement(
            question, "Unknown", text, "The reasons are under cells without a time.", "unknown", "missing"
        )
    task = tables.tasks(rows)[0]
    rows = rows[rows["task"] == task]
    middle = float(rows["speedup"].median())
    worst, best = rows.nsmallest(1, "speedup").iloc[0], rows.nlargest(1, "speedup").iloc[0]
    task_words = TASK_WORDS.get(task, task).capitalize()
    slower = ", so slower" if middle < 1 else ""
    median = f"the median of {cells_text(len(rows))}"
    text = f"{task_words} is {factor(middle)} as fast as with {other}{slower}: {median}."
    detail = f"From {_where(worst)} to {_where(best)}. {_resolved(rows)}"
    detail += _alone(table[table["task"] == task], name, baseline)
    sure = rows["low"].notna().all() and rows["low"].min() > 1  # a ratio without an interval shows nothing
    mood = "good" if sure else "bad" if middle < 1 else "mixed"
    return Statement(question, factor(middle), text, detail, mood, "speed")


def _alone(table: pd.DataFrame, name: str, baseline: str) -> str:
    """The cells in which the baseline has no time to compare with, and what became of it there."""
    others = table[tables.is_baseline(table, baseline)]
    own = table.loc[table["ok"] & (table["impl"] == name), "case"]
    alone = own[~own.isin(others.loc[others["ok"], "case"])]
    fates = others.loc[others["case"].isin(alone), "status"].map(STATUS_WORDS).dropna().unique()
    if alone.empty or not len(fates):
        return ""
    return f" In {cells_text(len(alone))} more {name_of(baseline)} has no time: {_listed(list(fates))}."


def _where(row: pd.Series) -> str:
    interval = f" [{factor(row['low'])}, {factor(row['high'])}]" if pd.notna(row["low"]) else ""
    return f"{factor(row['speedup'])}{interval} ({count(row['n_classes'])} classes, {row['labels_name']})"


def _resolved(rows: pd.DataFrame) -> str:
    if rows["low"].isna().all():
        return "No intervals were recorded."
    faster, slower = int((rows["low"] > 1).sum()), int((rows["high"] < 1).sum())
    unknown = int(rows["low"].isna().sum())
    rest = len(rows) - faster - slower - unknown
    unresolved = f", not told apart in {rest}" if rest else ""
    without = f"; no interval in {unknown}" if unknown else ""
    return f"By 95 % intervals: faster in {faster}, slower in {slower}{unresolved}{without}."


def _memory(rows: pd.DataFrame, name: str) -> list[Statement]:
    task = tables.tasks(rows)[0]
    shown = rows[rows["ok"] & (rows["task"] == task)]
    own = shown[shown["impl"] == name].set_index("case")["peak_bytes"].dropna()
    shares = {}
    for baseline in ("torch", "full"):
        other = shown[shown["impl"] == baseline].groupby("case")["peak_bytes"].min()
        share = (own / other.reindex(own.index)).dropna()
        if not share.empty:
            shares[baseline] = float(share.median())
    if not shares:
        return []
    parts = [f"{percent(share)} of what {name_of(baseline)} needs" for baseline, share in shares.items()]
    text = f"For {TASK_WORDS.get(task, task)}, {' and '.join(parts)}."
    detail = f"Peak temporary memory, median of {cells_text(len(own))}; at most {size(own.max())}."
    mood = "good" if max(shares.values()) < 1 else "mixed"
    return [Statement("How much memory?", percent(next(iter(shares.values()))), text, detail, mood, "why")]


def cells_text(number: int) -> str:
    """A number of cells in words."""
    return "1 cell" if number == 1 else f"{count(number)} cells"


def _quality(study: RecordedStudy) -> list[Statement]:
    """What the main layer's perplexity is beside full softmax's; nothing where either was not trained."""
    readings, layer = study.readings, study.main
    if layer is None or FULL not in readings.layers:
        return []
    time = readings.difference(layer, FULL, readings.at_equal_time)
    steps = readings.difference(layer, FULL, readings.at_equal_steps)
    if time is None:
        return []
    after = f"After {seconds(readings.equal_seconds)} of training"
    text = f"{after}, {layer}'s perplexity is {change(time)} full softmax's."
    detail = (
        ""
        if steps is None
        else f"After {count(readings.equal_steps)} steps it is {change(steps)} full softmax's."
    )
    better, worse = time.told_apart and time.mean < 0, time.told_apart and time.mean > 0
    costs = steps is None or not (steps.told_apart and steps.mean < 0)
    mood = "bad" if worse else "mixed" if costs or not better else "good"
    figure = f"{100 * as_ratio(time.mean):+.1f} %"
    return [Statement("What does it cost in quality?", figure, text, detail, mood, "quality")]


def change(difference: Interval) -> str:
    """A difference in loss as a change of perplexity, in words: "3.1 % [2.0, 4.2] above"."""
    ratio = difference.mapped(as_ratio)
    size = f"{100 * abs(ratio.mean):.1f} %"
    where = "above" if ratio.mean > 0 else "below"
    if difference.n == 1:
        return f"{size} {where}"
    interval = f"[{100 * ratio.low:+.1f}, {100 * ratio.high:+.1f}]"
    if not difference.told_apart:
        return f"not told apart from ({100 * ratio.mean:+.1f} % {interval})"
    return f"{size} {interval} {where}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
