"""`zipfmax study`: every output layer and seed in turn, first one seed of each, and a record of each that ends.

A run directory of a study holds `study_texts`, `study_layers`, `study_points` and `study_runs`, and under
`checkpoints/` what an unfinished training run goes on from.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from zipfmax.clusters import ClusterLayout
from zipfmax.errors import UsageError, one_line
from zipfmax_bench.study import outputs, steps, trunk
from zipfmax_bench.study.batches import TextBatches
from zipfmax_bench.study.corpus import Corpus, read_corpus, source
from zipfmax_bench.study.full import Chosen, choice
from zipfmax_bench.study.model import StudyModel
from zipfmax_bench.study.options import StudyOptions
from zipfmax_bench.study.outputs import LayerName, Output
from zipfmax_bench.study.table import summary_table
from zipfmax_bench.study.training import Point, TrainingRun, release
from zipfmax_reference.console import print_table, terminal
from zipfmax_reference.records import RunDirectory, StudyBand, StudyLayer, StudyPoint, StudyRun, StudyText
from zipfmax_reference.records.directory import RUN_FILE
from zipfmax_reference.records.files import check_writable
from zipfmax_reference.runs.device import present
from zipfmax_reference.runs.invocation import invocation

KEPT = "study"
"""Of the arguments in run.json: what runs of one directory have in common."""
CHECKPOINT_EVERY_S = 60.0


@dataclass(frozen=True)
class Contender:
    """An output layer that is ready to be built."""

    name: LayerName
    layout: ClusterLayout | None
    chosen: Chosen | None
    make: partial[Output]


class StudyRunner:
    """One call of `zipfmax study` on one run directory.

    Args:
        options: what to train.
        directory: where records and checkpoints go.
        console: for progress.
        limit_s: seconds after which the call stops, leaving a checkpoint.
    """

    def __init__(
        self, options: StudyOptions, directory: RunDirectory, console: Console, limit_s: float | None = None
    ) -> None:
        self._options, self._directory, self._console = options, directory, console
        self._ends_at = float("inf") if limit_s is None else time.monotonic() + limit_s
        self._names = [outputs.parsed(name) for name in options.layers]
        self._edges: list[int] = []
        self._contenders: dict[str, Contender] = {}

    def run(self) -> bool:
        """Train what is not finished yet; returns whether all is."""
        corpus = read_corpus(self._options.text)
        self._note(corpus.card)
        batches = TextBatches(corpus, self._options)
        layouts = self._layouts(corpus)
        self._edges = band_edges(len(corpus.counts), [found for found in layouts.values() if found])
        names = list(self._distinct(layouts))
        for seed in self._options.seeds:
            for name in names:
                if not self._train(name, layouts[name.name], seed, batches, corpus):
                    return False
            for name in names if seed == self._options.seeds[0] else ():
                if not self._measure_steps(name, layouts[name.name], batches, corpus):
                    return False
        return True

    @property
    def _is_over(self) -> bool:
        return time.monotonic() > self._ends_at

    def _note(self, card: StudyText) -> None:
        known = self._directory.read(StudyText)
        if known and known[0].checksum != card.checksum:
            raise UsageError(
                f"{card.tokens} is not the text that {self._directory.path} was begun with: the files have "
                "changed; choose another --out"
            )
        if not known:
            self._directory.write(card)
        self._console.print(
            f"{card.tokens}: {card.kind}, {card.n_train:,} tokens to train on, {card.n_valid:,} to validate, "
            f"{card.n_classes:,} words ({card.valid_coverage:.1%} of the validation part)"
        )

    def _layouts(self, corpus: Corpus) -> dict[str, ClusterLayout | None]:
        """The partition of each layer that can have one; as recorded, where the study has been begun."""
        own, n_classes = self._options, len(corpus.counts)
        found: dict[str, ClusterLayout | None] = {}
        for name in self._names:
            known = self._known(name)
            if known is not None and known.status == "ok" and known.cutoffs:
                cutoffs, sizes = tuple(known.cutoffs), tuple(known.projection_sizes)
                found[name.name] = ClusterLayout(own.features, n_classes, cutoffs, name.div_value, sizes)
                continue
            try:
                found[name.name] = (
                    name.layout(corpus.counts, own.features, own.rows, own.device, own.dtype)
                    if name.is_adaptive
                    else None
                )
            except UsageError as error:
                if name.cutoffs != "plan":
                    raise
                if known is None:
                    self._skip(name, None, n_classes, str(error))
        return found

    def _distinct(self, layouts: dict[str, ClusterLayout | None]) -> Iterator[LayerName]:
        """The layers without those that are another one under a second name."""
        seen: dict[tuple[str, object], str] = {}
        for name in (one for one in self._names if one.name in layouts):
            layout = layouts[name.name]
            same = layout and (name.kind, layout.cutoffs, layout.projection_sizes)
            first = seen.setdefault((name.name, None) if same is None else ("layout", same), name.name)
            if first == name.name:
                yield name
            elif (name.name,) not in self._directory.finished(StudyLayer):
                self._directory.write(
                    self._described(name, layout, None, "skipped", f"the same layer as {first}")
                )

    def _known(self, name: LayerName) -> StudyLayer | None:
        return {layer.layer: layer for layer in self._directory.latest(StudyLayer)}.get(name.name)

    def _contender(self, name: LayerName, layout: ClusterLayout | None, corpus: Corpus) -> Contender | None:
        """The layer with what computes its loss; None where nothing here can, which is recorded."""
        if name.name in self._contenders:
            return self._contenders[name.name]
        own, n_classes = self._options, len(corpus.counts)
        known = self._known(name)
        if known is not None and known.status != "ok":
            return None
        try:
            chosen = None
            if layout is None:
                computes = known.computes if known else None
                chosen = choice(name.kind, n_classes, own.features, own.rows, own.device, own.dtype, computes)
                release()
            make = partial(outputs.build, name, own.features, n_classes, layout, chosen)
            model = StudyModel(own, n_classes, make, 0)
        except (UsageError, RuntimeError) as error:
            self._skip(name, layout, n_classes, one_line(error))
            return None
        if known is None:
            sizes = {
                "parameters": model.own_parameters(),
                "model_parameters": sum(weight.numel() for weight in model.parameters()),
            }
            described = self._described(name, layout, chosen, "ok", None, n_classes)
            self._directory.write(described.model_copy(update=sizes))
        self._contenders[name.name] = Contender(name, layout, chosen, make)
        return self._contenders[name.name]

    def _skip(self, name: LayerName, layout: ClusterLayout | None, n_classes: int, reason: str) -> None:
        self._directory.write(self._described(name, layout, None, "skipped", reason, n_classes))
        self._console.print(f"{name.name} is left out: {reason}")

    def _described(
        self,
        name: LayerName,
        layout: ClusterLayout | None,
        chosen: Chosen | None,
        status: str,
        reason: str | None,
        n_classes: int | None = None,
    ) -> StudyLayer:
        own = self._options
        return StudyLayer.model_validate(
            {
                "layer": name.name,
                "status": status,
                "reason": reason,
                "computes": chosen.text if chosen else name.kind,
                "exact": chosen.exact if chosen else True,
                "cutoffs": list(layout.cutoffs) if layout else [],
                "projection_sizes": list(layout.projection_sizes) if layout else [],
                "n_classes": n_classes or (layout.n_classes if layout else 0),
                "in_features": own.features,
                "rows": own.rows,
                "trunk": own.trunk_text,
                "inputs": own.inputs,
                "trunk_flops": trunk.forward_flops(own.trunk, own.features, own.depth, own.length),
                "device": own.device,
                "dtype": own.dtype,
            }
        )

    def _train(
        self, name: LayerName, layout: ClusterLayout | None, seed: int, batches: TextBatches, corpus: Corpus
    ) -> bool:
        """Train one layer with one seed and record it; returns whether it ended within the call's limit."""
        layer = name.name
        if (layer, seed) in self._directory.finished(StudyRun):
            return True
        if self._is_over:
            return False
        contender = self._contender(name, layout, corpus)
        if contender is None:
            return True
        checkpoint = self._directory.path / "checkpoints" / f"{_file_name(layer)}-{seed}.pt"

        def on_point(point: Point) -> None:
            self._console.print(
                f"{layer}, seed {seed}: step {point.step}, {point.seconds:.1f} s, loss {point.valid_loss:.4f}",
                highlight=False,
            )

        try:
            model = StudyModel(self._options, len(corpus.counts), contender.make, seed)
            run = TrainingRun(model, self._options, batches, seed, checkpoint, self._edges)
            if not run.train(on_point, lambda: self._is_over, CHECKPOINT_EVERY_S):
                return False
            self._record(layer, seed, run)
        except (
            RuntimeError,
            torch.OutOfMemoryError,
        ) as error:  # recorded: the other layers are still trained
            reason = one_line(error)
            self._directory.write(StudyRun(layer=layer, seed=seed, status="failed", reason=reason))
            self._console.print(f"{layer}, seed {seed}: {reason}")
        checkpoint.unlink(missing_ok=True)
        release()
        return True

    def _record(self, layer: str, seed: int, run: TrainingRun) -> None:
        progress = run.progress
        bands = [
            StudyBand(start=start, stop=stop, tokens=tokens, loss=loss, gradient_error=error)
            for start, stop, tokens, loss, error in run.bands()
        ]
        points = [
            StudyPoint(
                layer=layer,
                seed=seed,
                step=point.step,
                seconds=point.seconds,
                train_loss=point.train_loss,
                valid_loss=point.valid_loss,
                band_losses=point.band_losses,
            )
            for point in progress.points
        ]
        self._directory.write(
            *points,
            StudyRun(
                layer=layer,
                seed=seed,
                n_steps=progress.step,
                seconds=progress.seconds,
                warm_up_s=progress.warm_up_s,
                tokens_per_s=progress.step * self._options.rows / progress.seconds,
                valid_loss=points[-1].valid_loss,
                bands=bands,
                peak_bytes=progress.peak_bytes or None,
            ),
        )

    def _measure_steps(
        self, name: LayerName, layout: ClusterLayout | None, batches: TextBatches, corpus: Corpus
    ) -> bool:
        """Time a layer's steps, unless that is done; returns False where the call's limit is reached."""
        known = self._known(name)
        if known is None or known.status != "ok" or known.step_s is not None:
            return True
        if self._is_over:
            return False
        contender = self._contender(name, layout, corpus)
        if contender is None:
            return True
        try:
            times = steps.measure(self._options, batches, len(corpus.counts), contender.make)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            reason = one_line(error)
            self._console.print(f"{name.name}: its share of a step was not measured: {reason}")
            return True
        finally:
            release()
        self._directory.write(
            known.model_copy(
                update={
                    "step_s": times.step_s,
                    "bare_step_s": times.bare_s,
                    "step_samples_s": times.with_output_s,
                    "bare_samples_s": times.without_s,
                    "output_share": times.share,
                    "temporary_bytes": times.temporary_bytes,
                }
            )
        )
        return True


def band_edges(n_classes: int, layouts: list[ClusterLayout]) -> list[int]:
    """0, the powers of ten and every cutoff below n_classes, and n_classes."""
    decades = {10**power for power in range(1, 12) if 10**power < n_classes}
    return sorted({0, n_classes, *decades, *(cutoff for layout in layouts for cutoff in layout.cutoffs)})


def run(
    options: StudyOptions, out: Path, resume: bool = False, limit_s: float | None = None, quiet: bool = False
) -> int:
    """Do a study, and print what it found; the command line's `zipfmax study`.

    Args:
        options: what to train.
        out: run directory.
        resume: go on with the study that is there.
        limit_s: seconds after which the call stops; `resume` goes on.
        quiet: print only the table.

    Returns:
        0: everything was trained, or the limit was reached. 1: nothing could be.

    Raises:
        UsageError: options that no study has, or that are not those of the study in `out`.
    """
    present(options.device)
    for name in options.layers:
        outputs.parsed(name)
    if limit_s is not None and not limit_s > 0:
        raise UsageError(f"--limit should be a positive number of seconds, got {limit_s}")
    source(options.text)
    if not resume and not (out / RUN_FILE).exists():
        check_writable(out / RUN_FILE)
        read_corpus(options.text)  # a text that is too short is refused before there is a run
    arguments = {KEPT: options.comparable(), "layers": list(options.layers), "seeds": list(options.seeds)}
    directory = RunDirectory.start(out, invocation(arguments), resume)
    begun = directory.meta.arguments.get(KEPT)
    if begun != options.comparable():
        changed = [name for name, value in options.comparable().items() if (begun or {}).get(name) != value]
        raise UsageError(f"{out} was begun with another {', '.join(changed)}: choose another --out")
    console = terminal(soft_wrap=True)
    progress = Console(quiet=True) if quiet else console
    ended = StudyRunner(options, directory, progress, limit_s).run()
    print_table(console, summary_table(directory))
    if not ended:
        console.print(f"stopped after {limit_s:.0f} s; --resume --out {out} goes on")
    return 0 if directory.read(StudyRun) else 1


def _file_name(layer: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in layer)
