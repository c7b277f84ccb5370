"""`python -m zipfmax_bench.plan_agreement`: whether calibrations of one machine, one after another, plan alike.

Every calibration is whole and new. For each distribution and shape the plan after each is held against the
others, and beside it the plan that the calibration would make were no cost model bundled.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import track
from rich.table import Table

from zipfmax import hardware
from zipfmax.calibration import Calibration, calibrate
from zipfmax.planner import plan_cutoffs
from zipfmax_bench.plan_proof import SHAPES
from zipfmax_bench.threads import default_threads
from zipfmax_reference.console import print_table, terminal
from zipfmax_reference.records import PlanAgreement
from zipfmax_reference.runs import labels as label_distributions

LABELS = (
    *(f"zipf:{exponent}" for exponent in (0.6, 0.8, 1.0, 1.2, 1.5)),
    *(f"wordfreq:{language}" for language in ("en", "de", "fr", "ru")),
    "uniform",
)
WANTED = 0.95
"""Share of the calibrations that have to make the same plan, in every cell."""


def calibrations(count: int, path: Path | None) -> list[Calibration]:
    """So many calibrations of this machine; those that the file holds already are read, new ones added to it."""
    known = path.read_text().splitlines() if path is not None and path.exists() else []
    found = [Calibration.from_record(json.loads(line)) for line in known[:count]]
    for _ in track(range(count - len(found)), description="calibrating", console=terminal(stderr=True)):
        found.append(calibrate())
        if path is not None:
            with path.open("a") as file:
                file.write(json.dumps(found[-1].to_record()) + "\n")
    return found


def agreement(labels: str, shape: tuple[int, int, int], found: Sequence[Calibration]) -> PlanAgreement:
    """The plans of one distribution and shape."""
    n_classes, in_features, batch_size = shape
    identity = found[0].identity
    bundled = hardware.nearest(torch.device("cpu"), getattr(torch, identity["dtype"]), identity["task"])
    assert bundled is not None, "models of CPUs are bundled"
    probabilities = label_distributions.distribution(labels, n_classes)

    def cutoffs(model: Calibration, prior: Calibration | None = None) -> list[int]:
        return list(plan_cutoffs(probabilities, in_features, batch_size, model=model, prior=prior).cutoffs)

    return PlanAgreement(
        labels=labels,
        n_classes=n_classes,
        in_features=in_features,
        batch_size=batch_size,
        task=identity["task"],
        dtype=identity["dtype"],
        bundled=cutoffs(bundled),
        plans=[cutoffs(one, bundled) for one in found],
        alone=[cutoffs(one) for one in found],
        errors=[one.model.error for one in found],
        source=hardware.described(bundled),
        machine=identity,
    )


def most_common(plans: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], int]:
    """The plan that comes most often, and how often."""
    return Counter(map(tuple, plans)).most_common(1)[0]


def agreement_table(records: Sequence[PlanAgreement]) -> Table:
    """One line a cell."""
    table = Table(title=f"How many of {len(records[0].plans)} calibrations make the same plan")
    for heading in ("labels", "V", "d", "N", "plan", "agree", "without a bundled model"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in records:
        plan, agree = most_common(one.plans)
        table.add_row(
            one.labels,
            f"{one.n_classes:,}",
            str(one.in_features),
            str(one.batch_size),
            ",".join(map(str, plan)),
            str(agree),
            str(most_common(one.alone)[1]),
        )
    return table


def main(
    count: Annotated[int, typer.Option("--calibrations", help="How many; each takes 45 s.")] = 20,
    models: Annotated[
        Path | None,
        typer.Option(help="A file of the calibrations, one a line; those in it are not done again."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A file for the records, one JSON object a line.")] = None,
    threads: Annotated[int | None, typer.Option(help="By default all cores.")] = None,
) -> None:
    """Calibrate again and again, and count how many of the calibrations plan alike."""
    torch.set_num_threads(threads or default_threads())
    found = calibrations(count, models)
    records = [agreement(labels, shape, found) for labels, shape in product(LABELS, SHAPES)]
    if out is not None:
        out.write_text("".join(record.model_dump_json() + "\n" for record in records))
    console = terminal()
    print_table(console, agreement_table(records))
    shares = [most_common(record.plans)[1] / count for record in records]
    held = sum(share >= WANTED for share in shares)
    console.print(
        f"In {held} of {len(records)} cells at least {WANTED:.0%} of {count} calibrations make the same plan; "
        f"the least is {min(shares):.0%}.",
        highlight=False,
    )
    raise typer.Exit(0 if held == len(records) else 1)


if __name__ == "__main__":
    typer.run(main)
