"""The options of `zipfmax study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zipfmax.errors import UsageError
from zipfmax_reference.options import option

TEXT = "The text, as in --tokens tokens:site-packages --classes 194304"
MODEL = "The model, as in --trunk lstm --depth 1 --features 256"
COMPARED = "What is compared, as in --layers 'full zipfmax zipfmax:div=2'"
TRAINED = "Training, as in --seconds 25 --seeds 0,1,2"
RECORDS = "Records, as in --out runs/study --limit 500 --resume"


def study(
    out: Annotated[Path, option("Run directory.", RECORDS)],
    preset: Annotated[str, option("quick (a CPU, 5 minutes) or gpu.", TRAINED)] = "quick",
    tokens: Annotated[
        str | None, option("tokens:site-packages, or tokens:PATH,PATH (files or folders).", TEXT)
    ] = None,
    classes: Annotated[
        int | None, option("Keep that many words of the text, <unk> among them.", TEXT)
    ] = None,
    min_count: Annotated[int | None, option("Words that occur less often become <unk>.", TEXT)] = None,
    megabytes: Annotated[float | None, option("Read about so much of the text.", TEXT)] = None,
    trunk: Annotated[str | None, option("transformer or lstm.", MODEL)] = None,
    depth: Annotated[int | None, option("Layers of the trunk.", MODEL)] = None,
    features: Annotated[int | None, option("Width of embedding and hidden state.", MODEL)] = None,
    inputs: Annotated[
        str | None, option("Input words: plain, adaptive, or tied to the output layer.", MODEL)
    ] = None,
    compile_trunk: Annotated[bool, option("Compile the trunk by torch.compile.", MODEL, "--compile")] = False,
    layers: Annotated[
        str | None,
        option(
            "Output layers, separated by spaces: full, full:chunked, sampled, torch, zipfmax, "
            "zipfmax:cutoffs=plan,least=16 (cutoffs customary, fine, plan or 2000/10000; div; least width).",
            COMPARED,
        ),
    ] = None,
    seeds: Annotated[
        str | None, option("Such as 0,1,2; every layer's first seed comes first.", TRAINED)
    ] = None,
    steps: Annotated[int | None, option("Train each so many steps.", TRAINED)] = None,
    seconds: Annotated[float | None, option("Or train each so many seconds.", TRAINED)] = None,
    sequences: Annotated[int | None, option("Streams of text read side by side.", TRAINED)] = None,
    length: Annotated[int | None, option("Tokens of each stream that a step reads.", TRAINED)] = None,
    learning_rate: Annotated[float | None, option("Of AdamW.", TRAINED)] = None,
    evaluate_every: Annotated[int | None, option("Steps between two evaluations.", TRAINED)] = None,
    valid_tokens: Annotated[int | None, option("Tokens of the validation sample.", TRAINED)] = None,
    device: Annotated[str | None, option("cpu or cuda.", MODEL)] = None,
    limit: Annotated[float | None, option("Stop after so many seconds; --resume goes on.", RECORDS)] = None,
    resume: Annotated[bool, option("Go on with the study in --out.", RECORDS, "--resume")] = False,
    only_map: Annotated[
        bool,
        option(
            "Train nothing: measure the parts of a step from 10,000 to a million words, for the map of where a whole "
            "step is faster. --out may be a study's folder, with --resume.",
            COMPARED,
            "--map",
        ),
    ] = False,
) -> None:
    """Train one model with each output layer: perplexity against steps and time, and where it is lost.

    The text is read from this environment's Python sources unless another is named. Trunk, inputs, batches and
    optimizer are the same for every output layer. A call that is stopped or killed goes on with --resume.

    Examples:

        zipfmax study --out runs/study                              on a CPU, 5 minutes
        zipfmax study --out runs/study --tokens tokens:books --trunk transformer --seconds 600
        zipfmax study --preset gpu --out runs/gpu --limit 500       on a GPU; repeat with --resume until it ends
        zipfmax study --preset gpu --out runs/gpu --resume --map    where a whole step is faster, on that GPU
        python -m zipfmax_bench.study --preset gpu --out runs/gpu --limit 500     where it is not installed

    """
    from zipfmax_bench.study.options import preset as of_preset
    from zipfmax_bench.study.run import run

    trained = {
        "tokens": tokens,
        "classes": classes,
        "min_count": min_count,
        "megabytes": megabytes,
        "trunk": trunk,
        "depth": depth,
        "features": features,
        "inputs": inputs,
        "compile_trunk": compile_trunk or None,
        "layers": tuple((layers or "").split()),
        "seeds": _numbers(seeds),
        "steps": steps,
        "seconds": seconds,
        "sequences": sequences,
        "length": length,
        "learning_rate": learning_rate,
        "evaluate_every": evaluate_every,
        "valid_tokens": valid_tokens,
    }
    options = of_preset(preset, device=device, **trained)
    if not only_map:
        raise typer.Exit(run(options, out, resume, limit))
    if given := [name for name, value in trained.items() if value not in (None, ())]:
        names = ", ".join("--" + name.removesuffix("_trunk").replace("_", "-") for name in given)
        raise UsageError(f"--map trains nothing and measures a grid of its own: leave out {names}")
    from zipfmax_bench.study import break_even

    raise typer.Exit(break_even.run(break_even.grid(options.device), out, resume, limit))


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"--seeds should be numbers such as 0,1,2, got {text!r}") from None
