"""The figures of a study: perplexity against time and steps, and loss by frequency less full softmax's."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from statistics import mean

import pandas as pd

from zipfmax_reference.records.study_readings import Curve, Readings
from zipfmax_reports.figure import Axis, Figure, Marks, Panels, ReferenceLine, Series
from zipfmax_reports.figures import MOST_SERIES

_PANELS = {"seconds": "against seconds of training", "step": "against steps"}
_MOMENTS = {"steps": "at equal steps", "time": "at the end, at equal time"}
_FIRST = 0.08
"""Points earlier than this share of the training are not drawn: perplexity falls from the whole vocabulary."""
_HIGHEST = 4.0
"""Nor are those above so many times the highest perplexity at an end."""


def curve_rows(readings: Readings) -> pd.DataFrame:
    """A row for each layer, panel and step that all of the layer's seeds have a point at."""
    rows = []
    for layer in readings.layers[:MOST_SERIES]:
        curves = list(readings.of_layer(layer).values())
        steps = set.intersection(*({point.step for point in curve.points} for curve in curves))
        for step in sorted(steps):
            points = [next(point for point in curve.points if point.step == step) for curve in curves]
            perplexities = [math.exp(point.valid_loss) for point in points]
            moments = {"seconds": mean(point.seconds for point in points), "step": float(step)}
            for panel, at in moments.items():
                rows.append(
                    {
                        "layer": layer,
                        "panel": panel,
                        "step": step,
                        "at": at,
                        "perplexity": math.exp(mean(point.valid_loss for point in points)),
                        "low": min(perplexities),
                        "high": max(perplexities),
                    }
                )
    return pd.DataFrame(rows)


def curves(rows: pd.DataFrame) -> Figure:
    """Perplexity against seconds and against steps, a line per layer."""
    ends = rows.groupby(["panel", "layer"])["at"].transform("max")
    highest = rows.loc[rows["at"] == ends, "perplexity"].max()
    late = rows[(rows["at"] >= _FIRST * ends) & (rows["perplexity"] <= _HIGHEST * highest)]
    return Figure(
        "Validation perplexity against seconds of training and against steps, a line per output layer.",
        late if len(late) > 2 else rows,
        x=Axis("at", "", "linear", "count"),
        y=Axis("perplexity", "validation perplexity", "log", grid=True),
        marks=(Marks("line", interval=("low", "high"), opacity=0.9),),
        series=Series("layer", tuple(dict.fromkeys(rows["layer"])), "output layer"),
        panels=Panels("panel", _PANELS),
        size=(5.4, 4.2),
    )


def frequency_rows(readings: Readings, base: str) -> pd.DataFrame:
    """A row for each layer, decade and moment: the mean difference in loss, and its interval."""
    if base not in readings.layers:
        return pd.DataFrame()
    bands = next(iter(readings.of_layer(base).values())).bands
    if not bands:
        return pd.DataFrame()
    rows = []
    last = bands[-1].stop
    edges = [0, *(10**power for power in range(1, 12) if 10**power < last), last]
    # Runs of as many steps end together: there is no other moment then.
    alike = len({curve.steps for curve in readings.curves}) == 1
    for moment in ("steps",) if alike else _MOMENTS:
        step = readings.equal_steps if moment == "steps" else None
        for layer in [name for name in readings.layers if name != base][:MOST_SERIES]:
            for start, stop in pairwise(edges):
                difference = readings.difference(layer, base, partial(_loss, start, stop, step))
                if difference is None:
                    continue
                known = math.isfinite(difference.low)
                rows.append(
                    {
                        "panel": _MOMENTS[moment],
                        "layer": layer,
                        "ranks": f"{start:,} to {stop - 1:,}",
                        "tokens": sum(band.tokens for band in bands if start <= band.start < stop),
                        "difference": difference.mean,
                        "low": difference.low if known else math.nan,
                        "high": difference.high if known else math.nan,
                        "words": "" if difference.told_apart or not known else "not told apart",
                    }
                )
    return pd.DataFrame(rows)


def _loss(start: int, stop: int, step: int | None, curve: Curve) -> float | None:
    return curve.band_loss(start, stop, step)


def by_frequency(rows: pd.DataFrame) -> Figure:
    """Differences in loss by decade of rank, a mark per layer, at equal steps and at equal time."""
    ranks = list(dict.fromkeys(rows["ranks"]))
    layers = tuple(dict.fromkeys(rows["layer"]))
    return Figure(
        "Loss less full softmax's by decade of rank, at equal steps and at equal time.",
        rows,
        x=Axis("difference", "loss less full softmax's, nats a token", grid=True),
        y=Axis("ranks", "rank in the training text", "category", ticks={name: name for name in ranks}),
        marks=(Marks("points", interval=("low", "high"), dodge=0.8 / max(len(layers), 1)),),
        series=Series("layer", layers, "output layer"),
        rules=(ReferenceLine("x", 0.0, "as full softmax"),),
        panels=Panels("panel", {name: name for name in dict.fromkeys(rows["panel"])}),
        size=(5.2, 0.9 + 0.75 * len(ranks)),
    )
