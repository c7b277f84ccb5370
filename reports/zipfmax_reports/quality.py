"""What does it cost in quality? A study's curves, losses by frequency and map, and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd

from zipfmax_reference.records.study_readings import Curve, Interval, Readings, as_ratio
from zipfmax_reports import quality_figures
from zipfmax_reports.elements import Details, Picture, Section, Table, text
from zipfmax_reports.quality_map import map_picture
from zipfmax_reports.study import FULL, RecordedStudy
from zipfmax_reports.style import count, factor, percent, scientific, seconds, size
from zipfmax_reports.summary import change

GIVEN_UP = (0.0, 0.01, 0.02, 0.05)
"""Shares of full softmax's final perplexity that are given up in the times to reach it."""


def quality(study: RecordedStudy) -> Section:
    """The section of the page."""
    section = Section(" ".join(verdict(study)))
    readings = study.readings
    if readings.curves:
        section.tables.append(_layers_table(study))
        section.tables.append(_times_table(study))
        section.figures.append(_curves(study))
        if (by_frequency := _by_frequency(study)) is not None:
            section.figures.append(by_frequency)
        section.details.append(Details("Error of the gradient in place, by frequency", _gradients(study)))
        section.details.append(Details("The text, and what computes each layer", _facts(study)))
    if (found := map_picture(study.cells, study.trunks, list(study.layers.values()))) is not None:
        section.figures.append(found)
    return section


def verdict(study: RecordedStudy) -> list[str]:
    """What a practitioner can act on, in sentences."""
    readings, layer = study.readings, study.main
    if layer is None or FULL not in readings.layers:
        return ["This study holds no pair of full softmax and zipfmax to judge."] if readings.curves else []
    time = readings.difference(layer, FULL, readings.at_equal_time)
    steps = readings.difference(layer, FULL, readings.at_equal_steps)
    found = []
    if time is not None:
        found.append(
            f"After {seconds(readings.equal_seconds)} of training, {layer}'s perplexity is "
            f"{change(time)} full softmax's."
        )
    if steps is not None:
        found.append(
            f"After the same {count(readings.equal_steps)} steps it is {change(steps)} full softmax's."
        )
    if (faster := study.whole_step(layer)) is not None:
        own, full = study.layers[layer], study.layers[FULL]
        found.append(
            f"A whole step takes {seconds(own.step_s)} instead of {seconds(full.step_s)} ({factor(faster)} as "
            f"fast); the output layer is {percent(full.output_share)} of full softmax's step and "
            f"{percent(own.output_share)} of {layer}'s."
        )
    reached = times_to_reach(study, layer)[0]
    own_s, full_s = reached
    if own_s is not None and full_s is not None:
        found.append(
            f"It reaches the perplexity that full softmax ends with after {seconds(own_s)}, full softmax "
            f"after {seconds(full_s)}."
        )
    else:
        found.append("Within this training it does not reach the perplexity that full softmax ends with.")
    return [*found, *_advice(layer, time, steps)]


def _advice(layer: str, time: Interval | None, steps: Interval | None) -> list[str]:
    found = []
    if time is not None and time.n > 1:
        if not time.told_apart:
            found.append("For a fixed time of training these seeds tell no difference.")
        elif time.mean < 0:
            found.append(
                f"For a fixed time of training, {layer} is the better choice on this text and hardware."
            )
        else:
            found.append("For a fixed time of training, full softmax is the better choice here.")
    if steps is not None and steps.n > 1:
        if not steps.told_apart:
            found.append("For a fixed amount of text these seeds tell no difference.")
        elif steps.mean < 0:
            found.append(f"For a fixed amount of text {layer} is ahead too, at this length of training.")
        else:
            found.append("Where text and not time is scarce, full softmax is the better choice.")
    if min(interval.n for interval in (time, steps) if interval is not None) == 1:
        found.append("One seed has no interval: train more (--seeds 0,1,2 --resume).")
    return found


def times_to_reach(study: RecordedStudy, layer: str) -> list[tuple[float | None, float | None]]:
    """For each of `GIVEN_UP`: seconds of a layer and of full softmax to full softmax's final perplexity and so much.

    Means over the seeds that both have; None where a seed of the layer does not reach it.
    """
    own, full = study.readings.of_layer(layer), study.readings.of_layer(FULL)
    found = []
    for share in GIVEN_UP:
        goals = {seed: curve.points[-1].valid_loss + math.log1p(share) for seed, curve in full.items()}
        common = [seed for seed in own if seed in goals]
        pair = []
        for curves in (own, full):
            times = [curves[seed].seconds_to(goals[seed]) for seed in common]
            kept = [time for time in times if time is not None]
            pair.append(sum(kept) / len(kept) if kept and len(kept) == len(times) else None)
        found.append((pair[0], pair[1]))
    return found


def _layers_table(study: RecordedStudy) -> Table:
    readings = study.readings
    rows = []
    for layer in readings.layers:
        own = study.layers.get(layer)
        loss = readings.over_seeds(layer, readings.at_equal_time)
        perplexity = None if loss is None else loss.mapped(math.exp)  # whose interval stays above 0
        runs = [run for run in study.runs if run.layer == layer and run.status == "ok"]
        peaks = [run.peak_bytes for run in runs if run.peak_bytes]
        rows.append(
            {
                "layer": layer,
                "perplexity": "" if perplexity is None else _with_interval(perplexity),
                "time": _against_full(readings, layer, readings.at_equal_time),
                "steps": _against_full(readings, layer, readings.at_equal_steps),
                "step_s": own and own.step_s,
                "share": own and own.output_share,
                "faster": study.whole_step(layer),
                "parameters": own and own.parameters,
                "memory": max(peaks) if peaks else own and own.temporary_bytes,
                "seeds": len(readings.of_layer(layer)),
            }
        )
    columns = {
        "layer": ("output layer", text),
        "perplexity": (f"perplexity after {seconds(readings.equal_seconds)}", text),
        "time": ("less full softmax's, equal time", text),
        "steps": (f"after {count(readings.equal_steps)} steps", text),
        "step_s": ("whole step", seconds),
        "share": ("output layer's share", percent),
        "faster": ("whole step, over full", factor),
        "parameters": ("weights", count),
        "memory": ("memory", size),
        "seeds": ("seeds", count),
    }
    caption = (
        "Validation perplexity with 95 % intervals over seeds. A difference within its interval is not told "
        "apart. Memory is the peak of a training step on a GPU, its temporary part on a CPU."
    )
    return Table.of(caption, pd.DataFrame(rows), columns)


def _times_table(study: RecordedStudy) -> Table:
    rows = []
    for layer in study.readings.layers:
        times = times_to_reach(study, layer)
        cells = [
            f"{seconds(own)} ({factor(full / own)})" if own and full else "not reached" for own, full in times
        ]
        rows.append((layer, *cells))
    headings = ["as low" if not share else f"within {share:.0%}" for share in GIVEN_UP]
    return Table(
        "Time until the perplexity that full softmax ends with, and how many times sooner than full softmax",
        ("output layer", *headings),
        rows,
    )


def _with_interval(value: Interval) -> str:
    if value.n == 1:
        return f"{value.mean:.2f}"
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _against_full(readings: Readings, layer: str, loss: Callable[[Curve], float | None]) -> str:
    difference = readings.difference(layer, FULL, loss) if layer != FULL else None
    if difference is None:
        return ""
    ratio = difference.mapped(as_ratio)
    if difference.n == 1:
        return f"{100 * ratio.mean:+.1f} %"
    apart = "" if difference.told_apart else ", not told apart"
    return f"{100 * ratio.mean:+.1f} % [{100 * ratio.low:+.1f}, {100 * ratio.high:+.1f}]{apart}"


def _curves(study: RecordedStudy) -> Picture:
    rows = quality_figures.curve_rows(study.readings)
    shown = [layer for layer in study.readings.layers if layer in set(rows["layer"])]
    where = _where(study)
    columns = {
        "layer": ("output layer", text),
        "step": ("steps", count),
        "seconds": ("seconds", text),
        "perplexity": ("perplexity", text),
        "low": ("least seed", text),
        "high": ("greatest seed", text),
    }
    table = rows[rows["panel"] == "seconds"].assign(
        seconds=lambda frame: frame["at"].map("{:.1f}".format),
        **{name: rows[name].map("{:.2f}".format) for name in ("perplexity", "low", "high")},
    )
    return Picture(
        name="quality-curves",
        title="Perplexity against time, and against steps",
        reading="The same trunk, batches and optimizer under each output layer. Bars span the seeds. Time of "
        "evaluation and compiling does not count.",
        description=f"Falling curves of validation perplexity, one for each of {len(shown)} output layers.",
        caption=where,
        figure=quality_figures.curves(rows),
        table=Table.of(where, table, columns),
        command=study.command,
    )


def _by_frequency(study: RecordedStudy) -> Picture | None:
    rows = quality_figures.frequency_rows(study.readings, FULL)
    if rows.empty:
        return None
    columns = {
        "panel": ("", text),
        "layer": ("output layer", text),
        "ranks": ("ranks", text),
        "tokens": ("tokens", count),
        "difference": ("less full, nats", _signed),
        "low": ("95 % from", _signed),
        "high": ("to", _signed),
        "words": ("", text),
    }
    return Picture(
        name="quality-frequency",
        title="Loss by frequency, less full softmax's",
        reading="A column for each decade of rank in the training text. Above 0 the layer predicts these tokens "
        "worse than full softmax. Bars are 95 % intervals over seeds.",
        description="Differences in validation loss against full softmax by decade of rank.",
        caption=f"{_where(study)} Decades of training frequency; losses in nats a token.",
        figure=quality_figures.by_frequency(rows),
        table=Table.of("Loss less full softmax's, by decade", rows, columns),
        command=study.command,
    )


def _gradients(study: RecordedStudy) -> Table:
    rows = []
    for run in study.runs:
        if run.status == "ok" and run.seed == min(one.seed for one in study.runs):
            layer = study.layers.get(run.layer)
            rows += [
                {
                    "layer": run.layer,
                    "exact": "exact" if layer is None or layer.exact else "inexact",
                    "ranks": f"{band.start:,} to {band.stop - 1:,}",
                    "error": band.gradient_error,
                }
                for band in run.bands
            ]
    columns = {
        "layer": ("output layer", text),
        "exact": ("its gradients", text),
        "ranks": ("ranks", text),
        "error": ("relative error", scientific),
    }
    caption = (
        "Relative error, in norm, of the gradient of the classes' own weights on a batch of validation text at the "
        "end of training, against the same function in wider arithmetic. Sampled softmax: against full softmax"
    )
    return Table.of(caption, pd.DataFrame(rows, columns=[*columns]).astype({"error": float}), columns)


def _facts(study: RecordedStudy) -> Table:
    rows: list[tuple[str, ...]] = []
    if study.text is not None:
        rows += [(name, str(value)) for name, value in study.text]
    for layer in study.layers.values():
        tails = ", ".join(map(str, layer.cutoffs))
        widths = ", ".join(map(str, layer.projection_sizes))
        shape = f"; cutoffs {tails}; widths of the tails {widths}" if layer.cutoffs else ""
        rows.append((layer.layer, (layer.reason or layer.computes) + shape))
    return Table("The text, and what computes each layer", ("", ""), rows)


def _where(study: RecordedStudy) -> str:
    layer = next(iter(study.layers.values()), None)
    parts = [] if study.text is None else [f"{study.text.tokens}, {count(study.text.n_classes)} words"]
    if layer is not None:
        parts.append(
            f"{layer.trunk}, N {count(layer.rows)}, {layer.inputs} inputs, {layer.dtype}, {layer.device}"
        )
    return f"{'; '.join(parts)}."


def _signed(value: float) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:+.3f}"
