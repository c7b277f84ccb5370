"""The `zipfmax` command: the door to every room. Each command imports its room when it is called.

Exit status everywhere: 0 holds, 1 a finding (parity failed, a regression), 2 wrong use or missing input, with
one line on standard error and no traceback.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from zipfmax.errors import UsageError

app = typer.Typer(
    name="zipfmax",
    help=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Adaptive softmax that is fast, verified and measured."""


@app.command()
def sweep(
    preset: Annotated[str | None, typer.Option(help="quick (the default) or wikitext103.")] = None,
    impl: Annotated[list[str] | None, typer.Option(help="An implementation; repeat for several.")] = None,
    labels: Annotated[
        list[str] | None, typer.Option(help="zipf:S, uniform, wordfreq:LANG or counts:FILE; repeat.")
    ] = None,
    classes: Annotated[list[int] | None, typer.Option(help="A vocabulary size; repeat.")] = None,
    cutoffs: Annotated[
        list[str] | None,
        typer.Option(help="A partition such as 2000,10000, for each vocabulary it fits; repeat."),
    ] = None,
    features: Annotated[list[int] | None, typer.Option(help="Hidden width d; repeat.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rows N of a batch; repeat.")] = None,
    div_value: Annotated[list[float] | None, typer.Option(help="How tails narrow; repeat.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, ...; repeat.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="forward, train, log_prob or predict; repeat.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default cuda where there is one.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, labels and batches.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of every implementation; by default all cores.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Replicate processes of each implementation.")] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Samples of each cell; by default as many as 2 s hold.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Seconds that one cell may cost (60); dearer ones are recorded as such."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; by default a new one in runs/.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
) -> None:
    """Measure implementations against full softmax as vocabulary and skew grow."""
    from zipfmax.bench.plan import Options
    from zipfmax.bench.sweep import run

    options = Options(
        preset=preset,
        impl=tuple(impl or ()),
        labels=tuple(labels or ()),
        classes=tuple(classes or ()),
        cutoffs=tuple(cutoffs or ()),
        features=tuple(features or ()),
        batch=tuple(batch or ()),
        div_value=tuple(div_value or ()),
        dtype=tuple(dtype or ()),
        task=tuple(task or ()),
        device=device,
        seed=seed,
        threads=threads,
        processes=processes,
        rounds=rounds,
        budget=budget,
    )
    raise typer.Exit(run(options, out, resume))


@app.command()
def report(
    directories: Annotated[
        list[Path], typer.Argument(help="Run directories; the others are compared with the first.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="The page; by default index.html in the first directory.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="A folder for the figures as SVG and PNG, light and dark.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="A file for a summary in Markdown, to paste in a pull request.")
    ] = None,
) -> None:
    """Make the page of a run: is it right, is it worth it, why, and how to repeat it."""
    from zipfmax.reports import write_report

    print(write_report(directories, output, figures, markdown))


def main() -> NoReturn:
    """Run the command line; turns a `UsageError` into one line and exit status 2."""
    try:
        app()
    except UsageError as error:
        print(f"zipfmax: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


if __name__ == "__main__":
    main()
