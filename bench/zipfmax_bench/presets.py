"""The axes of a sweep: the presets, and the cases that a choice of values on each axis spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from zipfmax.errors import UsageError, unknown
from zipfmax_bench.engine import SamplingPolicy
from zipfmax_bench.prediction import product_flops
from zipfmax_reference.runs.case import Case
from zipfmax_reference.runs.labels import vocabulary_size
from zipfmax_reference.runs.machine import check_fits

# Partitions of the literature: WikiText-103 by Baevski & Auli 2019; the others in their spirit.
LITERATURE_CUTOFFS: Mapping[int, tuple[int, ...]] = {
    10_000: (1_000, 4_000),
    50_000: (2_000, 10_000),
    267_735: (20_000, 60_000),
}


@dataclass(frozen=True)
class Axes:
    """Values on each axis; the sweep is their product. No `cutoffs` means a customary partition each.

    `also` holds smaller sweeps besides: in each, the axes that it names have other values.
    """

    classes: tuple[int, ...]
    labels: tuple[str, ...]
    tasks: tuple[str, ...] = ("forward", "train")
    implementations: tuple[str, ...] = ("zipfmax", "torch", "paddle", "full")
    cutoffs: tuple[tuple[int, ...], ...] = ()
    features: tuple[int, ...] = (256,)
    batch: tuple[int, ...] = (512,)
    div_value: tuple[float, ...] = (4.0,)
    dtypes: tuple[str, ...] = ("float32",)
    logit_std: tuple[float | None, ...] = (None,)
    device: str = "cpu"
    seed: int = 0
    policy: SamplingPolicy = field(default_factory=SamplingPolicy)
    also: tuple[Mapping[str, object], ...] = ()


PRESETS: Mapping[str, Axes] = {
    "quick": Axes(
        classes=(10_000, 50_000),
        labels=("zipf:0.5", "zipf:1.0", "zipf:1.5"),
        implementations=("zipfmax", "torch", "full"),
        batch=(256,),
        policy=SamplingPolicy(seconds=0.35, least=3, budget_s=9.0),
        also=(
            # The vocabulary of WikiText-103: a run of full softmax takes seconds there.
            {"classes": (267_735,), "labels": ("zipf:1.0",)},
            # How memory grows with the batch.
            {"classes": (50_000,), "labels": ("zipf:1.0",), "tasks": ("train",), "batch": (512, 1024)},
        ),
    ),
    # Small cells whose counted figures and ratios a gate keeps, with at least six replicate processes.
    "gate": Axes(
        classes=(10_000,),
        labels=("zipf:1.0", "zipf:1.3"),
        tasks=("forward", "train", "log_prob", "predict", "topk"),
        implementations=("zipfmax:eager", "zipfmax:tiled", "torch", "full"),
        features=(64,),
        batch=(128,),
        policy=SamplingPolicy(seconds=1.5, least=12, most=48),
    ),
    # Vocabulary by skew on a GPU, with logits nearly as flat as untrained and as spread as trained.
    "gpu": Axes(
        classes=(10_000, 100_000, 1_000_000, 10_000_000),
        labels=("zipf:0", "zipf:0.5", "zipf:1.0", "zipf:1.5"),
        tasks=("train",),
        implementations=(
            "zipfmax",
            "torch",
            "full",
            "full:chunked",
            "full:liger",
            "full:cce-exact",
            "full:cce",
        ),
        batch=(4096,),
        dtypes=("bfloat16",),
        logit_std=(1.0, 4.0),
        device="cuda",
        policy=SamplingPolicy(seconds=0.4, least=5, most=15, budget_s=60.0),
    ),
    "wikitext103": Axes(
        classes=(267_735,),
        labels=("zipf:1.0", "wordfreq:en"),
        cutoffs=((20_000, 60_000), (20_000, 40_000, 200_000)),
        features=(1024,),
        batch=(2048,),
        dtypes=("float32", "bfloat16"),
    ),
}


def axes(preset: str, **chosen: object) -> Axes:
    """A preset with the given axes in place of its own; an axis given as None or () keeps the preset's.

    Its smaller sweeps are left out where an axis of theirs is given.

    Raises:
        UsageError: unknown preset.
    """
    if preset not in PRESETS:
        raise UsageError(unknown("preset", preset, PRESETS))
    given = {name: value for name, value in chosen.items() if value not in (None, ())}
    if "classes" in given and "cutoffs" not in given:
        given["cutoffs"] = ()  # a preset's partitions belong to its vocabularies
    given["also"] = tuple(part for part in PRESETS[preset].also if not part.keys() & given.keys())
    made = replace(PRESETS[preset], **given)  # type: ignore[arg-type]
    if preset == "gate" and "implementations" not in given:
        made = replace(made, implementations=with_gpu_kernels(made))
    return made


def with_gpu_kernels(axes: Axes, beginning: str = "") -> tuple[str, ...]:
    """The implementations of a gate whose names begin so; on a GPU its kernels too, the other backends as well."""
    names = tuple(name for name in axes.implementations if name.startswith(beginning))
    return ("zipfmax:triton", *names) if axes.device.startswith("cuda") else names


def device(preset: str | None) -> str | None:
    """The device that a preset is made for, where it is not the CPU's."""
    own = PRESETS[preset].device if preset is not None and preset in PRESETS else "cpu"
    return None if own == "cpu" else own


def cases(axes: Axes) -> list[Case]:
    """Every case of a sweep, in the order to measure them.

    Cases that share weights follow each other, from the most skewed labels to the least: the cheapest first,
    so that what is past the budget there is tried nowhere else. Every partition goes with every vocabulary
    that it fits; a vocabulary that none fits gets a customary one.

    Raises:
        UsageError: a value that no case can have, or a partition that fits no vocabulary.
    """
    for labels in axes.labels:
        vocabulary_size(labels)  # refuses unknown forms before anything is started
    for cutoffs in axes.cutoffs:
        if not any(_fits(cutoffs, n_classes) for n_classes in axes.classes):
            raise UsageError(
                f"cutoffs {','.join(map(str, cutoffs))} fit none of the vocabularies "
                f"{', '.join(map(str, axes.classes))}: each should be below the vocabulary size"
            )
    parts = (axes, *(replace(axes, **part) for part in axes.also))  # type: ignore[arg-type]
    return list(dict.fromkeys(case for part in parts for case in _product(part)))


def _product(axes: Axes) -> list[Case]:
    found = []
    shapes = product(axes.classes, axes.dtypes, axes.features, axes.batch, axes.div_value, axes.logit_std)
    for n_classes, dtype, features, batch, div_value, logit_std in shapes:
        check_fits(2 * batch * features, f"{batch:,} rows of {features:,} features, in 16 bits,")
        partitions = [c for c in axes.cutoffs if _fits(c, n_classes)] or [customary_cutoffs(n_classes)]
        for cutoffs, task in product(partitions, axes.tasks):
            group = []
            for labels in dict.fromkeys(axes.labels):
                try:
                    case = Case(
                        n_classes=n_classes,
                        in_features=features,
                        batch_size=batch,
                        cutoffs=cutoffs,
                        div_value=div_value,
                        dtype=dtype,
                        device=axes.device,
                        labels=labels,
                        seed=axes.seed,
                        task=task,
                        logit_std=logit_std,
                    )
                except ValueError as error:
                    raise UsageError(str(error)) from error
                weights = f"the weights of {n_classes:,} classes and div_value {div_value:g}, in 16 bits,"
                check_fits(2 * case.layout.parameter_count(), weights)
                group.append(case)
            found += sorted(group, key=lambda case: product_flops("adaptive", case))
    return found


def customary_cutoffs(n_classes: int) -> tuple[int, ...]:
    """The literature's partition of a vocabulary of this size, or one in the same proportions.

    Raises:
        UsageError: a vocabulary too small to be split in three.
    """
    if n_classes in LITERATURE_CUTOFFS:
        return LITERATURE_CUTOFFS[n_classes]
    if n_classes < 3:
        raise UsageError(f"a vocabulary should have at least 3 classes, got {n_classes}")
    first = max(1, round(0.07 * n_classes))
    return first, max(first + 1, round(0.25 * n_classes))


def parse_cutoffs(text: str) -> tuple[int, ...]:
    """ "2000,10000" as (2000, 10000).

    Raises:
        UsageError: not integers.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"cutoffs {text!r}: expected integers separated by commas, as in 2000,10000, or plan"
        ) from error


def _fits(cutoffs: Sequence[int], n_classes: int) -> bool:
    return cutoffs[-1] < n_classes
