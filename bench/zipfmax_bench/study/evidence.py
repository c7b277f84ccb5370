"""What a study tells the planner: `python -m zipfmax_bench.study.evidence RUN [--margin 0.02]`.

Layouts are compared, after the same steps, with the widest one of the same cutoffs: `zipfmax:cutoffs=fine,least=16`
with `zipfmax:cutoffs=fine,div=1`. The default least projection is the least width from which on no layout that was
studied costs more perplexity than the margin, in the mean over seeds. The result is printed, or with --write
becomes what `zipfmax plan` goes by.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zipfmax import quality
from zipfmax.errors import UsageError
from zipfmax_reference.records import RunDirectory, StudyLayer, StudyPoint, StudyRun, StudyText
from zipfmax_reference.records.study_readings import Readings, as_ratio

MARGIN = 0.02


def evidence(directory: RunDirectory) -> dict[str, Any]:
    """One study as `zipfmax.quality.Evidence` holds it.

    Raises:
        UsageError: no layer has a widest one to be compared with, by three seeds.
    """
    readings = Readings.of(directory.read(StudyPoint), directory.latest(StudyRun))
    layers = {layer.layer: layer for layer in directory.latest(StudyLayer) if layer.cutoffs}
    texts = directory.read(StudyText)
    layouts = []
    for layer in layers.values():
        widest = _widest(layer, list(layers.values()))
        if widest is None or layer.layer == widest.layer or layer.layer.partition(":")[0] != "zipfmax":
            continue
        difference = readings.difference(layer.layer, widest.layer, readings.at_equal_steps)
        if difference is None or difference.n < 2:
            continue
        change = difference.mapped(as_ratio)
        layouts.append(
            {
                "layer": layer.layer,
                "projection_sizes": layer.projection_sizes,
                "shortlist_share": round(_share(layer, directory), 4),
                "change": round(change.mean, 5),
                "low": round(change.low, 5),
                "high": round(change.high, 5),
            }
        )
    if not layouts or not texts:
        raise UsageError(
            f"{directory.path} holds no layout beside the widest of its cutoffs with two seeds or more: study "
            "zipfmax and zipfmax:div=1 with --seeds 0,1,2"
        )
    first = next(iter(layers.values()))
    machine = directory.meta.machine
    return {
        "hardware": machine.gpus[0] if first.device != "cpu" and machine.gpus else str(machine.cpu),
        "command": directory.meta.command or "zipfmax study",
        "text": texts[0].tokens,
        "n_classes": first.n_classes,
        "in_features": first.in_features,
        "steps": readings.equal_steps,
        "layouts": layouts,
    }


def _widest(layer: StudyLayer, layers: Sequence[StudyLayer]) -> StudyLayer | None:
    """The layer of the same cutoffs whose tails are all as wide as the hidden state."""
    same = (one for one in layers if one.cutoffs == layer.cutoffs and one.layer.startswith("zipfmax"))
    return next((one for one in same if min(one.projection_sizes) == one.in_features), None)


def _share(layer: StudyLayer, directory: RunDirectory) -> float:
    """Share of the validation sample's tokens in the shortlist."""
    for run in directory.latest(StudyRun):
        if run.layer == layer.layer and run.status == "ok":
            tokens = sum(band.tokens for band in run.bands)
            return sum(band.tokens for band in run.bands if band.stop <= layer.cutoffs[0]) / max(tokens, 1)
    return 0.0


def least_projection(layouts: Sequence[dict[str, Any]], margin: float) -> int:
    """The least width from which on no layout costs more than the margin; the widest studied where all do."""
    widths: list[int] = sorted({min(one["projection_sizes"]) for one in layouts})
    costly: list[int] = [min(one["projection_sizes"]) for one in layouts if one["change"] > margin]
    return next((width for width in widths if not costly or width > max(costly)), widths[-1])


def bundle(studies: Sequence[dict[str, Any]], margin: float) -> dict[str, Any]:
    """Content of `quality.json`."""
    layouts = [one for study in studies for one in study["layouts"]]
    return {
        "margin": margin,
        "min_projection": least_projection(layouts, margin),
        "min_shortlist_share": 0.0,
        "studies": list(studies),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; a `UsageError` is one line and exit status 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="+", help="run directories of studies")
    parser.add_argument("--margin", type=float, default=MARGIN, help="of perplexity, relative (0.02)")
    parser.add_argument("--write", action="store_true", help="write what the planner goes by")
    given = parser.parse_args(arguments)
    try:
        text = json.dumps(bundle([evidence(RunDirectory(run)) for run in given.run], given.margin), indent=1)
    except UsageError as error:
        print(f"evidence: {error}", file=sys.stderr)
        sys.exit(2)
    if given.write:
        quality.FILE.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
