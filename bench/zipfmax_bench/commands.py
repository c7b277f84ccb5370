"""The commands that say what it costs: `sweep`, `plan`, `train`, `compile`, and those of `gate_commands`.

Each imports what it needs when it is called, so that `--help` costs nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from zipfmax.errors import UsageError
from zipfmax_reference.options import IMPLEMENTATIONS, RECORDS, option

MEASURED = "What is measured, as in --impl zipfmax --impl full --task train"
CASES = "On which cases, as in --classes 50000 --labels zipf:1.0 --cutoffs 2000,10000"
HOW_LONG = "How thoroughly, as in --precision 2% --budget 120"
LABELS = "The labels, as in --labels wordfreq:en --classes 50000"
STEP = "The step, as in --features 512 --batch 1024 --dtype bfloat16"
BOUNDS = "Bounds of the plan, as in --min-shortlist-share 0.8 --min-projection 32"
PRINTED = "What is printed, as in --python"
DATA = "The text, as in --text book.txt --vocabulary 20000"
MODEL = "The model, as in --layer zipfmax --cutoffs 2000,10000 --backend tiled"
TRAINED = "Training, as in --epochs 2 --learning-rate 1e-3"
COMPILED = "Which kernels, as in --target sm_90 --quick"


def sweep(
    preset: Annotated[str | None, option("quick (the default), gate, wikitext103 or gpu.", MEASURED)] = None,
    impl: Annotated[list[str] | None, option(f"Repeat for several: {IMPLEMENTATIONS}.", MEASURED)] = None,
    labels: Annotated[
        list[str] | None, option("zipf:S, uniform, wordfreq:LANG or counts:FILE; repeat.", CASES)
    ] = None,
    classes: Annotated[list[int] | None, option("A vocabulary size; repeat.", CASES)] = None,
    cutoffs: Annotated[
        list[str] | None,
        option("A partition such as 2000,10000, for each vocabulary it fits; repeat.", CASES),
    ] = None,
    features: Annotated[list[int] | None, option("Hidden width d; repeat.", CASES)] = None,
    batch: Annotated[list[int] | None, option("Rows N of a batch; repeat.", CASES)] = None,
    div_value: Annotated[list[float] | None, option("How tails narrow; repeat.", CASES)] = None,
    dtype: Annotated[list[str] | None, option("float32, bfloat16, ...; repeat.", CASES)] = None,
    logit_std: Annotated[
        list[float] | None, option("Standard deviation of the logits (about 2); repeat.", CASES)
    ] = None,
    task: Annotated[
        list[str] | None, option("forward, train, log_prob, predict or topk; repeat.", MEASURED)
    ] = None,
    device: Annotated[str | None, option("cpu or cuda; by default cuda where there is one.", CASES)] = None,
    seed: Annotated[int | None, option("Of weights, labels and batches.", CASES)] = None,
    threads: Annotated[
        int | None, option("Of every implementation; by default OMP_NUM_THREADS or all cores.", HOW_LONG)
    ] = None,
    processes: Annotated[int | None, option("Replicate processes of each implementation.", HOW_LONG)] = None,
    rounds: Annotated[
        int | None, option("Samples of each cell; by default as many as 2 s hold.", HOW_LONG)
    ] = None,
    precision: Annotated[
        str | None,
        option("Go on until every ratio is known this well, such as 2%, or --budget ends.", HOW_LONG),
    ] = None,
    budget: Annotated[
        float | None,
        option("Seconds that one cell may cost (60); dearer ones are recorded as such.", HOW_LONG),
    ] = None,
    replay: Annotated[
        bool | None,
        option("On a GPU, time replays of CUDA graphs where a step can be captured.", HOW_LONG, "--replay"),
    ] = None,
    out: Annotated[Path | None, option("Run directory; by default a new one in runs/.", RECORDS)] = None,
    resume: Annotated[bool, option("Go on with the run in --out.", RECORDS)] = False,
    world: Annotated[
        list[int] | None,
        option(
            "Instead, time zipfmax's layers split over so many ranks of this machine against one; repeat.",
            MEASURED,
        ),
    ] = None,
) -> None:
    """Measure implementations against full softmax as vocabulary and skew grow.

    Examples:

        zipfmax sweep                                               the quick preset, and a table
        zipfmax sweep --classes 50000 --labels zipf:1.0 --task train --impl zipfmax --impl torch --impl full
        zipfmax sweep --impl my_layer.py:MyLayer --impl torch --precision 2% --out runs/mine
        zipfmax sweep --out runs/mine --resume
    """
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


def plan(
    features: Annotated[int, option("Hidden width d.", STEP)],
    batch: Annotated[int, option("Rows N of a step.", STEP)],
    counts: Annotated[
        Path | None,
        option(
            "Counts by label: token and count lines, .csv, .tsv, .npy, .npz, .json, or a text to count; "
            "also gzipped.",
            LABELS,
        ),
    ] = None,
    counts_format: Annotated[
        str | None,
        option(
            "text, token-count, count-token, csv, tsv, npy, npz or json, where the guess is wrong.", LABELS
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, option("A tokenizer.json: the tokens of the text in --counts are counted.", LABELS)
    ] = None,
    zipf: Annotated[float | None, option("A Zipf law with this exponent; needs --classes.", LABELS)] = None,
    labels: Annotated[str | None, option("Or a distribution, such as wordfreq:en.", LABELS)] = None,
    classes: Annotated[int | None, option("Vocabulary size; by default the counts' own.", LABELS)] = None,
    div_value: Annotated[float, option("How tails narrow.", BOUNDS)] = 4.0,
    clusters: Annotated[int | None, option("Number of tails; by default the cheapest.", BOUNDS)] = None,
    device: Annotated[str, option("cpu or cuda.", STEP)] = "cpu",
    dtype: Annotated[str, option("float32, bfloat16, ...", STEP)] = "float32",
    task: Annotated[str, option("train or forward.", STEP)] = "train",
    max_parameters: Annotated[int | None, option("Most weights that the layer may have.", BOUNDS)] = None,
    max_memory: Annotated[
        float | None,
        option("Most MiB of its weights, in training with gradients and Adam's moments.", BOUNDS),
    ] = None,
    min_projection: Annotated[
        int | None, option("Smallest projection of a tail; by default what studies found.", BOUNDS)
    ] = None,
    min_shortlist_share: Annotated[
        float | None,
        option("Least share of the labels in the shortlist; by default what studies found.", BOUNDS),
    ] = None,
    multiple: Annotated[
        int | None,
        option("Cutoffs are multiples of this; by default of 16, of 1 below 1,024 classes.", BOUNDS),
    ] = None,
    threads: Annotated[int | None, option("By default all cores.", STEP)] = None,
    calibrate: Annotated[
        bool,
        option(
            "Plan with this machine's cost model, measured once (45 s), in place of the bundled one.",
            STEP,
            "--calibrate",
        ),
    ] = False,
    recalibrate: Annotated[bool, option("Measure it again.", STEP, "--recalibrate")] = False,
    as_json: Annotated[bool, option("Print the plan as JSON.", PRINTED, "--json")] = False,
    plot: Annotated[
        Path | None, option("Draw cost against the first cutoff into this file (.svg, .png, ...).", PRINTED)
    ] = None,
    measure: Annotated[
        bool, option("Time the plan, the literature's cutoffs and full softmax, interleaved.", PRINTED)
    ] = False,
    python: Annotated[bool, option("Print only the code to paste.", PRINTED)] = False,
    world: Annotated[
        list[int] | None,
        option("Predict a step with the vocabulary split over so many ranks too; repeat.", STEP),
    ] = None,
) -> None:
    """Choose the cutoffs: a partition of these labels that is fast, and the same whenever it is asked for.

    Examples:

        zipfmax plan --labels wordfreq:en --classes 50000 --features 512 --batch 1024
        zipfmax plan --counts counts.csv --features 512 --batch 4096 --min-shortlist-share 0.8
        zipfmax plan --zipf 1.1 --classes 200000 --features 512 --batch 4096 --python
    """
    from zipfmax_bench.figure_files import figure
    from zipfmax_bench.planning import PlanOptions, run
    from zipfmax_reference.console import terminal
    from zipfmax_reference.records.files import check_writable
    from zipfmax_reference.runs.labels import counts_labels

    if as_json and python:
        raise UsageError("--json and --python exclude each other: both say what standard output holds")
    draw = None if plot is None else figure("plan", plot)
    check_writable(plot)
    if counts is None and (counts_format or tokenizer):
        raise UsageError("--counts-format and --tokenizer go with --counts FILE")
    sources = [
        source
        for source in (
            None if counts is None else counts_labels(counts, counts_format, tokenizer),
            None if zipf is None else f"zipf:{zipf:g}",
            labels,
        )
        if source is not None
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
        max_memory=max_memory,
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
    if draw is not None:
        draw(result)
        print(plot, file=sys.stderr if quiet else sys.stdout)


def train(
    text: Annotated[
        Path | None, option("A text file; without one a small text is made from the seed.", DATA)
    ] = None,
    layer: Annotated[str, option("Output layer: zipfmax, torch or full.", MODEL)] = "zipfmax",
    embedding: Annotated[str, option("plain, adaptive, or tied to zipfmax's layer.", MODEL)] = "plain",
    epochs: Annotated[int | None, option("Passes over the text; by default 1.", TRAINED)] = None,
    steps: Annotated[int | None, option("Take that many steps instead.", TRAINED)] = None,
    batch: Annotated[int, option("Streams of text read side by side.", DATA)] = 16,
    window: Annotated[int, option("Words of each stream that a step reads.", DATA)] = 32,
    features: Annotated[int, option("Width of embedding and hidden state.", MODEL)] = 128,
    depth: Annotated[int, option("LSTM layers.", MODEL)] = 1,
    cutoffs: Annotated[str | None, option("Where clusters start, such as 2000,10000.", MODEL)] = None,
    div_value: Annotated[float | None, option("How tails narrow; by default 4.", MODEL)] = None,
    vocabulary: Annotated[int | None, option("Keep that many words of the text.", DATA)] = None,
    learning_rate: Annotated[float, option("Of Adam.", TRAINED)] = 2e-3,
    seed: Annotated[int, option("Of weights and of the made text.", TRAINED)] = 0,
    device: Annotated[str, option("cpu or cuda.", TRAINED)] = "cpu",
    backend: Annotated[str, option("zipfmax's backend.", MODEL)] = "auto",
) -> None:
    """Train a small language model on a text with one of three output layers: perplexity and time a step.

    Examples:

        zipfmax train --steps 100
        zipfmax train --text book.txt --layer full --epochs 2
    """
    from zipfmax_bench.example.model import ModelOptions
    from zipfmax_bench.example.train import TrainOptions, run

    if epochs is not None and steps is not None:
        raise UsageError("--epochs and --steps exclude each other: both say how long to train")
    if layer == "full" and embedding == "plain" and (cutoffs is not None or div_value is not None):
        raise UsageError(
            "--cutoffs and --div-value shape adaptive softmax: they do not go with --layer full, "
            "unless --embedding is adaptive"
        )
    epochs = 1 if epochs is None else epochs
    div_value = 4.0 if div_value is None else div_value
    model = ModelOptions(
        layer, embedding, features, depth, _integers("--cutoffs", cutoffs), div_value, backend
    )
    raise typer.Exit(
        run(TrainOptions(text, model, epochs, steps, batch, window, learning_rate, vocabulary, seed, device))
    )


def compile_kernels(
    target: Annotated[
        list[str] | None, option("sm_80, sm_90, sm_100 or gfx942; repeat. By default all.", COMPILED)
    ] = None,
    quick: Annotated[
        bool,
        option(
            "Only training steps with biases, of the layers that need the most registers; of sm_90 and gfx942.",
            COMPILED,
            "--quick",
        ),
    ] = False,
) -> None:
    """Compile every GPU kernel, with no GPU: registers, spills, shared memory; exit 1 if one is bad.

    Example:

        zipfmax compile --target sm_90 --quick
    """
    from zipfmax_bench.kernels import compile as compiler

    raise typer.Exit(compiler.report(target or list(compiler.QUICK if quick else compiler.TARGETS), quick))


def _integers(option: str, text: str | None) -> tuple[int, ...]:
    """Numbers separated by commas; none where the option was left out."""
    try:
        return tuple(int(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise UsageError(f"{option} should be numbers such as 2000,10000, got {text!r}") from None
