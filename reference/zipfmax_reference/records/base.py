"""What every record has in common: frozen, checked when it is made and when it is read.

The types are pydantic models. A field's docstring becomes its description in the JSON schema, so the format
is documented where it is defined, and pydantic writes and reads the numbers that JSON lacks as the strings
"NaN", "Infinity" and "-Infinity". msgspec is faster and as strict, but it writes such numbers as null, and
its descriptions stand in `Annotated[...]` around each type, which reads worse.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

FORMAT = 2
"""Version of all records together; `run.json` holds it as "format"."""

Real = Annotated[
    float, WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]})
]
"""A float that need not be finite."""

Status = Literal["ok", "skipped", "failed", "out_of_memory", "over_budget", "parity_failed", "implausible"]
"""What became of a timed cell; every status but "ok" has a `reason`."""

Verdict = Literal["pass", "fail", "skipped"]
"""What became of a comparison."""


class Part(BaseModel):
    """A piece of a record, or a record. Frozen; unknown fields are refused.

    Raises:
        pydantic.ValidationError: a field that is missing, unknown or of another type. It is a ValueError.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_inf_nan="strings", use_attribute_docstrings=True
    )


class Record(Part):
    """One line of a file of a run directory."""

    FILE: ClassVar[str]
    """Name of its file without ".jsonl"."""
    KEY: ClassVar[tuple[str, ...]]
    """Fields that tell two records apart: of equal ones the last written counts."""

    @property
    def key(self) -> tuple[Any, ...]:
        """The values of the fields in `KEY`."""
        return tuple(getattr(self, name) for name in self.KEY)


class CaseFields(Part):
    """The question that a cell answers: a shape, a partition, a label distribution, a task and a seed."""

    n_classes: int
    """Vocabulary size V."""
    in_features: int
    """Hidden width d."""
    batch_size: int
    """Rows N."""
    cutoffs: list[int]
    """First class of each tail, ascending."""
    div_value: float = 4.0
    """Each tail's projection is this much narrower than the one before."""
    head_bias: bool = False
    """Whether the head has a bias."""
    dtype: str = "float32"
    """Of input and weights: float64, float32, bfloat16 or float16."""
    device: str = "cpu"
    """A torch device."""
    labels: str
    """Distribution of the labels: zipf:S, uniform, wordfreq:LANG, counts:FILE or only:LABELS."""
    seed: int = 0
    """Of weights, inputs and labels."""
    task: str
    """forward, train, log_prob, predict or topk."""
    hidden: str = "normal"
    """What the hidden states are like."""
    logit_std: float | None = Field(default=None)
    """Standard deviation of the logits that the weights are drawn for; null for the harness's own choice."""
