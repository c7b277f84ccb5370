"""The commands that say what is right: `zipfmax verify`, `mutants`, `conformance`, `metamorphic`, `doctor`.

Each imports what it needs when it is called, so that `--help` costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from zipfmax.errors import UsageError
from zipfmax_reference.contestants.registry import names
from zipfmax_reference.options import IMPLEMENTATIONS, RECORDS, option

JUDGED = "What is judged, as in --impl path/file.py:Class --against torch"
WHERE = "Which cells, as in --grid full --cells 'V1000-*-bfloat16'"
DTYPES = ("float32", "float64", "bfloat16", "float16")

Out = Annotated[Path | None, option("Run directory for the records.", RECORDS)]
Resume = Annotated[bool, option("Go on with the run in --out.", RECORDS, "--resume")]
Cells = Annotated[str | None, option("Only the cells whose id contains this; * and ? are wildcards.", WHERE)]
Grid = Annotated[
    str,
    option(
        "quick; full: thousands of awkward cells; large: up to a million classes.",
        WHERE,
        values=("quick", "full", "large"),
    ),
]
Device = Annotated[str, option("cpu, cuda or cuda:N.", WHERE, values=("cpu", "cuda"))]


def verify(
    impl: Annotated[
        list[str] | None, option(f"Repeat for several: {IMPLEMENTATIONS}.", JUDGED, values=names())
    ] = None,
    against: Annotated[
        list[str] | None,
        option("A reference; by default definition, torch and paddle; repeat.", JUDGED, values=names()),
    ] = None,
    grid: Grid = "quick",
    cells: Cells = None,
    device: Device = "cpu",
    dtype: Annotated[
        list[str] | None,
        option("A dtype for every cell in place of the grid's own; repeat.", WHERE, values=DTYPES),
    ] = None,
    matmul_precision: Annotated[
        str,
        option(
            "torch's of float32 products: highest, high or medium (tf32 on a GPU).",
            WHERE,
            values=("highest", "high", "medium"),
        ),
    ] = "highest",
    world: Annotated[
        list[int] | None,
        option(
            "Split zipfmax's layers over so many ranks of this machine, and compare them with one rank too; "
            "repeat for several numbers.",
            JUDGED,
        ),
    ] = None,
    out: Out = None,
    resume: Resume = False,
    save_results: Annotated[
        Path | None,
        option("Keep what the one --impl computed in this folder, as --against saved:FOLDER.", RECORDS),
    ] = None,
) -> None:
    """Check implementations against the definition, torch.nn and Paddle; exit status 1 if one is wrong.

    Examples:

        zipfmax verify                                  every backend of zipfmax, the quick grid
        zipfmax verify --impl my_layer.py:MyLayer       your class, in a process of its own
        zipfmax verify --grid full --out runs/full      thousands of cells; goes on with --resume
        TRITON_INTERPRET=1 zipfmax verify --impl zipfmax:triton     the GPU kernels without a GPU
    """
    from zipfmax_reference.checks.verify import Options, run

    options = Options(
        grid,
        tuple(impl or ()),
        tuple(against or ()),
        cells,
        device,
        tuple(dtype or ()),
        matmul_precision,
        tuple(world or ()),
    )
    raise typer.Exit(run(options, out, resume, save_results))


def mutants(
    timing: Annotated[
        bool, option("Instead, plant ways to claim time that was not earned.", WHERE, "--timing")
    ] = False,
    grid: Grid = "quick",
    cells: Cells = None,
    device: Device = "cpu",
    world: Annotated[
        int | None,
        option("Instead, plant the faults of layers whose vocabulary is split over so many ranks.", WHERE),
    ] = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Check that every planted fault is caught; exit status 1 if one passes.

    Examples:

        zipfmax mutants
        zipfmax mutants --cells predict --out runs/mutants
        zipfmax mutants --timing
    """
    if timing:
        if (grid, cells, device, resume, world) != ("quick", None, "cpu", False, None):
            raise UsageError("--timing has cases of its own: of the other options it takes only --out")
        raise typer.Exit(_timing_faults()(out))
    from zipfmax_reference.checks.mutants import run

    raise typer.Exit(run(grid, cells, out, resume, device, world))


def conformance(
    impl: Annotated[
        list[str] | None,
        option("A layer of your own, as path/file.py:Class, probed beside torch.nn's; repeat.", JUDGED),
    ] = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Probe what torch.nn, Paddle and TensorFlow do, feature by feature, and how stable they are.

    Examples:

        zipfmax conformance --out runs/conformance
        zipfmax conformance --impl my_layer.py:MyLayer
    """
    from zipfmax_reference.checks.conformance import run

    raise typer.Exit(run(out, resume, tuple(impl or ())))


def metamorphic(
    impl: Annotated[
        list[str] | None, option(f"Repeat for several: {IMPLEMENTATIONS}.", JUDGED, values=names())
    ] = None,
    cells: Cells = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Check relations that hold at millions of classes and need no reference; exit status 1 if one fails.

    Example:

        zipfmax metamorphic --impl my_layer.py:MyLayer --cells V1000000
    """
    from zipfmax_reference.checks.metamorphic import run

    raise typer.Exit(run(tuple(impl or ()), cells, out, resume))


def doctor() -> None:
    """Show what this machine has, which implementations can run here and why the others cannot."""
    from zipfmax_reference.checks.doctor import run

    raise typer.Exit(run())


def _timing_faults() -> Callable[[Path | None], int]:
    """What plants faults in the measurement: this package does not import the one that measures."""
    for entry in entry_points(group="zipfmax.mutants", name="timing"):
        run: Callable[[Path | None], int] = entry.load()
        return run
    raise UsageError("nothing is installed that measures: pip install 'zipfmax[harness]'")
