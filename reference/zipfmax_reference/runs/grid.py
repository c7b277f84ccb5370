"""The grids of cases that `zipfmax verify` runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import cycle, product
from typing import Any

from zipfmax.clusters import ClusterLayout
from zipfmax.errors import UsageError, unknown
from zipfmax_reference.runs.case import DTYPES, PROTOCOL, RANKS, Case
from zipfmax_reference.runs.device import named

TASKS = ("forward", "train", "log_prob", "predict")
"""What every reference's own layer has."""

UNIFORM_TAILS = 1000.0
"""A div_value beyond every in_features here: all projections have width 0, so the tails are uniform."""

Partition = tuple[int, tuple[int, ...]]
"""(n_classes, cutoffs)"""

_QUICK_PARTITIONS: tuple[Partition, ...] = (
    (60, (7, 20, 45)),
    (203, (1, 2, 202)),  # clusters of one class at both ends
    (500, (499,)),
    (1000, (100,)),
    (2000, (50, 200, 800, 1500)),
)

_CALLED: tuple[Partition, ...] = ((40, (7, 20)), (37, (9,)), (203, (1, 2, 202)))

_FULL_PARTITIONS: tuple[Partition, ...] = (
    (2, (1,)),
    (50, (49,)),
    (97, (10, 11, 12)),
    (203, (1, 2, 202)),
    (300, (20, 60, 61, 150, 299)),
    (700, (7, 20, 61, 150, 400, 401)),
    (1000, (100,)),
    (2000, (50, 200, 800, 1500)),
)


def grid(name: str, device: str = "cpu", dtypes: Sequence[str] = ()) -> list[Case]:
    """The cases of a grid: "quick", "full" or "large", each case once; `dtypes` stand in for the grid's own.

    Raises:
        UsageError: unknown name, dtype or device.
    """
    if name not in GRIDS:
        raise UsageError(unknown("grid", name, GRIDS))
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UsageError(unknown("dtype", dtype, DTYPES))
    named(device)
    return GRIDS[name](device, dtypes) if dtypes else GRIDS[name](device)


def matching(cases: list[Case], pattern: str) -> list[Case]:
    """The cases whose id contains the pattern, in which * and ? are wildcards.

    Raises:
        UsageError: there are none, or the pattern is empty.
    """
    if not pattern:
        raise UsageError("the pattern of cells is empty: leave it out for all of them")
    found = [case for case in cases if fnmatchcase(case.id, f"*{pattern}*")]
    if not found:
        parts = sorted({part for case in cases for part in case.id.split("-")})
        words = [word.strip("*?") for word in pattern.split("-")]
        near = [match for word in words if word not in parts for match in get_close_matches(word, parts, 2)]
        hint = f"did you mean {' or '.join(map(repr, near[:3]))}? " if near else ""
        raise UsageError(f"no cell of this grid matches {pattern!r}; {hint}an id looks like {cases[0].id}")
    return found


def quick(device: str = "cpu", dtypes: Sequence[str] = ("float32", "float64")) -> list[Case]:
    """Every partition with every div_value, head_bias, dtype and task; the other fields take turns.

    And some of many classes and rows, and the protocol of calls in each dtype.
    """
    combinations = product(_QUICK_PARTITIONS, (1.0, 2.0, 4.0, 1.5, UNIFORM_TAILS), (False, True), dtypes)
    turns = zip(
        cycle((32, 17, 48)),
        cycle((64, 33, 1, 40, 7, 50, 24)),
        cycle(("zipf:1.0", "uniform", "zipf:1.3", "wordfreq:en", "zipf:0.5")),
        cycle((*("normal",) * 6, "scale:100", "strided", "nan-rows", "expanded", "inf-rows")),
        strict=False,
    )
    return [
        Case(n_classes, d, n, cutoffs, div_value, bias, dtype, device, labels, task=task, hidden=hidden)
        for ((n_classes, cutoffs), div_value, bias, dtype), (d, n, labels, hidden) in zip(
            combinations, turns, strict=False
        )
        for task in TASKS
    ] + [*_of_sizes(device, dtypes[0]), *_of_calls(_CALLED[:2], device, dtypes)]


def full(device: str = "cpu", dtypes: Sequence[str] = DTYPES) -> list[Case]:
    """Every partition with every div_value, head_bias, dtype and task, three times over.

    Each time with in_features, batch size, labels and hidden state drawn from lists of awkward ones, by a
    fixed seed: a grid of all their products would be fifty times larger and find little more.
    """
    choose = random.Random(20161)
    cases = {}
    combinations = product(
        _FULL_PARTITIONS,
        (1.0, 1.5, 2.0, 4.0, 8.0, UNIFORM_TAILS),
        (False, True),
        dtypes,
        TASKS,
        range(3),
    )
    for (n_classes, cutoffs), div_value, bias, dtype, task, turn in combinations:
        d = choose.choice((1, 2, 13, 31, 64, 101))
        n = choose.choice((0, 1, 2, 3, 33, 128, 257, 1000))
        labels = choose.choice(_LABELS)
        hidden = choose.choice(_HIDDEN)
        layout = ClusterLayout(d, n_classes, cutoffs, div_value)
        case = Case(
            n_classes,
            d,
            n,
            cutoffs,
            div_value,
            bias,
            dtype,
            device,
            labels(layout),
            seed=turn,
            task=task,
            hidden=hidden,
        )
        cases[case.id] = case
    return list(cases.values()) + _of_calls(_CALLED, device, dtypes)


def _of_sizes(device: str, dtype: str) -> list[Case]:
    """More classes and rows than tiles have, labels beside each cutoff and tile, which `predict` finds."""
    layout = ClusterLayout(67, 5_021, (515, 840), 1.0)
    labels = _beside_tiles(layout)
    aimed = [
        Case(5_021, 67, 263, layout.cutoffs, 1.0, True, dtype, device, labels, task=task, hidden="aimed")
        for task in TASKS
    ]
    # Sizes of whole tiles; and as many classes as a partition above has, in other clusters.
    tiles, n_tiled = (57, 121, 153, 281, 297, 305, 401), 500
    of_many = "only:32769,40003"
    # Beyond 2^16 rows a row's number does not fit 16 bits, nor a GPU's grid its second axis.
    return [
        *aimed,
        Case(12_011, 33, 523, (1_025, 4_099), 2.0, False, dtype, device),
        Case(31, 3, 66_001, (5, 12), 1.0, True, dtype, device, task="forward"),
        # As wide as models are, whole tiles of rows and features, and many tails.
        *(
            Case(n_tiled, d, 128, tiles, 1.5, dtype=dtype, device=device, task=task)
            for d, task in ((512, "train"), (520, "train"), (520, "log_prob"), (520, "predict"))
        ),
        # More classes than 16 bits count, the last of which no number of 16 bits is.
        *(
            Case(40_004, 3, 4, (5,), 1.0, False, dtype, device, of_many, 4, task, hidden="aimed")
            for task in ("train", "log_prob", "predict")
        ),
        *(
            Case(31, 3, 8_209, (5, 12), 1.0, False, dtype, device, task=task)
            for task in ("train", "log_prob", "predict")
        ),
    ]


def _of_calls(partitions: Sequence[Partition], device: str, dtypes: Sequence[str]) -> list[Case]:
    """The protocol of calls, with a head bias and without one, of a single tail, and once of many rows."""
    small = [
        Case(n_classes, 12, 17, cutoffs, 2.0, turn == 0, dtype, device, "uniform", task=PROTOCOL)
        for turn, (n_classes, cutoffs) in enumerate(partitions)
        for dtype in (dtypes[:1] if len(cutoffs) == 1 else dtypes)
    ]
    return [*small, _of_many_rows(dtypes[0], device)]


def _of_many_rows(dtype: str, device: str) -> Case:
    """The protocol of calls in an awkward shape that is not small, of which fewer rules are asked."""
    return Case(1021, 37, 131, (50, 51, 613), 2.0, True, dtype, device, task=PROTOCOL)


def of_ranks(device: str = "cpu") -> list[Case]:
    """What goes wrong over ranks: an odd number of classes, and of every cluster's."""
    return [
        Case(61, 12, 33, (9, 30), 2.0, bias, "float64", device, "uniform", task=RANKS)
        for bias in (False, True)
    ]


def large(device: str = "cpu", dtypes: Sequence[str] = ("float32", "bfloat16")) -> list[Case]:
    """Training steps of 50,000, 267,735 and a million classes, whose sums are long.

    With usual and wide logits, and with tails of two columns, whose products may keep one running sum each.
    """
    usual = [
        Case(n_classes, 128, 256, (2_000, 10_000), dtype=dtype, device=device, logit_std=logit_std)
        for n_classes in (50_000, 267_735, 1_000_000)
        for dtype in dtypes
        for logit_std in (None, 4.0)
    ]
    narrow = [
        Case(n_classes, 9, n_rows, (1_025, 4_099), 2.0, dtype=dtype, device=device)
        for n_classes, n_rows in ((70_001, 1_030), (1_000_000, 257))
        for dtype in dtypes
    ]
    return [*usual, *narrow]


def small(device: str = "cpu") -> list[Case]:
    """The smaller partitions of the quick grid: a few seconds' work, for a test suite."""
    return [case for case in quick(device) if case.n_classes <= 203]


def of_layer(layer: Any) -> list[Case]:
    """Cases of a layer's own partition, dtype and device: batches of 1 and 33 rows, three kinds of labels; and

    the protocol of calls.

    Args:
        layer: has torch.nn's attributes: in_features, n_classes, cutoffs (n_classes last), div_value, head.
    """
    weight = layer.head.weight
    cutoffs = tuple(cutoff for cutoff in layer.cutoffs if cutoff < layer.n_classes)
    layout = ClusterLayout(layer.in_features, layer.n_classes, cutoffs, layer.div_value)
    return [
        Case(
            layer.n_classes,
            layer.in_features,
            batch_size,
            cutoffs,
            layer.div_value,
            layer.head.bias is not None,
            str(weight.dtype).removeprefix("torch."),
            str(weight.device),
            labels,
            task=task,
        )
        for batch_size, labels, task in (
            *product((1, 33), ("uniform", "zipf:1.0", beside_cutoffs(layout)), TASKS),
            (33, "uniform", PROTOCOL),
        )
    ]


def beside_cutoffs(layout: ClusterLayout) -> str:
    """Labels at every cutoff and beside it, and the first and last class."""
    near = {c + shift for c in layout.cutoffs for shift in (-1, 0, 1)} | {0, layout.n_classes - 1}
    return "only:" + ",".join(str(label) for label in sorted(near) if label < layout.n_classes)


def _beside_tiles(layout: ClusterLayout) -> str:
    """Labels of `beside_cutoffs`, and the last and first ones of tiles of 128 to 4,096 classes of each cluster."""
    clusters = [(0, layout.shortlist_size), *((tail.start, tail.stop) for tail in layout)]
    pairs = [
        f"{start + size - 1}-{start + size}"
        for start, stop in clusters
        for size in (128, 256, 512, 1024, 4096)
        if start + size < stop
    ]
    return ",".join([beside_cutoffs(layout), *pairs])


def one_cluster(layout: ClusterLayout) -> str:
    """Labels of the last tail only: every other tail is absent."""
    tail = layout.tails[-1]
    return f"only:{tail.start}-{tail.stop - 1}"


def shortlist_alone(layout: ClusterLayout) -> str:
    """Labels of the shortlist only: every tail is absent."""
    return f"only:0-{layout.shortlist_size - 1}"


def one_label(layout: ClusterLayout) -> str:
    """One label of the first tail in every row."""
    return f"only:{layout.tails[0].stop - 1}"


def _named(labels: str) -> Callable[[ClusterLayout], str]:
    return lambda layout: labels


_LABELS: tuple[Callable[[ClusterLayout], str], ...] = (
    _named("uniform"),
    _named("zipf:0.8"),
    _named("zipf:1.0"),
    _named("zipf:1.3"),
    _named("zipf:2.0"),
    _named("wordfreq:en"),
    _named("wordfreq:de"),
    beside_cutoffs,
    one_cluster,
    shortlist_alone,
    one_label,
)

# Plain hidden states as often as all awkward ones together.
_HIDDEN = (
    *("normal",) * 8,
    "scale:0.001",
    "scale:30",
    "scale:1000",
    "scale:10000",
    "strided",
    "expanded",
    "nan-rows",
    "inf-rows",
)

GRIDS: dict[str, Callable[..., list[Case]]] = {"quick": quick, "full": full, "large": large}
