"""The commands that say whether a change made it slower: `gate` and `compare`.

Each imports what it needs when it is called, so that `--help` costs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zipfmax.errors import UsageError
from zipfmax_reference.options import option

GATED = "What is judged, as in runs/now --baseline baseline.jsonl --base main"
COMPARED = "What is compared, as in main --impl my_layer.py:MyLayer --task train"
LEFT = "What is left behind, as in --junit out/gate.xml --summary out/summary.md"
SELF_TEST = "The gate tested on itself, as in --self-test --out runs/selftest"


def gate(
    run: Annotated[
        Path | None,
        typer.Argument(help="A run directory, or the JSON of pytest --benchmark.", rich_help_panel=GATED),
    ] = None,
    baseline: Annotated[Path | None, option("What to hold it against.", GATED)] = None,
    update: Annotated[bool, option("Make the run the baseline.", GATED, "--update")] = False,
    threshold: Annotated[float, option("Relative slowdown that is let pass.", GATED)] = 0.05,
    base: Annotated[
        str | None,
        option(
            "A git revision to measure beside this one where the baseline makes a cell suspect; without it "
            "such a cell ends undecided.",
            GATED,
        ),
    ] = None,
    rerun: Annotated[bool, option("Measure again what is or may be slower.", GATED)] = True,
    force: Annotated[
        bool,
        option("Judge by a baseline of another processor, torch or number of threads.", GATED, "--force"),
    ] = False,
    fail_undecided: Annotated[
        bool, option("Exit status 1 for an undecided cell too.", GATED, "--fail-undecided")
    ] = False,
    junit: Annotated[Path | None, option("JUnit XML to write.", LEFT)] = None,
    summary: Annotated[
        Path | None, option("Markdown to write, for a job summary or a pull request.", LEFT)
    ] = None,
    self_test: Annotated[
        bool,
        option("Count the gate's false alarms and what it catches, here and now.", SELF_TEST, "--self-test"),
    ] = False,
    out: Annotated[
        Path | None, option("With --self-test: a run directory for its figures.", SELF_TEST)
    ] = None,
    resume: Annotated[
        bool, option("With --self-test: go on with the run in --out.", SELF_TEST, "--resume")
    ] = False,
    runs: Annotated[
        int | None,
        option(
            "With --self-test: at most so many gate runs of each kind; by default 100 timed ones.", SELF_TEST
        ),
    ] = None,
) -> None:
    """Hold a run against a baseline: exit status 1 for a confirmed regression or an unexplained change.

    Examples:

        zipfmax sweep --preset gate --processes 6 --threads 1 --out runs/now
        zipfmax gate runs/now --baseline baseline.jsonl --update        make the baseline
        zipfmax gate runs/now --baseline baseline.jsonl --base main     judge a later run
        zipfmax gate --self-test --runs 20                              how often is it wrong here
    """
    if self_test:
        from zipfmax_bench.selftest import self_test as check

        given = (run, baseline, update, junit, summary, base, force, fail_undecided)
        if any(given) or threshold != 0.05 or not rerun:
            raise UsageError("--self-test measures its own runs: it takes only --out, --resume and --runs")
        raise typer.Exit(check(out, resume, runs=runs))
    if out is not None or resume or runs is not None:
        raise UsageError("--out, --resume and --runs go with --self-test")
    if run is None or baseline is None:
        raise UsageError("gate needs a run and --baseline FILE, or --self-test")
    if update and (junit or summary):
        raise UsageError(
            "--update makes a baseline and judges nothing: it goes without --junit and --summary"
        )
    from zipfmax_bench.gate import GateOptions
    from zipfmax_bench.gate import gate as hold
    from zipfmax_bench.gate_report import Left

    options = GateOptions(threshold, rerun, base, force)
    left = Left(junit, summary, fail_undecided)
    raise typer.Exit(hold(run, baseline, update=update, options=options, left=left))


def compare(
    base: Annotated[str, typer.Argument(help="A git revision, such as main.")],
    impl: Annotated[
        list[str] | None,
        option(
            "A layer of this repository as path/file.py:Class, or a backend of zipfmax in its own; repeat.",
            COMPARED,
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        option("forward, train, log_prob, predict or topk; by default all; repeat.", COMPARED),
    ] = None,
    classes: Annotated[list[int] | None, option("A vocabulary size; repeat.", COMPARED)] = None,
    features: Annotated[list[int] | None, option("Hidden width d; repeat.", COMPARED)] = None,
    batch: Annotated[list[int] | None, option("Rows N of a batch; repeat.", COMPARED)] = None,
    device: Annotated[str, option("cpu or cuda.", COMPARED)] = "cpu",
    threads: Annotated[
        int | None, option("Of both; by default OMP_NUM_THREADS or all cores.", COMPARED)
    ] = None,
    threshold: Annotated[float, option("Relative slowdown that is let pass.", COMPARED)] = 0.05,
    fail_undecided: Annotated[
        bool, option("Exit status 1 for an undecided cell too.", COMPARED, "--fail-undecided")
    ] = False,
    junit: Annotated[Path | None, option("JUnit XML to write.", LEFT)] = None,
    summary: Annotated[
        Path | None, option("Markdown to write, for a job summary or a pull request.", LEFT)
    ] = None,
) -> None:
    """Measure another git revision interleaved with this one: exit status 1 if this one is slower.

    Both are of the repository of the working directory, whichever zipfmax is installed.

    Examples:

        zipfmax compare main
        zipfmax compare main --impl my_layer.py:MyLayer --summary out/summary.md
        zipfmax compare HEAD~1 --task train --junit out/compare.xml
    """
    from zipfmax_bench.compare import CompareOptions
    from zipfmax_bench.compare import compare as measure
    from zipfmax_bench.gate_report import Left

    options = CompareOptions(
        impl=tuple(impl or ()),
        task=tuple(task or ()),
        classes=tuple(classes or ()),
        features=tuple(features or ()),
        batch=tuple(batch or ()),
        device=device,
        threads=threads,
        threshold=threshold,
    )
    raise typer.Exit(measure(base, options, left=Left(junit, summary, fail_undecided)))
