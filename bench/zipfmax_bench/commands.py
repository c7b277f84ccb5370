"""The commands that say what it costs: `sweep`, `gate`, `compare`, `plan`, `train`, `compile`.

Each imports what it needs when it is called, so that `--help` costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

from zipfmax.errors import UsageError


def sweep(
    preset: Annotated[str | None, typer.Option(help="quick (the default), gate, wikitext103 or gpu.")] = None,
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
    logit_std: Annotated[
        list[float] | None, typer.Option(help="Standard deviation of the logits (about 2); repeat.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="forward, train, log_prob, predict or topk; repeat.")
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
    precision: Annotated[
        str | None,
        typer.Option(help="Go on until every ratio is known this well, such as 2%, or --budget ends."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Seconds that one cell may cost (60); dearer ones are recorded as such."),
    ] = None,
    replay: Annotated[
        bool | None,
        typer.Option("--replay", help="On a GPU, time replays of CUDA graphs where a step can be captured."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; by default a new one in runs/.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
    world: Annotated[
        list[int] | None,
        typer.Option(
            help="Instead, time zipfmax's layers split over so many ranks of this machine against one; repeat."
        ),
    ] = None,
) -> None:
    """Measure implementations against full softmax as vocabulary and skew grow."""
    from zipfmax_bench.sweep import run
    from zipfmax_bench.sweep_options import SweepOptions

    options = SweepOptions(
        preset=preset,
        impl=tuple(impl or ()),
        labels=tuple(labels or ()),
        classes=tuple(classes or ()),
        cutoffs=tuple(cutoffs or ()),
        features=tuple(features or ()),
        batch=tuple(batch or ()),
        div_value=tuple(div_value or ()),
        dtype=tuple(dtype or ()),
        logit_std=tuple(logit_std or ()),
        task=tuple(task or ()),
        device=device,
        seed=seed,
        threads=threads,
        processes=processes,
        rounds=rounds,
        precision=precision,
        budget=budget,
        replay=replay,
    )
    if world:
        from zipfmax_bench.rank_sweep import run as run_over_ranks

        raise typer.Exit(run_over_ranks(options, world, out, resume))
    raise typer.Exit(run(options, out, resume))


def gate(
    run: Annotated[
        Path | None, typer.Argument(help="A run directory, or the JSON of pytest --benchmark.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="What to hold it against.")] = None,
    update: Annotated[bool, typer.Option("--update", help="Make the run the baseline.")] = False,
    threshold: Annotated[float, typer.Option(help="Relative slowdown that is let pass.")] = 0.05,
    rerun: Annotated[
        bool, typer.Option(help="Confirm a slowdown in fresh processes before it counts.")
    ] = True,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML to write.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Markdown to write, for a job summary.")] = None,
    self_test: Annotated[
        bool,
        typer.Option("--self-test", help="Count the gate's false alarms and what it catches, here and now."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="With --self-test: a run directory for its figures.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="With --self-test: go on with the run in --out.")
    ] = False,
) -> None:
    """Hold a run against a baseline: exit status 1 for a confirmed regression or an unexplained change."""
    if self_test:
        from zipfmax_bench.selftest import self_test as check

        if run or baseline or update or junit or summary or threshold != 0.05 or not rerun:
            raise UsageError("--self-test measures its own runs: it takes only --out and --resume")
        raise typer.Exit(check(out, resume))
    if out is not None or resume:
        raise UsageError("--out and --resume go with --self-test")
    if run is None or baseline is None:
        raise UsageError("gate needs a run and --baseline FILE, or --self-test")
    if update and (junit or summary):
        raise UsageError(
            "--update makes a baseline and judges nothing: it goes without --junit and --summary"
        )
    from zipfmax_bench.gate import gate as hold

    raise typer.Exit(
        hold(run, baseline, update=update, threshold=threshold, rerun=rerun, junit=junit, summary=summary)
    )


def compare(
    base: Annotated[str, typer.Argument(help="A git revision, such as main.")],
    threads: Annotated[int | None, typer.Option(help="Of both; by default all cores.")] = None,
    threshold: Annotated[float, typer.Option(help="Relative slowdown that is let pass.")] = 0.05,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML to write.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Markdown to write, for a job summary.")] = None,
) -> None:
    """Measure another git revision interleaved with this one: exit status 1 if this one is slower."""
    from zipfmax_bench.compare import compare as measure

    raise typer.Exit(measure(base, threads=threads, threshold=threshold, junit=junit, summary=summary))


def plan(
    features: Annotated[int, typer.Option(help="Hidden width d.")],
    batch: Annotated[int, typer.Option(help="Rows N of a step.")],
    counts: Annotated[
        Path | None,
        typer.Option(
            help="Counts by label: token and count lines, .csv, .tsv, .npy, .npz, .json, or a text to count; "
            "also gzipped."
        ),
    ] = None,
    counts_format: Annotated[
        str | None,
        typer.Option(help="text, token-count, csv, tsv, npy, npz or json, where the guess is wrong."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json: the tokens of the text in --counts are counted.")
    ] = None,
    zipf: Annotated[
        float | None, typer.Option(help="A Zipf law with this exponent; needs --classes.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Or a distribution, such as wordfreq:en.")] = None,
    classes: Annotated[int | None, typer.Option(help="Vocabulary size; by default the counts' own.")] = None,
    div_value: Annotated[float, typer.Option(help="How tails narrow.")] = 4.0,
    clusters: Annotated[int | None, typer.Option(help="Number of tails; by default the cheapest.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, ...")] = "float32",
    task: Annotated[str, typer.Option(help="train or forward.")] = "train",
    max_parameters: Annotated[int | None, typer.Option(help="Most weights that the layer may have.")] = None,
    min_projection: Annotated[int, typer.Option(help="Smallest projection of a tail.")] = 1,
    min_shortlist_share: Annotated[
        float, typer.Option(help="Least share of the labels that the shortlist holds, for perplexity.")
    ] = 0.0,
    multiple: Annotated[
        int | None,
        typer.Option(help="Cutoffs are multiples of this; by default of 16, of 1 below 1,024 classes."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="By default all cores.")] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Plan with this machine's cost model, measured once (45 s), in place of the bundled one.",
        ),
    ] = False,
    recalibrate: Annotated[bool, typer.Option("--recalibrate", help="Measure it again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw cost against the first cutoff into this file (.svg, .png, ...).")
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Time the plan, the literature's cutoffs and full softmax, interleaved.")
    ] = False,
    python: Annotated[bool, typer.Option(help="Print only the code to paste.")] = False,
    world: Annotated[
        list[int] | None,
        typer.Option(help="Predict a step with the vocabulary split over so many ranks too; repeat."),
    ] = None,
) -> None:
    """Choose the cutoffs: a partition of these labels that is fast, and the same whenever it is asked for."""
    from zipfmax_bench.planning import PlanOptions, run
    from zipfmax_reference.console import terminal
    from zipfmax_reference.records.files import check_writable

    if as_json and python:
        raise UsageError("--json and --python exclude each other: both say what standard output holds")
    draw = _figure("plan") if plot is not None else None
    check_writable(plot)
    if counts is None and (counts_format or tokenizer):
        raise UsageError("--counts-format and --tokenizer go with --counts FILE")
    if counts_format and tokenizer:
        raise UsageError("--tokenizer counts the tokens of a text: it goes without --counts-format")
    how = f"{tokenizer or counts_format}@" if tokenizer or counts_format else ""
    sources = [
        source
        for source in (counts and f"counts:{how}{counts}", zipf is not None and f"zipf:{zipf:g}", labels)
        if source
    ]
    if len(sources) != 1:
        raise UsageError("give the labels by exactly one of --counts FILE, --zipf S or --labels NAME")
    options = PlanOptions(
        labels=sources[0],
        classes=classes,
        features=features,
        batch=batch,
        div_value=div_value,
        clusters="auto" if clusters is None else clusters,
        device=device,
        dtype=dtype,
        task=task,
        max_parameters=max_parameters,
        min_projection=min_projection,
        min_shortlist_share=min_shortlist_share,
        multiple=multiple,
        threads=threads,
        calibrate=calibrate,
        recalibrate=recalibrate,
        world=tuple(world or ()),
    )
    quiet = as_json or python
    result = run(options, as_json=as_json, measured=measure, python=python, console=terminal(stderr=quiet))
    if plot is not None and draw is not None:
        draw(result, plot)
        print(plot, file=sys.stderr if quiet else sys.stdout)


def train(
    text: Annotated[
        Path | None, typer.Option(help="A text file; without one a small text is made from the seed.")
    ] = None,
    layer: Annotated[str, typer.Option(help="Output layer: zipfmax, torch or full.")] = "zipfmax",
    embedding: Annotated[str, typer.Option(help="plain, adaptive, or tied to zipfmax's layer.")] = "plain",
    epochs: Annotated[int | None, typer.Option(help="Passes over the text; by default 1.")] = None,
    steps: Annotated[int | None, typer.Option(help="Take that many steps instead.")] = None,
    batch: Annotated[int, typer.Option(help="Streams of text read side by side.")] = 16,
    window: Annotated[int, typer.Option(help="Words of each stream that a step reads.")] = 32,
    features: Annotated[int, typer.Option(help="Width of embedding and hidden state.")] = 128,
    depth: Annotated[int, typer.Option(help="LSTM layers.")] = 1,
    cutoffs: Annotated[str | None, typer.Option(help="Where clusters start, such as 2000,10000.")] = None,
    div_value: Annotated[float, typer.Option(help="How tails narrow.")] = 4.0,
    vocabulary: Annotated[int | None, typer.Option(help="Keep that many words of the text.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Of weights and of the made text.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    backend: Annotated[str, typer.Option(help="zipfmax's backend.")] = "auto",
) -> None:
    """Train a small language model on a text with one of three output layers: perplexity and time a step."""
    from zipfmax_bench.example.model import ModelOptions
    from zipfmax_bench.example.train import TrainOptions, run

    if epochs is not None and steps is not None:
        raise UsageError("--epochs and --steps exclude each other: both say how long to train")
    epochs = 1 if epochs is None else epochs
    model = ModelOptions(
        layer, embedding, features, depth, _integers("--cutoffs", cutoffs), div_value, backend
    )
    raise typer.Exit(
        run(TrainOptions(text, model, epochs, steps, batch, window, learning_rate, vocabulary, seed, device))
    )


def compile_kernels(
    target: Annotated[
        list[str] | None, typer.Option(help="sm_80, sm_90, sm_100 or gfx942; repeat. By default all.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Only training steps with biases, of several tails, in 16 bits and tf32."
        ),
    ] = False,
) -> None:
    """Compile every GPU kernel, with no GPU: registers, spills, shared memory; exit 1 if one is bad."""
    from zipfmax_bench.kernels import compile as compiler

    raise typer.Exit(compiler.report(target or list(compiler.TARGETS), quick))


def _figure(name: str) -> Callable[[dict[str, Any], Path], None]:
    """What draws a figure: registered by whichever package draws, so that this one imports no other above it.

    Raises:
        UsageError: nothing is installed that draws it.
    """
    for entry in entry_points(group="zipfmax.figures", name=name):
        draw: Callable[[dict[str, Any], Path], None] = entry.load()
        return draw
    raise UsageError(
        f"nothing is installed that draws the figure of a {name}: pip install 'zipfmax[harness]'"
    )


def _integers(option: str, text: str | None) -> tuple[int, ...]:
    """Numbers separated by commas; none where the option was left out."""
    try:
        return tuple(int(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise UsageError(f"{option} should be numbers such as 2000,10000, got {text!r}") from None
