"""One question to an implementation: a shape, a partition, a label distribution, a task and a seed.

A case is plain values, so it travels as JSON; its id is the same in parity, timing, pytest, gate and page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from zipfmax.clusters import ClusterLayout
from zipfmax.errors import unknown

TASKS = ("forward", "train", "log_prob", "predict", "topk")
PROTOCOL = "protocol"
"""The task of many calls on one module, which `truth.protocol` judges; nothing that is timed."""
RANKS = "ranks"
"""The task of options and labels on which layers over several ranks go wrong, which `truth.rank_traps` judges."""
TOPK = 10
"""Classes that the task "topk" asks for, or all of them where there are fewer."""
DTYPES = ("float64", "float32", "bfloat16", "float16")
HIDDEN = ("normal", "scale:X", "aimed", "strided", "expanded", "nan-rows", "inf-rows")


@dataclass(frozen=True)
class Case:
    """A frozen description of one cell.

    Args:
        n_classes: vocabulary size V.
        in_features: hidden width d.
        batch_size: rows N.
        cutoffs: as `ClusterLayout` takes them.
        div_value: as `ClusterLayout` takes it.
        head_bias: whether the head has a bias.
        dtype: "float64", "float32", "bfloat16" or "float16", of input and weights.
        device: a torch device, "cpu" or "cuda".
        labels: "zipf:S", "uniform", "wordfreq:LANG", "counts:FILE"; see `zipfmax_reference.runs.labels`.
        seed: of weights, inputs and labels.
        task: "forward", "train" (forward and backward of the mean loss), "log_prob", "predict" or "topk"
            (the `k` most probable classes), or "protocol" (many calls on one module).
        hidden: "normal"; or what makes the hidden state awkward: "scale:X" (normal times X), "aimed"
            (each row has a large logit of its label, which `predict` finds), "strided" (not contiguous),
            "expanded" (one row shared by all), "nan-rows" or "inf-rows" (every fourth row).
        logit_std: standard deviation of the logits that the weights are drawn for, of the head, of every
            tail and of full softmax, where the hidden state is "normal"; None for the default, about 2.

    Raises:
        ValueError: a partition that is none, an unknown dtype, task or hidden, or a logit_std that is not a
            positive number.
    """

    n_classes: int
    in_features: int
    batch_size: int
    cutoffs: tuple[int, ...]
    div_value: float = 4.0
    head_bias: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    labels: str = "zipf:1.0"
    seed: int = 0
    task: str = "train"
    hidden: str = "normal"
    logit_std: float | None = None

    def __post_init__(self) -> None:
        if self.task not in (*TASKS, PROTOCOL, RANKS):
            raise ValueError(unknown("task", self.task, TASKS))
        if self.dtype not in DTYPES:
            raise ValueError(unknown("dtype", self.dtype, DTYPES))
        if not (_scales(self.hidden) if ":" in self.hidden else self.hidden in HIDDEN):
            raise ValueError(unknown("hidden", self.hidden, HIDDEN))
        if self.logit_std is not None and not 0 < self.logit_std < float("inf"):
            raise ValueError(f"logit_std should be a positive number, got {self.logit_std}")
        if self.batch_size < 0:
            raise ValueError(f"batch_size should not be negative, got {self.batch_size}")
        object.__setattr__(self, "cutoffs", self.layout.cutoffs)

    @cached_property
    def layout(self) -> ClusterLayout:
        """The partition of this case."""
        return ClusterLayout(self.in_features, self.n_classes, tuple(self.cutoffs), self.div_value)

    @property
    def k(self) -> int:
        """Classes that the task "topk" asks for."""
        return min(TOPK, self.n_classes)

    @property
    def without_labels(self) -> Case:
        """The same for all cases that differ only in labels: what weights are drawn for."""
        return replace(self, labels="uniform")

    @cached_property
    def id(self) -> str:
        """A stable, readable name of every field, such as

        `train-V50000-d256-N2048-c2000,10000-div4-nobias-float32-cpu-zipf:1.0-seed0`; a hidden state that is
        not "normal" and a `logit_std` are named at the end.
        """
        return "-".join(
            (
                self.task,
                f"V{self.n_classes}",
                f"d{self.in_features}",
                f"N{self.batch_size}",
                "c" + ",".join(map(str, self.cutoffs)),
                f"div{self.div_value:g}",
                "bias" if self.head_bias else "nobias",
                self.dtype,
                self.device,
                self.labels,
                f"seed{self.seed}",
                *([self.hidden] if self.hidden != "normal" else []),
                *([f"logit{self.logit_std:g}"] if self.logit_std is not None else []),
            )
        )

    def to_fields(self) -> dict[str, Any]:
        """The fields as JSON holds them; `from_fields` reads them back."""
        return {**asdict(self), "cutoffs": list(self.cutoffs)}

    @classmethod
    def from_fields(cls, record: Mapping[str, Any]) -> Case:
        """The case of a record; fields that are not a case's are passed over."""
        known = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        return cls(**{**known, "cutoffs": tuple(known["cutoffs"])})


def _scales(hidden: str) -> bool:
    kind, _, argument = hidden.partition(":")
    try:
        return kind == "scale" and 0 < float(argument) < float("inf")
    except ValueError:
        return False
