"""What a study is asked for, and its presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from zipfmax.errors import UsageError, unknown
from zipfmax_bench.study.corpus import CorpusOptions

TRUNKS = ("transformer", "lstm")
LEAST_COUNT = CorpusOptions.min_count
INPUTS = ("plain", "adaptive", "tied")

POSITIVE = (
    *("depth", "features", "sequences", "length", "evaluate_every"),
    *("valid_tokens", "step_rounds", "steps", "seconds"),
)
"""Fields of `StudyOptions` that are positive numbers."""

LAYERS = (
    "full",
    "zipfmax",
    "zipfmax:cutoffs=plan",
    "torch",
    "sampled",
    "zipfmax:div=1",
    "zipfmax:div=2",
    "zipfmax:cutoffs=fine,div=1",
    "zipfmax:cutoffs=fine,least=8",
    "zipfmax:cutoffs=fine,least=16",
    "zipfmax:cutoffs=fine,least=32",
    "zipfmax:cutoffs=fine,least=64",
)
"""What a study compares unless told otherwise; `outputs` says what the names mean."""


@dataclass(frozen=True)
class StudyOptions:
    """A study: the text, the model below the output layers, and how long each is trained."""

    text: CorpusOptions = field(default_factory=CorpusOptions)
    trunk: str = "transformer"
    """"transformer" or "lstm"."""
    depth: int = 4
    """Its layers."""
    features: int = 512
    """Width d of embedding and hidden state."""
    inputs: str = "plain"
    """"plain", "adaptive", or "tied": sharing the output layer's weights."""
    sequences: int = 32
    """Streams of text read side by side."""
    length: int = 256
    """Tokens of each stream that a step reads."""
    layers: tuple[str, ...] = LAYERS
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int | None = None
    """Train so many steps, whatever they take."""
    seconds: float | None = 25.0
    """Or for so long."""
    learning_rate: float = 1e-3
    """Of AdamW, constant after `warm_up` steps of linear increase, so that a curve can be read at any time."""
    warm_up: int = 100
    evaluate_every: int = 100
    """Steps between two points."""
    valid_tokens: int = 131_072
    """Tokens of the validation sample, about."""
    device: str = "cpu"
    compile_trunk: bool = False
    """Compile inputs and trunk by torch.compile."""
    step_rounds: int = 8
    """Pairs of samples of whole steps with and without the output layer."""

    def __post_init__(self) -> None:
        if self.trunk not in TRUNKS:
            raise UsageError(unknown("trunk", self.trunk, TRUNKS))
        if self.inputs not in INPUTS:
            raise UsageError(unknown("inputs", self.inputs, INPUTS))
        if (self.steps is None) == (self.seconds is None):
            raise UsageError("how long to train should be given by --steps or by --seconds, not both")
        self._check_numbers()
        if self.warm_up < 0 or not 0 < self.learning_rate < 10:
            raise UsageError(
                f"--learning-rate should be positive and below 10, got {self.learning_rate}, and the warm-up "
                "not negative"
            )
        if not self.layers or not self.seeds or not 0 <= min(self.seeds) <= max(self.seeds) < 2**63:
            raise UsageError("a study needs a layer and a seed, which is from 0 to 2**63 - 1")

    def _check_numbers(self) -> None:
        own = {name: getattr(self, name) for name in POSITIVE}
        of_text = {name: getattr(self.text, name) for name in ("classes", "min_count", "megabytes")}
        for name, number in (own | of_text).items():
            if number is not None and not 0 < number < float("inf"):
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} should be a positive number, got {number}")

    @property
    def rows(self) -> int:
        """Labels of a step, N."""
        return self.sequences * self.length

    @property
    def dtype(self) -> str:
        """Of matrix products: bfloat16 by autocast on a GPU, float32 on a CPU. Weights are float32."""
        return "float32" if self.device == "cpu" else "bfloat16"

    @property
    def trunk_text(self) -> str:
        """The trunk in words."""
        return f"{self.trunk}, {self.depth} {'layer' if self.depth == 1 else 'layers'}, d {self.features}"

    def comparable(self) -> dict[str, Any]:
        """What runs of one study have in common: a resumed one may add layers and seeds, and change nothing else."""
        own = asdict(self)
        for name in ("layers", "seeds"):
            del own[name]
        return own


PRESETS: Mapping[str, StudyOptions] = {
    "quick": StudyOptions(
        text=CorpusOptions(min_count=1, megabytes=24.0, classes=29_952),
        trunk="lstm",
        depth=1,
        features=128,
        sequences=8,
        length=32,
        layers=("full", "zipfmax", "zipfmax:div=1", "sampled"),
        seconds=10.0,
        warm_up=20,
        learning_rate=3e-3,
        evaluate_every=20,
        valid_tokens=6_144,
        step_rounds=4,
    ),
    "gpu": StudyOptions(
        text=CorpusOptions(min_count=1, classes=194_304),
        device="cuda",
    ),
}


def preset(name: str, **chosen: Any) -> StudyOptions:
    """A preset with the given fields in place of its own; those given as None or () keep the preset's.

    Args:
        name: "quick" or "gpu".
        chosen: fields of `StudyOptions` and of `CorpusOptions`.

    Raises:
        UsageError: an unknown preset, or values that no study has.
    """
    if name not in PRESETS:
        raise UsageError(unknown("preset", name, PRESETS))
    given = {key: value for key, value in chosen.items() if value not in (None, ())}
    own = PRESETS[name]
    text = {key: given.pop(key) for key in asdict(own.text) if key in given}
    if "tokens" in text:  # a preset's vocabulary and amount belong to its text
        text = {"classes": None, "megabytes": None, "min_count": LEAST_COUNT, **text}
    if given.keys() & {"steps", "seconds"}:
        given = {"steps": None, "seconds": None, **given}
    return replace(own, text=replace(own.text, **text), **given)
