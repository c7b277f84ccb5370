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
def verify(
    grid: Annotated[str, typer.Option(help="quick, or full: thousands of awkward cells.")] = "quick",
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
    cells: Annotated[
        str | None, typer.Option(help="Only the cells whose id contains this; * and ? are wildcards.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        list[str] | None, typer.Option(help="A dtype for every cell in place of the grid's own; repeat.")
    ] = None,
    matmul_precision: Annotated[
        str, typer.Option(help="torch's of float32 products: highest, high or medium (tf32 on a GPU).")
    ] = "highest",
    save_results: Annotated[
        Path | None,
        typer.Option(help="Keep what the one --impl computed in this folder, as --against saved:FOLDER."),
    ] = None,
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Instead, check that every planted fault is caught.")
    ] = False,
    conformance: Annotated[
        bool,
        typer.Option("--conformance", help="Instead, probe each feature of each peer, and their stability."),
    ] = False,
    metamorphic: Annotated[
        bool, typer.Option("--metamorphic", help="Instead, check relations that hold at millions of classes.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Run directory, for parity.jsonl.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
) -> None:
    """Check implementations against the definition, torch.nn and Paddle; exit status 1 if one is wrong."""
    from zipfmax_reference.checks import conformance as peers
    from zipfmax_reference.checks import metamorphic as relations
    from zipfmax_reference.checks import mutants as planted
    from zipfmax_reference.checks.verify import Options, run

    if mutants:
        if impl or against:
            raise UsageError("--mutants plants its own faults: it takes no --impl or --against")
        raise typer.Exit(planted.run(grid, cells, out, resume, device))
    if metamorphic:
        if mutants or conformance or against or device != "cpu":
            raise UsageError(
                "--metamorphic has its own cases: it takes only --impl, --cells, --out, --resume"
            )
        raise typer.Exit(relations.run(tuple(impl or ()), cells, out, resume))
    if conformance:
        if mutants or impl or against or cells or device != "cpu":
            raise UsageError("--conformance probes the peers on its own cases: it takes only --out, --resume")
        raise typer.Exit(peers.run(out, resume))
    options = Options(
        grid, tuple(impl or ()), tuple(against or ()), cells, device, tuple(dtype or ()), matmul_precision
    )
    raise typer.Exit(run(options, out, resume, save_results))


@app.command()
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
) -> None:
    """Measure implementations against full softmax as vocabulary and skew grow."""
    from zipfmax_bench.plan import Options
    from zipfmax_bench.sweep import run

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
    raise typer.Exit(run(options, out, resume))


@app.command()
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

        if run is not None or baseline is not None:
            raise UsageError("--self-test measures its own runs: it takes only --out and --resume")
        raise typer.Exit(check(out, resume))
    if out is not None or resume:
        raise UsageError("--out and --resume go with --self-test")
    if run is None or baseline is None:
        raise UsageError("gate needs a run and --baseline FILE, or --self-test")
    from zipfmax_bench.gate import gate as hold

    raise typer.Exit(
        hold(run, baseline, update=update, threshold=threshold, rerun=rerun, junit=junit, summary=summary)
    )


@app.command()
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
    from zipfmax_reports import write_report

    print(write_report(directories, output, figures, markdown))


@app.command()
def plan(
    features: Annotated[int, typer.Option(help="Hidden width d.")],
    batch: Annotated[int, typer.Option(help="Rows N of a step.")],
    counts: Annotated[
        Path | None, typer.Option(help="Label counts as .npy or .csv, or a text whose words are counted.")
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
    multiple: Annotated[int, typer.Option(help="Cutoffs are multiples of this.")] = 1,
    threads: Annotated[int | None, typer.Option(help="By default all cores.")] = None,
    recalibrate: Annotated[bool, typer.Option(help="Measure the cost model anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw cost against the first cutoff into this file (.svg, .png, ...).")
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Time the plan, the literature's cutoffs and full softmax, interleaved.")
    ] = False,
    python: Annotated[bool, typer.Option(help="Print only the line of code to paste.")] = False,
) -> None:
    """Choose the cutoffs: the cheapest partition on this machine for these labels."""
    from rich.console import Console

    from zipfmax_bench.cutoffs import PlanOptions, run

    sources = [
        source
        for source in (counts and f"counts:{counts}", zipf is not None and f"zipf:{zipf:g}", labels)
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
        recalibrate=recalibrate,
    )
    quiet = as_json or python
    result = run(options, as_json=as_json, measured=measure, python=python, console=Console(stderr=quiet))
    if plot is not None:
        from zipfmax_reports.plan_figure import write_plan_figure

        write_plan_figure(result, plot)
        print(plot, file=sys.stderr if quiet else sys.stdout)


@app.command()
def train(
    text: Annotated[
        Path | None, typer.Option(help="A text file; without one a small text is made from the seed.")
    ] = None,
    layer: Annotated[str, typer.Option(help="Output layer: zipfmax, torch or full.")] = "zipfmax",
    embedding: Annotated[str, typer.Option(help="plain, adaptive, or tied to zipfmax's layer.")] = "plain",
    epochs: Annotated[int, typer.Option(help="Passes over the text.")] = 1,
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

    model = ModelOptions(
        layer, embedding, features, depth, _integers("--cutoffs", cutoffs), div_value, backend
    )
    raise typer.Exit(
        run(TrainOptions(text, model, epochs, steps, batch, window, learning_rate, vocabulary, seed, device))
    )


@app.command()
def doctor() -> None:
    """Show what this machine has, which implementations can run here and why the others cannot."""
    from zipfmax_reference.checks.doctor import run

    raise typer.Exit(run())


def _integers(option: str, text: str | None) -> tuple[int, ...]:
    """Numbers separated by commas; none where the option was left out."""
    try:
        return tuple(int(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise UsageError(f"{option} should be numbers such as 2000,10000, got {text!r}") from None


@app.command("compile")
def compile_kernels(
    target: Annotated[
        list[str] | None, typer.Option(help="sm_80, sm_90, sm_100 or gfx942; repeat. By default all.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Only training steps with biases, which need the most registers."),
    ] = False,
) -> None:
    """Compile every GPU kernel, with no GPU: registers, spills, shared memory; exit 1 if one is bad."""
    from zipfmax_bench.kernels import compile as compiler

    raise typer.Exit(compiler.report(target or list(compiler.TARGETS), quick))


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
