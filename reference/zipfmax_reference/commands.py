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

Out = Annotated[Path | None, typer.Option(help="Run directory for the records.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Cells = Annotated[
    str | None, typer.Option(help="Only the cells whose id contains this; * and ? are wildcards.")
]
Grid = Annotated[
    str, typer.Option(help="quick; full: thousands of awkward cells; large: up to a million classes.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


def verify(
    grid: Grid = "quick",
    impl: Annotated[
        list[str] | None,
        typer.Option(
            help="An implementation, or your own as path/file.py:Class; repeat for several. With "
            "TRITON_INTERPRET=1 in the environment zipfmax:triton needs no GPU."
        ),
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="A reference; by default definition, torch and paddle; repeat.")
    ] = None,
    cells: Cells = None,
    device: Device = "cpu",
    dtype: Annotated[
        list[str] | None, typer.Option(help="A dtype for every cell in place of the grid's own; repeat.")
    ] = None,
    matmul_precision: Annotated[
        str, typer.Option(help="torch's of float32 products: highest, high or medium (tf32 on a GPU).")
    ] = "highest",
    world: Annotated[
        list[int] | None,
        typer.Option(
            help="Split zipfmax's layers over so many ranks of this machine, and compare them with one rank "
            "too; repeat for several numbers."
        ),
    ] = None,
    save_results: Annotated[
        Path | None,
        typer.Option(help="Keep what the one --impl computed in this folder, as --against saved:FOLDER."),
    ] = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Check implementations against the definition, torch.nn and Paddle; exit status 1 if one is wrong."""
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
    grid: Grid = "quick",
    cells: Cells = None,
    device: Device = "cpu",
    timing: Annotated[
        bool, typer.Option("--timing", help="Instead, plant ways to claim time that was not earned.")
    ] = False,
    world: Annotated[
        int | None,
        typer.Option(
            help="Instead, plant the faults of layers whose vocabulary is split over so many ranks."
        ),
    ] = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Check that every planted fault is caught; exit status 1 if one passes."""
    if timing:
        if (grid, cells, device, resume, world) != ("quick", None, "cpu", False, None):
            raise UsageError("--timing has cases of its own: of the other options it takes only --out")
        raise typer.Exit(_timing_faults()(out))
    from zipfmax_reference.checks.mutants import run

    raise typer.Exit(run(grid, cells, out, resume, device, world))


def conformance(out: Out = None, resume: Resume = False) -> None:
    """Probe what torch.nn, Paddle and TensorFlow do, feature by feature, and how stable they are."""
    from zipfmax_reference.checks.conformance import run

    raise typer.Exit(run(out, resume))


def metamorphic(
    impl: Annotated[list[str] | None, typer.Option(help="An implementation; repeat for several.")] = None,
    cells: Cells = None,
    out: Out = None,
    resume: Resume = False,
) -> None:
    """Check relations that hold at millions of classes and need no reference; exit status 1 if one fails."""
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
